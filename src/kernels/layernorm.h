#pragma once

#include "core/executor.h"
#include "core/tensor.h"

namespace gradus {

inline constexpr double kLayernormEpsilon = 1e-5;

/// out = (in - mean) * rstd * weight + bias over the last axis (arXiv:1607.06450).
/// in (N, C) in the residual dtype, out (N, C) in the activation dtype; mean, rstd (N) fp32 (fp64
/// for fp64), kept for backward; weight (C), bias (C) or undefined, in the parameter dtype.
/// Statistics in fp32 (fp64 for fp64). out may not alias in. Leading axes are flattened to N.
/// Throws ShapeError.
void layernorm_forward(Executor& x, Tensor out, Tensor mean, Tensor rstd, ConstTensor in,
                       ConstTensor weight, ConstTensor bias, double epsilon = kLayernormEpsilon);
/// din += (the residual stream's gradient, in the residual dtype), dweight +=, dbias += (or
/// undefined), both fp32 (fp64 for fp64). dout in the activation dtype.
void layernorm_backward(Executor& x, Tensor din, Tensor dweight, Tensor dbias, ConstTensor dout,
                        ConstTensor in, ConstTensor weight, ConstTensor mean, ConstTensor rstd);
/// Scratch bytes of layernorm_backward; dtype: of in.
int64_t layernorm_scratch(const Executor& x, int64_t channels, DType dtype);

}  // namespace gradus
