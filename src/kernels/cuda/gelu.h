#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/dtype.h"

namespace gradus::cuda {

/// out = gelu(in + bias), with gelu(x) = 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))
/// (arXiv:1606.08415, section 2), NaN and infinities as kernels/gelu.h has them. in, out (N, F),
/// fp32, bf16 or fp16; bias (F) or null. The sum with the bias is rounded to no dtype. out may
/// alias in.
struct GeluForward {
  void* out = nullptr;
  const void* in = nullptr;
  const void* bias = nullptr;
  int64_t rows = 0;
  int64_t columns = 0;
  DType dtype = DType::fp32;
};
void gelu_forward(const GeluForward& a, cudaStream_t stream);

/// din = dout · gelu'(in + bias), dbias += the column sums of din before it is rounded. din may
/// alias dout. dbias null: not asked for, and no scratch needed; else column_sums_scratch(rows,
/// columns) bytes.
struct GeluBackward {
  void* din = nullptr;
  float* dbias = nullptr;
  const void* dout = nullptr;
  const void* in = nullptr;
  const void* bias = nullptr;
  int64_t rows = 0;
  int64_t columns = 0;
  DType dtype = DType::fp32;
  void* scratch = nullptr;
  int strips = 0;  ///< blocks down the rows; 0: chosen from the shape
};
void gelu_backward(const GeluBackward& a, cudaStream_t stream);

}  // namespace gradus::cuda
