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
#include "core/input_file.h"
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

/// A safetensors file. Everything that the format demands of the header is checked when it is
/// opened; the tensors' bytes are read when they are asked for, by calls, so that a file that is
/// cut short meanwhile is an error.
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
  /// Fills out with the tensor's bytes from `offset` on. Throws IoError.
  void read(const SafetensorsEntry& entry, int64_t offset, std::span<std::byte> out) const;
  /// All of them.
  std::vector<std::byte> bytes(const SafetensorsEntry& entry) const;
  /// The whole tensor, in memory that the file object keeps; a scalar has shape (1). Throws
  /// IoError; CheckpointError when there is none of that name, or it has a type, rank or alignment
  /// that a Tensor cannot have (files written here are always aligned).
  ConstTensor tensor(std::string_view name) const;

 private:
  explicit SafetensorsFile(InputFile file) : file_(std::move(file)) {}
  void parse_header();

  InputFile file_;
  mutable std::unordered_map<std::string, std::vector<std::byte>> kept_;  // by tensor()
  std::vector<SafetensorsEntry> entries_;
  std::unordered_map<std::string, size_t> index_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace gradus
