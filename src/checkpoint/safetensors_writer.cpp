#include "checkpoint/safetensors_writer.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "checkpoint/safetensors_format.h"
#include "core/error.h"
#include "core/mapped_file.h"

namespace gradus {
namespace {

/// Runs below this are gathered before they are written.
constexpr size_t kStageBytes = size_t{1} << 20;

std::string quoted(const std::string& text) { return nlohmann::json(text).dump(); }

}  // namespace

SafetensorsWriter SafetensorsWriter::create(const std::filesystem::path& path,
                                            std::span<const TensorDeclaration> tensors,
                                            const Metadata& metadata) {
  return {path, OutputFile::Open::create, tensors, metadata};
}

SafetensorsWriter SafetensorsWriter::join(const std::filesystem::path& path,
                                          std::span<const TensorDeclaration> tensors,
                                          const Metadata& metadata) {
  return {path, OutputFile::Open::existing, tensors, metadata};
}

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path, OutputFile::Open open,
                                     std::span<const TensorDeclaration> tensors,
                                     const Metadata& metadata)
    : file_(path, open) {
  for (const TensorDeclaration& tensor : tensors) {
    if (tensor.name == kSafetensorsMetadataKey) {
      throw CheckpointError("{}: no tensor can be named '{}'", path.string(), tensor.name);
    }
    if (tensor.shape.rank() == 0) {
      throw CheckpointError("{}: tensor '{}' has no shape", path.string(), tensor.name);
    }
    entries_.push_back({tensor, 0, {}});
  }
  const std::string header = lay_out(metadata);
  if (open == OutputFile::Open::create) {
    file_.allocate(size_);
    file_.write(0, header);
    return;
  }
  const MappedFile existing(path);
  if (static_cast<int64_t>(existing.bytes().size()) != size_ ||
      !existing.bytes().starts_with(header)) {
    throw CheckpointError("{}: was laid out for other tensors; all ranks must declare the same",
                          path.string());
  }
}

std::string SafetensorsWriter::lay_out(const Metadata& metadata) {
  std::ranges::stable_sort(entries_, std::greater<>(),
                           [](const Entry& entry) { return size_of(entry.declaration.dtype); });
  std::string json = "{";
  int64_t end = 0;
  try {
    if (!metadata.empty()) {
      json += fmt::format("\"{}\":{}", kSafetensorsMetadataKey, nlohmann::json(metadata).dump());
    }
    for (Entry& entry : entries_) {
      const auto& [name, dtype, shape] = entry.declaration;
      if (!index_.emplace(name, index_.size()).second) {
        throw CheckpointError("{}: tensor '{}' is declared twice", file_.path().string(),
                              printable(name));
      }
      entry.offset = end;
      end += shape.numel() * size_of(dtype);
      json += fmt::format("{}{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                          json.size() > 1 ? "," : "", quoted(name), safetensors_name(dtype),
                          fmt::join(shape.sizes(), ","), entry.offset, end);
    }
  } catch (const nlohmann::json::exception& error) {
    throw CheckpointError("{}: a name is not valid UTF-8: {}", file_.path().string(), error.what());
  }
  json += "}";
  json.append((8 - json.size() % 8) % 8, ' ');
  if (static_cast<int64_t>(json.size()) > kMaxSafetensorsHeaderBytes) {
    throw CheckpointError("{}: a header of {} bytes is larger than the format's limit of {}",
                          file_.path().string(), json.size(), kMaxSafetensorsHeaderBytes);
  }

  const uint64_t length = json.size();
  std::string header(kSafetensorsPrefixBytes, '\0');
  std::memcpy(header.data(), &length, sizeof length);
  header += json;
  for (Entry& entry : entries_) entry.offset += static_cast<int64_t>(header.size());
  size_ = static_cast<int64_t>(header.size()) + end;
  return header;
}

