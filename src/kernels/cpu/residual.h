#pragma once

#include "kernels/residual.h"

/// The CPU's implementations; arguments were checked by kernels/residual.cpp.
namespace gradus::cpu {

void residual_forward(Executor& x, Tensor out, ConstTensor in, ConstTensor bias,
                      ConstTensor residual, const Dropout& dropout);
void residual_backward(Executor& x, Tensor din, Tensor dbias, ConstTensor dout,
                       const Dropout& dropout);
int64_t residual_scratch(const Executor& x, int64_t channels, DType dtype);

}  // namespace gradus::cpu
