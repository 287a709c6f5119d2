#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/element_check.h"
#include "core/parameters.h"
#include "core/tensor.h"

namespace gradus {

/// A part of a logical tensor that lies in memory: a box of it (a view of any strides, with as many
/// axes as the tensor), or a range of its elements in row-major order (a view with one axis).
template <bool kConst>
struct BasicTensorPiece {
  std::array<int64_t, kMaxRank> begin{};  ///< the box's first index on each axis, or the range's
  BasicTensor<kConst> data;               ///< on the CPU; any dtype when reading

  static BasicTensorPiece whole(const BasicTensor<kConst>& data) { return {{}, data}; }
  static BasicTensorPiece box(std::initializer_list<int64_t> begin,
                              const BasicTensor<kConst>& data) {
    BasicTensorPiece piece{{}, data};
    std::copy_n(begin.begin(), std::min<size_t>(begin.size(), kMaxRank), piece.begin.begin());
    return piece;
  }
  static BasicTensorPiece range(int64_t begin, const BasicTensor<kConst>& data) {
    return {{begin}, data};
  }
};

using TensorPiece = BasicTensorPiece<false>;
using ConstTensorPiece = BasicTensorPiece<true>;

/// The logical part of elements [first, first + n) of a parameter's memory on this rank, which
/// `values` (n) holds: none where all of it is padding, else a range, or up to three boxes.
std::vector<TensorPiece> pieces_of(const Parameter& parameter, int64_t first, const Tensor& values);

/// A tensor to be written: what the file declares, and the parts of it that are here. The parts of
/// all ranks together cover it exactly.
struct NamedTensor {
  std::string name;
  DType dtype = DType::fp32;
  Shape shape;
  std::vector<ConstTensorPiece> pieces;
};

/// A logical tensor to be read, and where its parts go; other parts are left in the file.
struct TensorDestination {
  std::string name;
  Shape shape;
  std::vector<TensorPiece> pieces;
  Elements elements = Elements::any;  ///< what may be read into them
};

/// Empty when the piece lies within a logical tensor of that shape and its data is on the CPU, else
/// what is wrong with it.
std::string problem_of(const ConstTensorPiece& piece, const Shape& shape);

/// Calls body(logical, memory, count) for runs of elements that are consecutive both in the logical
/// tensor (row-major) and in memory: the first element of either (memory: in elements from data())
/// and how many. In the piece's row-major order; runs are as long as the strides allow. The piece
/// must have no problem_of().
template <typename Body>
void for_each_run(const ConstTensorPiece& piece, const Shape& shape, Body&& body) {
  const ConstTensor& data = piece.data;
  if (data.numel() == 0) return;
  const int rank = data.rank();
  // A range is a box of the flattened tensor.
  std::array<int64_t, kMaxRank> logical_size{};
  for (int axis = 0; axis < rank; ++axis) {
    logical_size[axis] = rank == shape.rank() ? shape[axis] : shape.numel();
  }
  std::array<int64_t, kMaxRank> logical_stride{};
  int64_t stride = 1;
  for (int axis = rank - 1; axis >= 0; --axis) {
    logical_stride[axis] = stride;
    stride *= logical_size[axis];
  }

  // Innermost axes join one run while each is dense in memory and, but for the outermost, whole.
  int inner = rank;
  int64_t run = 1;
  while (inner > 0 && (data.size(inner - 1) == 1 ||
                       (data.stride(inner - 1) == run && logical_stride[inner - 1] == run))) {
    --inner;
    run *= data.size(inner);
  }

  int64_t logical = 0;
  for (int axis = 0; axis < rank; ++axis) logical += piece.begin[axis] * logical_stride[axis];
  int64_t memory = 0;
  std::array<int64_t, kMaxRank> index{};
  for (;;) {
    body(logical, memory, run);
    int axis = inner - 1;
    for (; axis >= 0; --axis) {
      logical += logical_stride[axis];
      memory += data.stride(axis);
      if (++index[axis] < data.size(axis)) break;
      logical -= data.size(axis) * logical_stride[axis];
      memory -= data.size(axis) * data.stride(axis);
      index[axis] = 0;
    }
    if (axis < 0) return;
  }
}

}  // namespace gradus
