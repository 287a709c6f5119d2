#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "checkpoint/tensor_piece.h"
#include "core/tensor.h"

namespace gradus {

/// Bytes of a file to be written, where they lie in memory.
struct FileRun {
  int64_t offset = 0;  ///< from the start of the file
  std::string_view bytes;

  int64_t end() const { return offset + static_cast<int64_t>(bytes.size()); }
};

/// Which bytes of a safetensors file are whose, before there is a file. Tensors lie in the order of
/// their declarations but for the size of their elements, larger first: the format allows no
/// padding, and so each is aligned.
class SafetensorsLayout {
 public:
  using Metadata = std::map<std::string, std::string>;

  /// Names, dtypes and shapes are laid out, whatever pieces are here. Shapes may have empty axes;
  /// scalars are (1). path: for messages. Throws CheckpointError.
  SafetensorsLayout(const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                    const Metadata& metadata = {});

  const std::filesystem::path& path() const { return path_; }
  int64_t size() const { return size_; }  ///< of the file
  const std::string& header() const { return header_; }

  /// Where the pieces of `tensors` (those of the constructor) go, by offset. with_header: the
  /// header too, which this object holds. Throws CheckpointError for a piece that does not fit.
  std::vector<FileRun> runs_of(std::span<const NamedTensor> tensors, bool with_header) const;

  /// "tensor 'w', element 5", or "the header".
  std::string place_of(int64_t offset) const;

 private:
  struct Entry {
    std::string name;
    DType dtype = DType::fp32;
    Shape shape;
    int64_t offset = 0;  ///< bytes, from the start of the file
  };

  void make_header(const Metadata& metadata);
  void append_runs(const Entry& entry, const ConstTensorPiece& piece,
                   std::vector<FileRun>& runs) const;

  std::filesystem::path path_;
  std::vector<Entry> entries_;  // by offset
  std::unordered_map<std::string, size_t> index_;
  std::string header_;
  int64_t size_ = 0;
};

}  // namespace gradus
