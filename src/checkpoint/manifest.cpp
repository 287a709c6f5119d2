#include "checkpoint/manifest.h"

#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "checkpoint/safetensors_format.h"
#include "core/error.h"
#include "core/mapped_file.h"

namespace gradus {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kFormatName = "gradus checkpoint";

std::string hex(const XXH128_hash_t& hash) {
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

/// The text without its checksum, and with it.
std::string seal(Json manifest) {
  manifest["xxh3_128"] = record_of(manifest.dump(2)).xxh3_128;
  return manifest.dump(2) + "\n";
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
  const auto fail = [&](const char* action) {
    throw IoError("{}: cannot {}: {}", path.string(), action, std::strerror(errno));
  };
  struct File {
    explicit File(const std::filesystem::path& p)
        : descriptor(::open(p.c_str(), O_RDONLY | O_CLOEXEC)) {}
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    ~File() {
      if (descriptor >= 0) ::close(descriptor);
    }
    int descriptor;
  };
  const File file(path);
  if (file.descriptor < 0) fail("open");

  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(),
                                                                              XXH3_freeState);
  if (state == nullptr) throw std::bad_alloc();
  XXH3_128bits_reset(state.get());
  // Not mapped: an unreadable disk block is then an error here and not a SIGBUS, and the pages do
  // not count as this process's memory.
  std::vector<char> buffer(size_t{1} << 20);
  FileRecord record;
  for (;;) {
    const ssize_t count = ::read(file.descriptor, buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail("read");
    if (count == 0) break;
    XXH3_128bits_update(state.get(), buffer.data(), static_cast<size_t>(count));
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
  std::string text;
  try {
    text = MappedFile(folder / kManifestName).bytes();
  } catch (const IoError&) {
    throw CheckpointError("{} is missing or unreadable: not a checkpoint, or an unfinished one",
                          kManifestName);
  }
  Manifest manifest;
  try {
    const Json json = Json::parse(text);
    if (json.at("format").get_ref<const std::string&>() != kFormatName) {
      throw CheckpointError("{} is not a checkpoint's", kManifestName);
    }
    // Before anything else is understood: a later version may say the rest in another way.
    if (const auto version = json.at("version").get<int64_t>();
        version > kCheckpointFormatVersion) {
      throw CheckpointError("format version {} is newer than this program's {}: use a newer Gradus",
                            version, kCheckpointFormatVersion);
    }
    manifest.step = json.at("step").get<int64_t>();
    for (const auto& [name, record] : json.at("files").items()) {
      if (!is_plain_name(name)) {
        throw CheckpointError("{} lists '{}', which is not a file of the folder", kManifestName,
                              printable(name));
      }
      manifest.files[name] = {record.at("size").get<int64_t>(),
                              record.at("xxh3_128").get<std::string>()};
    }
  } catch (const Json::exception& error) {
    throw CheckpointError("{} is damaged: {}", kManifestName, printable(error.what()));
  }
  if (to_text(manifest) != text) {
    throw CheckpointError("{} was altered: its own checksum does not match", kManifestName);
  }
  return manifest;
}

void check_sizes(const std::filesystem::path& folder, const Manifest& manifest) {
  for (const auto& [name, record] : manifest.files) {
    std::error_code error;
    const auto size = std::filesystem::file_size(folder / name, error);
    if (error) throw CheckpointError("{} is missing: {}", name, error.message());
    if (static_cast<int64_t>(size) != record.size) {
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
