#pragma once

#include "core/executor.h"
#include "core/rng.h"
#include "core/tensor.h"

namespace gradus {

/// out[b, t] = weight[tokens[b, t] - first_row], or 0 where that row lies on another rank.
/// tokens i32 (B, T); weight (V_tp, C) in the parameter dtype; out (B, T, C) in the residual dtype.
/// Token ids are checked where the data enters, not here. Throws ShapeError.
void token_embedding_forward(Executor& x, Tensor out, ConstTensor tokens, ConstTensor weight,
                             int64_t first_row);
/// dweight += the rows of dout summed by token, in index order. dweight fp32 (fp64 for fp64).
void token_embedding_backward(Executor& x, Tensor dweight, ConstTensor dout, ConstTensor tokens,
                              int64_t first_row);

/// inout = dropout(inout + weight[first_position + t]). inout (B, T, C) in the residual dtype;
/// weight (context, C) in the parameter dtype, learned positions (GPT-2).
void position_embedding_forward(Executor& x, Tensor inout, ConstTensor weight,
                                int64_t first_position, const Dropout& dropout);
/// dinout = dropout'(dinout), in place; dweight[first_position + t] += its sum over b.
void position_embedding_backward(Executor& x, Tensor dinout, Tensor dweight, int64_t first_position,
                                 const Dropout& dropout);

}  // namespace gradus
