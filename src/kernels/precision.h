#pragma once

#include "kernels/validate.h"

namespace gradus {

/// The dtypes that meet in a block: of the residual stream, and of activations and parameters,
/// which are one. fp64 and fp32 throughout, bf16 beside an fp32 residual stream (preset bf16), or
/// bf16 throughout (preset bf16_lean). Gradients of parameters, and statistics, are in
/// accumulator_of(residual).

/// Throws ShapeError unless residual and activation are such a pair.
inline void require_precision(const char* operation, const ConstTensor& residual,
                              const ConstTensor& activation) {
  const DType r = residual.dtype();
  const DType a = activation.dtype();
  const bool same = r == a && (r == DType::fp64 || r == DType::fp32 || r == DType::bf16);
  if (!same && !(r == DType::fp32 && a == DType::bf16)) {
    refuse_dtypes(operation, {residual, activation});
  }
}

/// Calls body(R{}, A{}) with the C++ types of the pair.
template <typename Body>
void dispatch_precision(const char* operation, const ConstTensor& residual,
                        const ConstTensor& activation, Body&& body) {
  require_precision(operation, residual, activation);
  if (residual.dtype() == DType::fp64) return body(double{}, double{});
  if (residual.dtype() == DType::bf16) return body(bf16{}, bf16{});
  if (activation.dtype() == DType::bf16) return body(float{}, bf16{});
  return body(float{}, float{});
}

}  // namespace gradus
