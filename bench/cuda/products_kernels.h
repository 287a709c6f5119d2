#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/matmul.h"

namespace gradus::bench {

/// What products_bench runs on the device beside the library: the reference, a fingerprint, and the
/// passes over memory that epilogues would save.

struct Samples {
  const int64_t* rows;  // of D, column-major as the library has it
  const int64_t* columns;
  double* want;       // op(A) · op(B), in fp64
  double* got;        // D
  double* auxiliary;  // the auxiliary matrix, where there is one
};
/// want, got and auxiliary of `count` places after the call has run.
void sample_product(const Samples& samples, int count, const cuda::CublasLtCall& call,
                    cudaStream_t stream);

/// *sum += a number for each 32-bit word and its place, so that any changed bit shows.
void fingerprint(unsigned long long* sum, const void* data, int64_t bytes, cudaStream_t stream);

/// Passes over bf16, eight elements a thread.
/// out = gelu(x).
void pass_gelu(void* out, const void* x, int64_t count, cudaStream_t stream);
/// x += bias, out = gelu(x).
void pass_bias_gelu(void* out, void* x, const void* bias, int64_t count, int64_t columns,
                    cudaStream_t stream);
/// d *= gelu'(x).
void pass_gelu_backward(void* d, const void* x, int64_t count, cudaStream_t stream);
/// sums (columns) += the column sums of in (rows, columns); partial: kColumnSumParts * columns.
inline constexpr int64_t kColumnSumParts = 256;
void pass_column_sums(float* sums, float* partial, const void* in, int64_t rows, int64_t columns,
                      cudaStream_t stream);

}  // namespace gradus::bench
