#pragma once

#include <string>

#include "kernels/matmul.h"

/// The CPU's implementations; arguments were checked by kernels/matmul.cpp.
namespace gradus::cpu {

void matmul_forward(Executor& x, Tensor out, ConstTensor in, ConstTensor weight, ConstTensor bias);
void matmul_backward_input(Executor& x, Tensor din, ConstTensor dout, ConstTensor weight);
void matmul_backward_weight(Executor& x, Tensor dweight, Tensor dbias, ConstTensor dout,
                            ConstTensor in);
int64_t matmul_scratch(const Executor& x, int64_t rows, int64_t in_features, int64_t out_features,
                       DType dtype);
int64_t matmul_forward_scratch(const Executor& x, int64_t max_rows, int64_t in_features,
                               int64_t out_features, DType dtype);

/// What multiplies matrices of a dtype on this processor, for `gradus info`: for example
/// "packed product (AVX2), fp32 arithmetic" or "oneDNN 2.6.3 (AVX-512)".
std::string matmul_implementation(DType dtype);

}  // namespace gradus::cpu
