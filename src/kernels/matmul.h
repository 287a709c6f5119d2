#pragma once

#include "core/executor.h"
#include "core/tensor.h"

namespace gradus {

/// Linear layers: out = in · Wᵀ + bias over the last axis. in (…, K), weight (N, K), bias (N) or
/// undefined, out (…, N); leading axes are flattened to M rows. All contiguous but for row strides:
/// in and out may be column slices of a wider matrix. Products of bf16 are summed in fp32; out may
/// be fp32 where in and weight are bf16 (logits). Throws ShapeError.

/// out =. out may alias nothing.
void matmul_forward(Executor& x, Tensor out, ConstTensor in, ConstTensor weight, ConstTensor bias);
/// din = dout · W. din (…, K), dout (…, N).
void matmul_backward_input(Executor& x, Tensor din, ConstTensor dout, ConstTensor weight);
/// dweight += doutᵀ · in; dbias += column sums of dout (dbias may be undefined). dweight (N, K) and
/// dbias (N) are fp32 where dout and in are bf16.
void matmul_backward_weight(Executor& x, Tensor dweight, Tensor dbias, ConstTensor dout,
                            ConstTensor in);

/// Scratch bytes that the three need at most for M rows, on this processor.
int64_t matmul_scratch(const Executor& x, int64_t rows, int64_t in_features, int64_t out_features,
                       DType dtype);
/// Scratch bytes that are enough for matmul_forward() of any number of rows up to max_rows, as
/// generation has it: measured at a handful of row counts, whatever max_rows is.
int64_t matmul_forward_scratch(const Executor& x, int64_t max_rows, int64_t in_features,
                               int64_t out_features, DType dtype);

}  // namespace gradus
