#include "checkpoint/safetensors_layout.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "checkpoint/safetensors_format.h"
#include "core/error.h"
#include "core/printable_text.h"

namespace gradus {
namespace {

std::string json_string(const std::string& text) { return nlohmann::json(text).dump(); }

}  // namespace

SafetensorsLayout::SafetensorsLayout(const std::filesystem::path& path,
                                     std::span<const NamedTensor> tensors, const Metadata& metadata)
    : path_(path) {
  for (const NamedTensor& tensor : tensors) {
    if (tensor.name == kSafetensorsMetadataKey) {
      throw CheckpointError("{}: no tensor can be named '{}'", path_.string(), tensor.name);
    }
    if (tensor.shape.rank() == 0) {
      throw CheckpointError("{}: tensor '{}' has no shape", path_.string(), tensor.name);
    }
    entries_.push_back({tensor.name, tensor.dtype, tensor.shape});
  }
  std::ranges::stable_sort(entries_, std::greater<>(),
                           [](const Entry& entry) { return size_of(entry.dtype); });
  make_header(metadata);
}

void SafetensorsLayout::make_header(const Metadata& metadata) {
  std::string json = "{";
  int64_t end = 0;
  try {
    if (!metadata.empty()) {
      json += fmt::format("\"{}\":{}", kSafetensorsMetadataKey, nlohmann::json(metadata).dump());
    }
    for (Entry& entry : entries_) {
      if (!index_.emplace(entry.name, index_.size()).second) {
        throw CheckpointError("{}: tensor '{}' is declared twice", path_.string(),
                              printable(entry.name));
      }
      entry.offset = end;
      end += entry.shape.numel() * size_of(entry.dtype);
      json += fmt::format("{}{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                          json.size() > 1 ? "," : "", json_string(entry.name),
                          safetensors_name(entry.dtype), fmt::join(entry.shape.sizes(), ","),
                          entry.offset, end);
    }
  } catch (const nlohmann::json::exception& error) {
    throw CheckpointError("{}: a name is not valid UTF-8: {}", path_.string(), error.what());
  }
  json += "}";
  json.append((8 - json.size() % 8) % 8, ' ');
  if (static_cast<int64_t>(json.size()) > kMaxSafetensorsHeaderBytes) {
    throw CheckpointError("{}: a header of {} bytes is larger than the format's limit of {}",
                          path_.string(), json.size(), kMaxSafetensorsHeaderBytes);
  }

  const uint64_t length = json.size();
  header_.assign(kSafetensorsPrefixBytes, '\0');
  std::memcpy(header_.data(), &length, sizeof length);
  header_ += json;
  for (Entry& entry : entries_) entry.offset += static_cast<int64_t>(header_.size());
  size_ = static_cast<int64_t>(header_.size()) + end;
}

std::vector<FileRun> SafetensorsLayout::runs_of(std::span<const NamedTensor> tensors,
                                                bool with_header) const {
  std::vector<FileRun> runs;
  if (with_header) runs.push_back({0, header_});
  for (const NamedTensor& tensor : tensors) {
    const Entry& entry = entries_[index_.at(tensor.name)];
    for (const ConstTensorPiece& piece : tensor.pieces) append_runs(entry, piece, runs);
  }
  std::ranges::sort(runs, {}, &FileRun::offset);
  return runs;
}

void SafetensorsLayout::append_runs(const Entry& entry, const ConstTensorPiece& piece,
                                    std::vector<FileRun>& runs) const {
  std::string problem = problem_of(piece, entry.shape);
  if (problem.empty() && piece.data.dtype() != entry.dtype) {
    problem = fmt::format("a piece of it is {}", to_string(piece.data.dtype()));
  }
  if (!problem.empty()) {
    throw CheckpointError("{}: tensor '{}' {} {}: {}", path_.string(), printable(entry.name),
                          to_string(entry.dtype), to_string(entry.shape), problem);
  }
  const int64_t element = size_of(entry.dtype);
  const char* data = reinterpret_cast<const char*>(piece.data.data());
  for_each_run(piece, entry.shape, [&](int64_t logical, int64_t memory, int64_t count) {
    runs.push_back({entry.offset + logical * element,
                    {data + memory * element, static_cast<size_t>(count * element)}});
  });
}

std::string SafetensorsLayout::place_of(int64_t offset) const {
  // Of an empty tensor and one at the same place the later has the bytes.
  const auto after = std::ranges::upper_bound(entries_, offset, {}, &Entry::offset);
  if (after == entries_.begin()) return "the header";
  const Entry& entry = *std::prev(after);
  return fmt::format("tensor '{}', element {}", printable(entry.name),
                     (offset - entry.offset) / size_of(entry.dtype));
}

}  // namespace gradus
