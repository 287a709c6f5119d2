#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "checkpoint/output_file.h"
#include "checkpoint/tensor_piece.h"
#include "core/tensor.h"

namespace gradus {

/// A tensor of a file to be written. Shapes may have empty axes; scalars are (1).
struct TensorDeclaration {
  std::string name;
  DType dtype = DType::fp32;
  Shape shape;
};

/// Writes a safetensors file whose tensors are all declared at first, so that their parts can be
/// written in any order and by several ranks. Holds one small buffer, never a tensor. Tensors lie
/// in the order of their declarations but for the size of their elements, larger first: the format
/// allows no padding, and so each is aligned. Throws IoError when the file cannot be written,
/// CheckpointError for declarations or pieces that do not fit.
class SafetensorsWriter {
 public:
  using Metadata = std::map<std::string, std::string>;

  /// Creates the file, writes its header and claims its bytes on disk.
  static SafetensorsWriter create(const std::filesystem::path& path,
                                  std::span<const TensorDeclaration> tensors,
                                  const Metadata& metadata = {});
  /// Joins a file that another rank created from the same arguments; refuses one that differs.
  static SafetensorsWriter join(const std::filesystem::path& path,
                                std::span<const TensorDeclaration> tensors,
                                const Metadata& metadata = {});

  /// Writes a part of a tensor; its dtype is the declared one. Contiguous parts go to the file
  /// straight from where they lie.
  void write(std::string_view name, const ConstTensorPiece& piece);

  int64_t numel_declared() const;  ///< of all tensors
  int64_t numel_written() const;   ///< by this writer

  enum class Coverage : uint8_t {
    whole,   ///< this writer wrote every element
    slices,  ///< others wrote some of them
  };
  /// Puts the file on stable storage and closes it. Throws CheckpointError when an element was
  /// written twice or, under `whole`, not at all.
  void finish(Coverage coverage = Coverage::whole);

 private:
  struct Run {
    int64_t begin;
    int64_t end;
  };
  struct Entry {
    TensorDeclaration declaration;
    int64_t offset = 0;     ///< bytes, from the start of the file
    std::vector<Run> runs;  ///< elements written, in the order of writing
  };

  SafetensorsWriter(const std::filesystem::path& path, OutputFile::Open open,
                    std::span<const TensorDeclaration> tensors, const Metadata& metadata);
  /// Gives the entries their offsets; the header.
  std::string lay_out(const Metadata& metadata);
  void check_coverage(Entry& entry, Coverage coverage) const;
  void stage(int64_t offset, std::string_view bytes);
  void flush();

  OutputFile file_;
  std::vector<Entry> entries_;
  std::unordered_map<std::string, size_t> index_;
  int64_t size_ = 0;
  std::string staged_;  ///< bytes that belong at staged_offset_, not yet written
  int64_t staged_offset_ = 0;
};

/// Writes a whole file from tensors all of whose pieces are here.
void write_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                       const SafetensorsWriter::Metadata& metadata = {});

}  // namespace gradus
