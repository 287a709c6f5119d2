#pragma once

#include "kernels/embedding.h"

/// The CPU's implementations; arguments were checked by kernels/embedding.cpp.
namespace gradus::cpu {

void token_embedding_forward(Executor& x, Tensor out, ConstTensor tokens, ConstTensor weight,
                             int64_t first_row);
void token_embedding_backward(Executor& x, Tensor dweight, ConstTensor dout, ConstTensor tokens,
                              int64_t first_row);
void position_embedding_forward(Executor& x, Tensor inout, ConstTensor weight,
                                int64_t first_position, const Dropout& dropout);
void position_embedding_backward(Executor& x, Tensor dinout, Tensor dweight, int64_t first_position,
                                 const Dropout& dropout);

}  // namespace gradus::cpu
