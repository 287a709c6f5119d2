#include "checkpoint/tensor_piece.h"

#include <fmt/format.h>

#include <algorithm>

namespace gradus {

std::vector<TensorPiece> pieces_of(const Parameter& parameter, int64_t first,
                                   const Tensor& values) {
  const ParamSpec& spec = parameter.spec;
  if (values.numel() == 0) return {};
  if (spec.cut != TpCut::columns) {
    // Whole rows: consecutive in the logical tensor too, up to where padding begins.
    const int64_t columns = spec.shape.numel() / spec.shape[0];
    const int64_t row = spec.cut == TpCut::rows ? parameter.row_begin : 0;
    const int64_t begin = row * columns + first;
    const int64_t count = std::min(values.numel(), spec.shape.numel() - begin);
    if (count <= 0) return {};
    return {TensorPiece::range(begin, values.slice(0, 0, count))};
  }
  const int64_t columns = parameter.value.size(1);
  std::vector<TensorPiece> pieces;
  for (int64_t begin = first; begin < first + values.numel();) {
    // The end of a row, then whole rows, then the beginning of one.
    const int64_t column = begin % columns;
    const int64_t left = first + values.numel() - begin;
    const int64_t rows = column == 0 && left >= columns ? left / columns : 1;
    const int64_t width = rows > 1 ? columns : std::min(left, columns - column);
    const Tensor part = values.slice(0, begin - first, rows * width).reshape({rows, width});
    pieces.push_back(TensorPiece::box({begin / columns, parameter.row_begin + column}, part));
    begin += rows * width;
  }
  return pieces;
}

std::string problem_of(const ConstTensorPiece& piece, const Shape& shape) {
  const ConstTensor& data = piece.data;
  if (!data.defined()) return "a piece of it is undefined";
  if (data.device() != Device::cpu) {
    return fmt::format("a piece of it lies on {}; copy it to the CPU first",
                       to_string(data.device()));
  }
  if (data.numel() == 0) return {};  // a rank whose share is padding only
  const bool range = data.rank() == 1 && shape.rank() != 1;
  if (!range && data.rank() != shape.rank()) {
    return fmt::format("a piece of shape {} is neither a box of it nor a range of its elements",
                       to_string(data.shape()));
  }
  for (int axis = 0; axis < data.rank(); ++axis) {
    const int64_t size = range ? shape.numel() : shape[axis];
    const int64_t begin = piece.begin[axis];
    if (begin < 0 || data.size(axis) < 0 || begin > size || data.size(axis) > size - begin) {
      return fmt::format("a piece covers [{}, {}) of {}, which has {} elements", begin,
                         begin + data.size(axis),
                         range ? std::string("its elements") : fmt::format("axis {}", axis), size);
    }
  }
  return {};
}

}  // namespace gradus