void SafetensorsWriter::write(std::string_view name, const ConstTensorPiece& piece) {
  const auto found = index_.find(std::string(name));
  if (found == index_.end()) {
    throw CheckpointError("{}: tensor '{}' was not declared", file_.path().string(),
                          printable(name));
  }
  Entry& entry = entries_[found->second];
  const auto& [unused, dtype, shape] = entry.declaration;
  std::string problem = problem_of(piece, shape);
  if (problem.empty() && piece.data.dtype() != dtype) {
    problem = fmt::format("a piece of it is {}", to_string(piece.data.dtype()));
  }
  if (!problem.empty()) {
    throw CheckpointError("{}: tensor '{}' {} {}: {}", file_.path().string(), printable(name),
                          to_string(dtype), to_string(shape), problem);
  }

  const int64_t element = size_of(dtype);
  const char* data = reinterpret_cast<const char*>(piece.data.data());
  for_each_run(piece, shape, [&](int64_t logical, int64_t memory, int64_t count) {
    stage(entry.offset + logical * element,
          {data + memory * element, static_cast<size_t>(count * element)});
    if (!entry.runs.empty() && entry.runs.back().end == logical) {
      entry.runs.back().end += count;
    } else {
      entry.runs.push_back({logical, logical + count});
    }
  });
}

void SafetensorsWriter::stage(int64_t offset, std::string_view bytes) {
  const bool follows = offset == staged_offset_ + static_cast<int64_t>(staged_.size());
  if (!follows || staged_.size() + bytes.size() > kStageBytes) flush();
  if (bytes.size() >= kStageBytes) {
    file_.write(offset, bytes);
    return;
  }
  if (staged_.empty()) {
    staged_.reserve(kStageBytes);
    staged_offset_ = offset;
  }
  staged_ += bytes;
}

void SafetensorsWriter::flush() {
  file_.write(staged_offset_, staged_);
  staged_.clear();
}

int64_t SafetensorsWriter::numel_declared() const {
  int64_t count = 0;
  for (const Entry& entry : entries_) count += entry.declaration.shape.numel();
  return count;
}

int64_t SafetensorsWriter::numel_written() const {
  int64_t count = 0;
  for (const Entry& entry : entries_) {
    for (const Run& run : entry.runs) count += run.end - run.begin;
  }
  return count;
}

void SafetensorsWriter::check_coverage(Entry& entry, Coverage coverage) const {
  std::ranges::sort(entry.runs, {}, &Run::begin);
  int64_t covered = 0;
  bool hole = false;
  for (const Run& run : entry.runs) {
    if (run.begin < covered) {
      throw CheckpointError("{}: tensor '{}': element {} was written twice", file_.path().string(),
                            printable(entry.declaration.name), run.begin);
    }
    hole |= run.begin > covered;
    covered = run.end;
  }
  hole |= covered != entry.declaration.shape.numel();
  if (hole && coverage == Coverage::whole) {
    int64_t written = 0;
    for (const Run& run : entry.runs) written += run.end - run.begin;
    throw CheckpointError("{}: tensor '{}': {} of its {} elements were written",
                          file_.path().string(), printable(entry.declaration.name), written,
                          entry.declaration.shape.numel());
  }
}

void SafetensorsWriter::finish(Coverage coverage) {
  for (Entry& entry : entries_) check_coverage(entry, coverage);
  flush();
  file_.finish();
}

void write_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                       const SafetensorsWriter::Metadata& metadata) {
  std::vector<TensorDeclaration> declarations;
  declarations.reserve(tensors.size());
  for (const NamedTensor& tensor : tensors) {
    declarations.push_back({tensor.name, tensor.dtype, tensor.shape});
  }
  SafetensorsWriter writer = SafetensorsWriter::create(path, declarations, metadata);
  for (const NamedTensor& tensor : tensors) {
    for (const ConstTensorPiece& piece : tensor.pieces) writer.write(tensor.name, piece);
  }
  writer.finish();
}

}  // namespace gradus
