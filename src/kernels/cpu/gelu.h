#pragma once

#include "kernels/gelu.h"

/// The CPU's implementations; arguments were checked by kernels/gelu.cpp.
namespace gradus::cpu {

void gelu_forward(Executor& x, Tensor out, ConstTensor in);
void gelu_backward(Executor& x, Tensor din, ConstTensor dout, ConstTensor in);

}  // namespace gradus::cpu
