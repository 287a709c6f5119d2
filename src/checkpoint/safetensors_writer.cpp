#include "checkpoint/safetensors_writer.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace gradus {

void SafetensorsWriter::create(const SafetensorsLayout& layout) {
  OutputFile file(layout.path(), OutputFile::Open::create);
  file.allocate(layout.size());
  file.finish();
}

SafetensorsWriter::SafetensorsWriter(const SafetensorsLayout& layout, int64_t block_bytes)
    : layout_(layout),
      block_bytes_(block_bytes),
      file_(layout.path(), OutputFile::Open::existing) {}

BlockHash SafetensorsWriter::write(int64_t block, std::span<const FileRun> runs) {
  const int64_t begin = block * block_bytes_;
  const int64_t end = std::min(begin + block_bytes_, layout_.size());
  buffer_.resize(static_cast<size_t>(end - begin));
  within_.clear();
  for (const FileRun& run : runs) {
    const int64_t from = std::max(run.offset, begin);
    const int64_t to = std::min(run.end(), end);
    if (from >= to) continue;
    within_.push_back({from, run.bytes.substr(static_cast<size_t>(from - run.offset),
                                              static_cast<size_t>(to - from))});
  }
  require_whole(begin, end);
  for (const FileRun& run : within_) {
    std::memcpy(buffer_.data() + (run.offset - begin), run.bytes.data(), run.bytes.size());
  }
  const std::string_view bytes(buffer_.data(), buffer_.size());
  const BlockHash hash = hash_of_block(bytes);
  file_.write(begin, bytes);
  return hash;
}

void SafetensorsWriter::require_whole(int64_t begin, int64_t end) {
  std::ranges::sort(within_, {}, &FileRun::offset);
  int64_t covered = begin;
  const auto refuse = [&](int64_t offset, const char* what) {
    throw CheckpointError("{}: {} was {}", layout_.path().string(), layout_.place_of(offset), what);
  };
  for (const FileRun& run : within_) {
    if (run.offset < covered) refuse(run.offset, "given twice");
    if (run.offset > covered) refuse(covered, "given by nobody");
    covered = run.end();
  }
  if (covered < end) refuse(covered, "given by nobody");
}

int64_t blocks_of(int64_t size, int64_t block_bytes) {
  return (size + block_bytes - 1) / block_bytes;
}

std::span<const FileRun> runs_within(std::span<const FileRun> runs, int64_t begin, int64_t end) {
  // Runs do not overlap where they are right; where they do, a block's writer says so.
  auto first = std::ranges::upper_bound(runs, begin, {}, &FileRun::offset);
  while (first != runs.begin() && std::prev(first)->end() > begin) --first;
  const auto last = std::ranges::lower_bound(first, runs.end(), end, {}, &FileRun::offset);
  return {first, last};
}

FileRecord write_safetensors(const std::filesystem::path& path,
                             std::span<const NamedTensor> tensors,
                             const SafetensorsLayout::Metadata& metadata) {
  const SafetensorsLayout layout(path, tensors, metadata);
  const std::vector<FileRun> runs = layout.runs_of(tensors, true);
  SafetensorsWriter::create(layout);
  SafetensorsWriter writer(layout);
  std::vector<BlockHash> hashes;
  for (int64_t block = 0; block < blocks_of(layout.size(), kBlockBytes); ++block) {
    const int64_t begin = block * kBlockBytes;
    hashes.push_back(writer.write(block, runs_within(runs, begin, begin + kBlockBytes)));
  }
  writer.finish();
  return record_of_blocks(layout.size(), kBlockBytes, hashes);
}

}  // namespace gradus
