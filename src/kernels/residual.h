#pragma once

#include "core/executor.h"
#include "core/rng.h"
#include "core/tensor.h"

namespace gradus {

/// out = residual + dropout(in + bias). out, residual (B, T, C) in the residual dtype; in (B, T, C)
/// in the activation dtype; bias (C) in the parameter dtype, or undefined. out may alias residual.
/// Throws ShapeError.
void residual_forward(Executor& x, Tensor out, ConstTensor in, ConstTensor bias,
                      ConstTensor residual, const Dropout& dropout);
/// din = dropout'(dout), dbias += column sums of din before it is rounded (or undefined). The
/// gradient of `residual` is dout itself. din in the activation dtype, dout in the residual dtype,
/// dbias fp32 (fp64 for fp64). din may alias dout where the dtypes are equal.
void residual_backward(Executor& x, Tensor din, Tensor dbias, ConstTensor dout,
                       const Dropout& dropout);
/// Scratch bytes of residual_backward with dbias; dtype: of dout.
int64_t residual_scratch(const Executor& x, int64_t channels, DType dtype);

}  // namespace gradus
