#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>
#include <vector>

#include "checkpoint/manifest.h"
#include "checkpoint/output_file.h"
#include "checkpoint/safetensors_layout.h"

namespace gradus {

/// The size of the blocks that a file of tensors is written in. A multiple of every page size: what
/// writes back a page writes back one rank's bytes.
inline constexpr int64_t kBlockBytes = int64_t{1} << 20;

/// Writes a safetensors file block by block, in any order, each from the runs that make it up; and
/// the blocks' hashes, from memory. A file has one writer or several, each for other blocks. Throws
/// IoError, and CheckpointError for runs that do not make up the block.
class SafetensorsWriter {
 public:
  /// Makes the file, claims its bytes on disk, so that a full one shows before any work, and puts
  /// that on stable storage: nothing of it is written back over what comes later. Before writers.
  static void create(const SafetensorsLayout& layout);

  /// For a file that create() has made, perhaps on another machine. layout must outlive this.
  explicit SafetensorsWriter(const SafetensorsLayout& layout, int64_t block_bytes = kBlockBytes);

  /// Runs may reach beyond the block's ends: what lies within counts. Of any order.
  BlockHash write(int64_t block, std::span<const FileRun> runs);
  /// Puts what was written on stable storage and closes.
  void finish() { file_.finish(); }

 private:
  void require_whole(int64_t begin, int64_t end);

  const SafetensorsLayout& layout_;
  int64_t block_bytes_;
  OutputFile file_;
  std::vector<char> buffer_;     // the block
  std::vector<FileRun> within_;  // what the runs have of it
};

/// How many blocks a file of `size` bytes has.
int64_t blocks_of(int64_t size, int64_t block_bytes);

/// The runs, which are sorted, that reach into [begin, end).
std::span<const FileRun> runs_within(std::span<const FileRun> runs, int64_t begin, int64_t end);

/// Writes a whole file from tensors all of whose pieces are here, and puts it on stable storage.
FileRecord write_safetensors(const std::filesystem::path& path,
                             std::span<const NamedTensor> tensors,
                             const SafetensorsLayout::Metadata& metadata = {});

}  // namespace gradus
