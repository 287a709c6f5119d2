#include "checkpoint/tensor_piece.h"

#include <fmt/format.h>

namespace gradus {

TensorPiece piece_of(const Parameter& parameter, const Tensor& like_value) {
  TensorPiece piece = TensorPiece::whole(parameter.logical(like_value));
  if (parameter.spec.cut != TpCut::none) {
    piece.begin[parameter.spec.cut == TpCut::columns ? 1 : 0] = parameter.row_begin;
  }
  return piece;
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
