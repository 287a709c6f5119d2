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

#include "core/counted.h"
#include "core/error.h"
#include "core/input_file.h"
#include "core/json_fields.h"
#include "core/printable_text.h"

namespace gradus {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kFormatName = "gradus checkpoint";
// Of one that lists a few files.
constexpr int64_t kMaxManifestBytes = int64_t{1} << 20;
constexpr int64_t kLargest = std::numeric_limits<int64_t>::max();
// The first version whose records may be of blocks.
constexpr int64_t kBlocksVersion = 2;
// Smaller ones, which nobody writes, would take long to check.
constexpr int64_t kLeastBlockBytes = 4096;

std::string hex(const XXH128_hash_t& hash) {
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

/// XXH3-128 of bytes that come bit by bit.
class Hasher {
 public:
  Hasher() : state_(XXH3_createState(), XXH3_freeState) {
    if (state_ == nullptr) throw std::bad_alloc();
    XXH3_128bits_reset(state_.get());
  }
  void update(std::string_view bytes) {
    XXH3_128bits_update(state_.get(), bytes.data(), bytes.size());
  }
  /// Of what came since the last call.
  XXH128_hash_t take() {
    const XXH128_hash_t hash = XXH3_128bits_digest(state_.get());
    XXH3_128bits_reset(state_.get());
    return hash;
  }

 private:
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state_;
};

/// A file's checksum while the file is read: of all of it, or of its blocks'.
class FileHasher {
 public:
  explicit FileHasher(int64_t block_bytes) : block_bytes_(block_bytes) {}

  void update(std::string_view bytes) {
    size_ += static_cast<int64_t>(bytes.size());
    while (block_bytes_ > 0 && in_block_ + static_cast<int64_t>(bytes.size()) >= block_bytes_) {
      const auto rest = static_cast<size_t>(block_bytes_ - in_block_);
      file_.update(bytes.substr(0, rest));
      bytes.remove_prefix(rest);
      end_block();
    }
    file_.update(bytes);
    in_block_ += static_cast<int64_t>(bytes.size());
  }

  FileRecord finish() {
    if (block_bytes_ > 0 && in_block_ > 0) end_block();
    return {size_, hex((block_bytes_ > 0 ? blocks_ : file_).take()), block_bytes_};
  }

 private:
  void end_block() {
    blocks_.update(hex(file_.take()) + "\n");
    in_block_ = 0;
  }

  int64_t block_bytes_;
  int64_t size_ = 0;
  int64_t in_block_ = 0;
  Hasher file_;
  Hasher blocks_;
};

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

BlockHash hash_of_block(std::string_view bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return {hash.high64, hash.low64};
}

FileRecord record_of_blocks(int64_t size, int64_t block_bytes, std::span<const BlockHash> blocks) {
  Hasher hasher;
  for (const BlockHash& block : blocks) {
    hasher.update(hex({.low64 = block.low, .high64 = block.high}) + "\n");
  }
  return {size, hex(hasher.take()), block_bytes};
}

FileRecord record_of_file(const std::filesystem::path& path, int64_t block_bytes) {
  const InputFile file(path);
  // Not mapped: an unreadable disk block is then an error here and not a SIGBUS, and the pages do
  // not count as this process's memory.
  std::vector<char> buffer(size_t{1} << 20);
  FileHasher hasher(block_bytes);
  for (int64_t at = 0; at < file.size();) {
    const auto count = std::min(file.size() - at, static_cast<int64_t>(buffer.size()));
    const auto part = std::span(buffer).first(static_cast<size_t>(count));
    file.read(at, part);
    hasher.update({part.data(), part.size()});
    at += count;
  }
  return hasher.finish();
}

std::string to_text(const Manifest& manifest) {
  Json files = Json::object();
  for (const auto& [name, record] : manifest.files) {
    files[name] = {{"size", record.size}, {"xxh3_128", record.xxh3_128}};
    if (record.block_bytes > 0) files[name]["block_bytes"] = record.block_bytes;
  }
  return seal({{"format", kFormatName},
               {"version", manifest.version},
               {"step", manifest.step},
               {"files", std::move(files)}});
}

Manifest read_manifest(const std::filesystem::path& folder) {
  const std::string name(kManifestName);
  if (const int64_t size = size_of_file(folder, name); size > kMaxManifestBytes) {
    throw CheckpointError("{} has {}, expected at most {}: it was altered", name,
                          counted(size, "byte"), kMaxManifestBytes);
  }
  const std::string text = read_small_file(folder / name, kMaxManifestBytes);
  const Json json = parse_json_or_throw<CheckpointError>(text, name + " is damaged");
  const JsonFields<CheckpointError> fields(json, name);
  if (fields.text("format") != kFormatName) {
    throw CheckpointError("{} is not a checkpoint's", name);
  }
  // Before anything else is understood: a later version may say the rest in another way.
  Manifest manifest;
  manifest.version = fields.integer("version", 1, kLargest);
  if (manifest.version > kCheckpointFormatVersion) {
    throw newer_format(manifest.version, is_sealed(json, text));
  }
  manifest.step = fields.integer("step", 0, kLargest);
  for (const auto& [file, record] : fields.object("files").items()) {
    if (!is_plain_name(file)) {
      throw CheckpointError("{} lists '{}', which is not a file of the folder", name,
                            printable(file));
    }
    const std::string place = fmt::format("{}: {}", name, printable(file));
    const JsonFields<CheckpointError> of_file(record, place);
    const bool blocks = manifest.version >= kBlocksVersion && of_file.has("block_bytes");
    manifest.files[file] = {
        of_file.integer("size", 0, kLargest), of_file.text("xxh3_128"),
        blocks ? of_file.integer("block_bytes", kLeastBlockBytes, kLargest) : 0};
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
      throw CheckpointError("{} has {}, expected {}: it was cut short or altered", name,
                            counted(size, "byte"), record.size);
    }
  }
}

void check_record(const std::string& name, const FileRecord& found, const Manifest& manifest) {
  const FileRecord& expected = manifest.files.at(name);
  if (found == expected) return;
  throw CheckpointError("{} was altered or torn: XXH3-128 {} ({}), expected {} ({})", name,
                        found.xxh3_128, counted(found.size, "byte"), expected.xxh3_128,
                        counted(expected.size, "byte"));
}

}  // namespace gradus
