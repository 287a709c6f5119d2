#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/dtype.h"
#include "core/rng.h"

namespace gradus::cuda {

/// out = residual + dropout(in + bias), as kernels/residual.h has it, where no layernorm follows
/// (layernorm.h has the fused pair). out, residual (N, C) in the residual dtype, in (N, C) and
/// bias (C, or null) in the activation dtype. Row n is position n mod T of sample n / T. out may
/// alias residual.
struct ResidualAdd {
  void* out = nullptr;
  const void* in = nullptr;
  const void* bias = nullptr;
  const void* residual = nullptr;
  int64_t rows = 0;
  int64_t channels = 0;
  int64_t positions = 1;  ///< T
  Dropout dropout = {};
  DType residual_dtype = DType::fp32;
  DType activation_dtype = DType::fp32;
};
void residual_forward(const ResidualAdd& a, cudaStream_t stream);

/// din = dropout'(dout), dbias (C, or null) += column sums of din before it is rounded. din in the
/// activation dtype, dout in the residual dtype; din may alias dout where they are equal. scratch:
/// column_sums_scratch(rows, channels) bytes, with dbias.
struct ResidualSplit {
  void* din = nullptr;
  float* dbias = nullptr;
  const void* dout = nullptr;
  int64_t rows = 0;
  int64_t channels = 0;
  int64_t positions = 1;  ///< T
  Dropout dropout = {};
  DType residual_dtype = DType::fp32;
  DType activation_dtype = DType::fp32;
  void* scratch = nullptr;
  int strips = 0;  ///< blocks down the rows; 0: chosen from the shape
};
void residual_backward(const ResidualSplit& a, cudaStream_t stream);

}  // namespace gradus::cuda
