#pragma once

#include "kernels/layernorm.h"

/// The CPU's implementations; arguments were checked by kernels/layernorm.cpp.
namespace gradus::cpu {

void layernorm_forward(Executor& x, Tensor out, Tensor mean, Tensor rstd, ConstTensor in,
                       ConstTensor weight, ConstTensor bias, double epsilon);
void layernorm_backward(Executor& x, Tensor din, Tensor dweight, Tensor dbias, ConstTensor dout,
                        ConstTensor in, ConstTensor weight, ConstTensor mean, ConstTensor rstd);
int64_t layernorm_scratch(const Executor& x, int64_t channels, DType dtype);

}  // namespace gradus::cpu
