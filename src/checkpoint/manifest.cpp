#include "checkpoint/manifest.h"

#include <sys/stat.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/input_file.h"
#include "core/json_fields.h"

namespace gradus {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kFormatName = "gradus checkpoint";
// Of one that lists a few files.
constexpr int64_t kMaxManifestBytes = int64_t{1} << 20;
constexpr int64_t kLargest = std::numeric_limits<int64_t>::max();

std::string hex(const XXH128_hash_t& hash) {
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

/// The text without its checksum, and with it.
std::string seal(Json manifest) {
  manifest["xxh3_128"] = record_of(manifest.dump(2)).xxh3_128;
  return manifest.dump(2) + "\n";
}

/// Whether a manifest's text ends with its own checksum, whatever else it says.
bool is_sealed(Json json, const std::string& text) {
  json.erase("xxh3_128");
  return seal(std::move(json)) == text;
}

/// A later version's checkpoint is whole; one whose checksum is wrong too was altered.
CheckpointError newer_format(int64_t version, bool sealed) {
  const std::string what =
      fmt::format("format version {} is newer than this program's {}: use a newer Gradus", version,
                  kCheckpointFormatVersion);
  if (sealed) throw UnknownFormat(what);
  return CheckpointError(what);
}

/// Throws CheckpointError where there is nothing of that name, IoError where what is there cannot
/// be looked at or is no regular file.
int64_t size_of_file(const std::filesystem::path& folder, const std::string& name) {
  const std::filesystem::path path = folder / name;
  struct stat status = {};
  if (::lstat(path.c_str(), &status) != 0 && (errno == ENOENT || errno == ENOTDIR)) {
    throw CheckpointError(
        "{} is missing: {}", name,
        name == kManifestName ? "not a checkpoint, or an unfinished one" : "it was removed");
  }
  return InputFile(path).size();  // of a link, what it leads to
}

bool is_plain_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos && name != kManifestName;
}

}  // namespace

FileRecord record_of(std::string_view bytes) {
  return {static_cast<int64_t>(bytes.size()), hex(XXH3_128bits(bytes.data(), bytes.size()))};
}

FileRecord record_of_file(const std::filesystem::path& path) {
  const InputFile file(path);
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(),
                                                                              XXH3_freeState);
  if (state == nullptr) throw std::bad_alloc();
  XXH3_128bits_reset(state.get());
  // Not mapped: an unreadable disk block is then an error here and not a SIGBUS, and the pages do
  // not count as this process's memory.
  std::vector<char> buffer(size_t{1} << 20);
  FileRecord record;
  while (record.size < file.size()) {
    const auto count = std::min(file.size() - record.size, static_cast<int64_t>(buffer.size()));
    const auto part = std::span(buffer).first(static_cast<size_t>(count));
    file.read(record.size, part);
    XXH3_128bits_update(state.get(), part.data(), part.size());
    record.size += count;
  }
  record.xxh3_128 = hex(XXH3_128bits_digest(state.get()));
  return record;
}

std::string to_text(const Manifest& manifest) {
  Json files = Json::object();
  for (const auto& [name, record] : manifest.files) {
    files[name] = {{"size", record.size}, {"xxh3_128", record.xxh3_128}};
  }
  return seal({{"format", kFormatName},
               {"version", kCheckpointFormatVersion},
               {"step", manifest.step},
               {"files", std::move(files)}});
}

Manifest read_manifest(const std::filesystem::path& folder) {
  const std::string name(kManifestName);
  if (const int64_t size = size_of_file(folder, name); size > kMaxManifestBytes) {
    throw CheckpointError("{} has {} bytes, expected at most {}: it was altered", name, size,
                          kMaxManifestBytes);
  }
  const std::string text = read_small_file(folder / name, kMaxManifestBytes);
  const Json json = parse_json_or_throw<CheckpointError>(text, name + " is damaged");
  const JsonFields<CheckpointError> fields(json, name);
  if (fields.text("format") != kFormatName) {
    throw CheckpointError("{} is not a checkpoint's", name);
  }
  // Before anything else is understood: a later version may say the rest in another way.
  if (const int64_t version = fields.integer("version", 1, kLargest);
      version > kCheckpointFormatVersion) {
    throw newer_format(version, is_sealed(json, text));
  }
  Manifest manifest;
  manifest.step = fields.integer("step", 0, kLargest);
  for (const auto& [file, record] : fields.object("files").items()) {
    if (!is_plain_name(file)) {
      throw CheckpointError("{} lists '{}', which is not a file of the folder", name,
                            printable(file));
    }
    const std::string place = fmt::format("{}: {}", name, printable(file));
    const JsonFields<CheckpointError> of_file(record, place);
    manifest.files[file] = {of_file.integer("size", 0, kLargest), of_file.text("xxh3_128")};
  }
  if (to_text(manifest) != text) {
    throw CheckpointError("{} was altered: its own checksum does not match", name);
  }
  return manifest;
}

void check_sizes(const std::filesystem::path& folder, const Manifest& manifest) {
  for (const auto& [name, record] : manifest.files) {
    const int64_t size = size_of_file(folder, name);
    if (size != record.size) {
      throw CheckpointError("{} has {} bytes, expected {}: it was cut short or altered", name, size,
                            record.size);
    }
  }
}

void check_record(const std::string& name, const FileRecord& found, const Manifest& manifest) {
  const FileRecord& expected = manifest.files.at(name);
  if (found == expected) return;
  throw CheckpointError("{} was altered or torn: XXH3-128 {} ({} bytes), expected {} ({} bytes)",
                        name, found.xxh3_128, found.size, expected.xxh3_128, expected.size);
}

}  // namespace gradus
