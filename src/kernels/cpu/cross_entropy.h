#pragma once

#include "kernels/cross_entropy.h"

/// The CPU's implementations; arguments were checked by kernels/cross_entropy.cpp.
namespace gradus::cpu {

void cross_entropy_statistics(Executor& x, Tensor row_max, Tensor row_sum, Tensor target_logit,
                              ConstTensor logits, ConstTensor targets, int64_t first_column,
                              int64_t vocabulary);
void cross_entropy_rescale(Executor& x, Tensor row_sum, ConstTensor row_max, ConstTensor whole_max);
void cross_entropy_forward(Executor& x, Tensor loss_sum, Tensor lse, ConstTensor row_max,
                           ConstTensor row_sum, ConstTensor target_logit, ConstTensor targets);
void cross_entropy_backward(Executor& x, Tensor dlogits, ConstTensor logits, ConstTensor lse,
                            ConstTensor targets, int64_t first_column, int64_t vocabulary,
                            double scale);

}  // namespace gradus::cpu
