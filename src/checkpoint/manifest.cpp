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

  // Not mapped: an unreadable disk block is then an error here and not a SIGBUS, and the pages do
  // not count as this process's memory.
  std::vector<char> buffer(size_t{1} << 20);
  FileHasher hasher(block_bytes);
  for (;;) {
    const ssize_t count = ::read(file.descriptor, buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail("read");
    if (count == 0) break;
    hasher.update({buffer.data(), static_cast<size_t>(count)});
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
    manifest.version = json.at("version").get<int64_t>();
    if (manifest.version > kCheckpointFormatVersion) {
      throw CheckpointError("format version {} is newer than this program's {}: use a newer Gradus",
                            manifest.version, kCheckpointFormatVersion);
    }
    manifest.step = json.at("step").get<int64_t>();
    for (const auto& [name, record] : json.at("files").items()) {
      if (!is_plain_name(name)) {
        throw CheckpointError("{} lists '{}', which is not a file of the folder", kManifestName,
                              printable(name));
      }
      const bool blocks = manifest.version >= kBlocksVersion && record.contains("block_bytes");
      const int64_t block_bytes = blocks ? record.at("block_bytes").get<int64_t>() : 0;
      if (blocks && block_bytes < kLeastBlockBytes) {
        throw CheckpointError("{} lists {} in blocks of {} bytes, expected {} at least",
                              kManifestName, name, block_bytes, kLeastBlockBytes);
      }
      manifest.files[name] = {record.at("size").get<int64_t>(),
                              record.at("xxh3_128").get<std::string>(), block_bytes};
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
