#pragma once

#include <cstdint>

#include "checkpoint/tensor_piece.h"
#include "core/error.h"
#include "optim/optimizer.h"

namespace gradus {

/// An element of a contiguous fp64, fp32 or bf16 tensor.
inline double value_at(const ConstTensor& tensor, int64_t element) {
  switch (tensor.dtype()) {
    case DType::fp64:
      return tensor.as<double>()[element];
    case DType::fp32:
      return tensor.as<float>()[element];
    case DType::bf16:
      return static_cast<float>(tensor.as<bf16>()[element]);
    default:
      throw ShapeError("{} has no real values", describe(tensor));
  }
}

/// Calls body(logical element, value) for every logical element of a parameter that a rank's part
/// of it has; padding is left out. For comparing layouts with each other.
template <typename Body>
void for_each_held(const Parameter& parameter, const HeldPart& part, Body&& body) {
  for (const TensorPiece& piece : pieces_of(parameter, part.first, part.values)) {
    for_each_run({piece.begin, piece.data}, parameter.spec.shape,
                 [&](int64_t logical, int64_t memory, int64_t count) {
                   const ConstTensor flat(piece.data.data(), piece.data.dtype(), Device::cpu,
                                          {memory + count});
                   for (int64_t i = 0; i < count; ++i)
                     body(logical + i, value_at(flat, memory + i));
                 });
  }
}

}  // namespace gradus
