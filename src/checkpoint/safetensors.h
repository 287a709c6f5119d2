#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "checkpoint/safetensors_format.h"
#include "core/mapped_file.h"
#include "core/tensor.h"

namespace gradus {

/// What a safetensors file says of one tensor.
struct SafetensorsEntry {
  std::string name;
  const SafetensorsDType* type = nullptr;
  std::vector<int64_t> shape;  ///< of any rank; empty for a scalar
  int64_t begin = 0;           ///< bytes, from the start of the file
  int64_t end = 0;

  int64_t numel() const;
};

/// A safetensors file, memory-mapped. Everything that the format demands of the header is checked
/// when it is opened, so that views of its tensors cannot leave the file; the tensors' bytes are
/// read when they are used.
class SafetensorsFile {
 public:
  /// Throws IoError when the file cannot be read, CheckpointError (file, tensor, what was found and
  /// what was expected) when it breaks the format.
  static SafetensorsFile open(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_.path(); }
  /// In the order of their bytes.
  std::span<const SafetensorsEntry> entries() const { return entries_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// Null when there is none of that name.
  const SafetensorsEntry* find(std::string_view name) const;
  /// Valid as long as the file object. Not necessarily aligned to the element type.
  std::span<const std::byte> bytes(const SafetensorsEntry& entry) const;
  /// A view of the mapping, valid as long as the file object; a scalar has shape (1). Throws
  /// CheckpointError when there is none of that name, or it has a type, rank or alignment that a
  /// Tensor cannot have (files written here are always aligned).
  ConstTensor tensor(std::string_view name) const;

  /// Takes the tensor's pages out of this process again, so that reading a large file does not
  /// show as memory in use.
  void drop_pages(const SafetensorsEntry& entry) const;

 private:
  explicit SafetensorsFile(MappedFile file) : file_(std::move(file)) {}
  void parse_header();

  MappedFile file_;
  std::vector<SafetensorsEntry> entries_;
  std::unordered_map<std::string, size_t> index_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace gradus
