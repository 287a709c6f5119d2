#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <string>

#include "core/dtype.h"
#include "kernels/cuda/check.h"

namespace gradus::cuda {

[[noreturn]] inline void refuse_dtypes(const char* operation, DType first, DType second) {
  throw_shape_error(std::string(operation) + ": no CUDA kernel for " +
                    std::string(to_string(first)) + " with " + std::string(to_string(second)));
}

/// Calls body(T{}) with the type of fp32, bf16 or fp16.
template <typename Body>
void dispatch_float(const char* operation, DType dtype, Body&& body) {
  switch (dtype) {
    case DType::fp32:
      return body(float{});
    case DType::bf16:
      return body(__nv_bfloat16{});
    case DType::fp16:
      return body(__half{});
    default:
      refuse_dtypes(operation, dtype, dtype);
  }
}

/// Calls body(R{}, A{}) with the types of the residual stream and of activations: one of fp32, bf16
/// and fp16 for both, or a 16-bit type beside an fp32 stream.
template <typename Body>
void dispatch_precision(const char* operation, DType residual, DType activation, Body&& body) {
  if (residual == DType::fp32) {
    return dispatch_float(operation, activation, [&]<typename A>(A) { body(float{}, A{}); });
  }
  if (residual != activation) refuse_dtypes(operation, residual, activation);
  dispatch_float(operation, activation, [&]<typename A>(A) { body(A{}, A{}); });
}

}  // namespace gradus::cuda
