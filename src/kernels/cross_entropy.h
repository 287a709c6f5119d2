#pragma once

#include "core/executor.h"
#include "core/tensor.h"

namespace gradus {

/// Target of a place whose prediction is not asked for.
inline constexpr int32_t kIgnoredTarget = -1;

/// Softmax cross-entropy over a vocabulary that may be cut over tensor-parallel ranks
/// (arXiv:1909.08053, section 3): three steps with a reduction over the ranks after the first.
/// logits (N, V_tp) in fp32 (fp64 for fp64): the columns [first_column, first_column + V_tp) of the
/// padded vocabulary, of which only those below `vocabulary` are real; padding gets no probability
/// and no gradient. targets i32 (N): an id below `vocabulary`, or kIgnoredTarget.

/// row_max = max, row_sum = Σ exp(logit - row_max), over this rank's columns (-inf and 0 where it
/// has none); target_logit = the target's logit, or 0 where it lies on another rank or is ignored.
/// All (N) in the logits' dtype.
void cross_entropy_statistics(Executor& x, Tensor row_max, Tensor row_sum, Tensor target_logit,
                              ConstTensor logits, ConstTensor targets, int64_t first_column,
                              int64_t vocabulary);
/// Between the two reductions over ranks: row_sum *= exp(row_max - whole_max), from a rank's own
/// maximum to that of the whole vocabulary. All (N) in the logits' dtype.
void cross_entropy_rescale(Executor& x, Tensor row_sum, ConstTensor row_max, ConstTensor whole_max);
/// From statistics over the whole vocabulary: lse (N) = row_max + log row_sum; loss_sum (1) fp64 +=
/// Σ over unmasked rows, in index order, of lse - target_logit. Nats.
void cross_entropy_forward(Executor& x, Tensor loss_sum, Tensor lse, ConstTensor row_max,
                           ConstTensor row_sum, ConstTensor target_logit, ConstTensor targets);
/// dlogits = scale · (softmax(logits) - onehot(target)), 0 on ignored rows and padded columns.
/// dlogits (N, V_tp) in the activation dtype; may alias logits when the dtypes are equal.
void cross_entropy_backward(Executor& x, Tensor dlogits, ConstTensor logits, ConstTensor lse,
                            ConstTensor targets, int64_t first_column, int64_t vocabulary,
                            double scale);

}  // namespace gradus
