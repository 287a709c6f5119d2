#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>

#include "core/error.h"

namespace gradus {

inline constexpr int64_t kCheckpointFormatVersion = 2;
inline constexpr std::string_view kManifestName = "manifest.json";

/// Size and content of a file.
struct FileRecord {
  int64_t size = 0;
  std::string xxh3_128;     ///< hexadecimal, as `xxhsum -H2` prints it
  int64_t block_bytes = 0;  ///< 0: the checksum is of the file; else of its blocks' checksums

  bool operator==(const FileRecord&) const = default;
};

FileRecord record_of(std::string_view bytes);

/// XXH3-128 of a block of a file.
struct BlockHash {
  uint64_t high = 0;
  uint64_t low = 0;

  bool operator==(const BlockHash&) const = default;
};
BlockHash hash_of_block(std::string_view bytes);
/// From the hashes of a file's blocks (the last may be shorter), by whomever they were made:
/// XXH3-128 of their hexadecimal digits, in lower case, a line each.
FileRecord record_of_blocks(int64_t size, int64_t block_bytes, std::span<const BlockHash> blocks);

/// Reads the file once, through a small buffer. Throws IoError.
FileRecord record_of_file(const std::filesystem::path& path, int64_t block_bytes = 0);

/// The list of a checkpoint's files, by which a torn or altered one is known. Its text ends with
/// its own checksum.
struct Manifest {
  int64_t version = kCheckpointFormatVersion;
  int64_t step = 0;
  std::map<std::string, FileRecord> files;  ///< by name within the folder, the manifest's excepted
};

std::string to_text(const Manifest& manifest);

/// A checkpoint of a format that this program does not know, and whole as far as it can tell.
class UnknownFormat : public CheckpointError {
 public:
  using CheckpointError::CheckpointError;
};

/// Reads FOLDER/manifest.json. Throws CheckpointError when it is missing or is not what to_text
/// writes, UnknownFormat when it comes from a newer format, IoError when it is there and cannot be
/// read; the message does not repeat the folder.
Manifest read_manifest(const std::filesystem::path& folder);

/// Throws CheckpointError when a file of the manifest is missing or has another size, IoError when
/// it cannot be opened.
void check_sizes(const std::filesystem::path& folder, const Manifest& manifest);
/// Throws CheckpointError when a file is not as the manifest says.
void check_record(const std::string& name, const FileRecord& found, const Manifest& manifest);

}  // namespace gradus
