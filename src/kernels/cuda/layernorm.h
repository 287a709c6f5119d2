#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/dtype.h"
#include "core/rng.h"

namespace gradus::cuda {

/// How a kernel of rows is laid out over the device. 0: chosen from the shape.
struct RowPlan {
  int warps_per_row = 0;  ///< a team that shares a row, each thread some vectors of it
  int rows_per_block = 0;
  int blocks = 0;      ///< of the grid, at most; each takes rows in turn
  bool ahead = false;  ///< backward: read a row while the one before it is computed
};

/// The dropout and addition that come before a layernorm in a block (kernels/residual.h):
/// stream = residual + dropout(branch + bias), rounded to the residual dtype, and then
/// out = layernorm(stream). One kernel reads branch and residual once, instead of writing the
/// stream and reading it again.
struct ResidualForward {
  void* stream = nullptr;          ///< (N, C), residual dtype; may alias residual
  const void* branch = nullptr;    ///< (N, C), activation dtype
  const void* bias = nullptr;      ///< (C), activation dtype, or null
  const void* residual = nullptr;  ///< (N, C), residual dtype
  Dropout dropout = {};
  int64_t positions = 1;  ///< T: row n is position n mod T of sample n / T
};

/// out = (in - mean) * rstd * weight + bias over the last axis (arXiv:1607.06450), as
/// kernels/layernorm.h has it.
struct LayernormForward {
  void* out = nullptr;           ///< (N, C), activation dtype; may not alias in
  float* mean = nullptr;         ///< (N)
  float* rstd = nullptr;         ///< (N)
  const void* in = nullptr;      ///< (N, C), residual dtype
  const void* weight = nullptr;  ///< (C), activation dtype
  const void* bias = nullptr;    ///< (C), activation dtype, or null
  int64_t rows = 0;              ///< N
  int64_t channels = 0;          ///< C >= 1
  float epsilon = 1e-5f;
  DType residual_dtype = DType::fp32;
  DType activation_dtype = DType::fp32;
  RowPlan plan = {};
};
/// Asynchronous on the stream. fp32, bf16 or fp16 for both dtypes, or a 16-bit activation dtype
/// beside an fp32 stream. Throws ShapeError, CudaError.
void layernorm_forward(const LayernormForward& a, cudaStream_t stream);
/// `in` is not read: its place is taken by what r makes.
void residual_layernorm_forward(const ResidualForward& r, const LayernormForward& a,
                                cudaStream_t stream);

/// With x̂ = (in - mean) · rstd and g = dout · weight:
///   din += rstd · (g - mean(g) - x̂ · mean(g · x̂)), dweight += Σ dout · x̂, dbias += Σ dout.
struct LayernormBackward {
  void* din = nullptr;           ///< (N, C), residual dtype
  float* dweight = nullptr;      ///< (C)
  float* dbias = nullptr;        ///< (C), or null
  const void* dout = nullptr;    ///< (N, C), activation dtype
  const void* in = nullptr;      ///< (N, C), residual dtype
  const void* weight = nullptr;  ///< (C), activation dtype
  const float* mean = nullptr;   ///< (N)
  const float* rstd = nullptr;   ///< (N)
  int64_t rows = 0;
  int64_t channels = 0;
  DType residual_dtype = DType::fp32;
  DType activation_dtype = DType::fp32;
  void* scratch = nullptr;  ///< layernorm_backward_scratch() bytes, aligned to 16
  RowPlan plan = {};
};
/// Deterministic: a block adds its rows in order, and the blocks' sums are added in theirs.
void layernorm_backward(const LayernormBackward& a, cudaStream_t stream);

/// The gradient of the dropout and addition before it, from the stream's gradient that
/// layernorm_backward leaves in din: dbranch = dropout'(din), dbias += column sums of dbranch
/// before it is rounded.
struct ResidualBackward {
  void* dbranch = nullptr;  ///< (N, C), activation dtype
  float* dbias = nullptr;   ///< (C), or null
  Dropout dropout = {};
  int64_t positions = 1;
};
/// layernorm_backward and residual_backward in one pass: din is read and written once.
void residual_layernorm_backward(const ResidualBackward& r, const LayernormBackward& a,
                                 cudaStream_t stream);

/// Enough for either backward, whatever the plan.
int64_t layernorm_backward_scratch(int64_t rows, int64_t channels);

}  // namespace gradus::cuda
