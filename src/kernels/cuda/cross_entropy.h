#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/dtype.h"

namespace gradus::cuda {

/// Softmax cross-entropy over a vocabulary that may be cut over tensor-parallel ranks, in the steps
/// and with the conventions of kernels/cross_entropy.h (arXiv:1909.08053, section 3). Logits may be
/// fp32, bf16 or fp16; statistics are fp32, the loss fp64.

/// A chunk of rows of logits and what is known of their columns.
struct LogitRows {
  const void* logits = nullptr;  ///< (N, V_tp): columns [first_column, first_column + V_tp)
  DType dtype = DType::fp32;
  const int32_t* targets =
      nullptr;  ///< (N): an id below `vocabulary`, or -1 where none is asked for
  int64_t rows = 0;
  int64_t columns = 0;  ///< V_tp
  int64_t first_column = 0;
  int64_t vocabulary = 0;  ///< columns from here on are padding
};

/// row_max = max, row_sum = Σ exp(logit - row_max) over this rank's real columns; target_logit: 0
/// where it lies on another rank or is ignored. All (N). Reads the logits once (online softmax,
/// arXiv:1805.02867).
struct RowStatistics {
  float* row_max = nullptr;
  float* row_sum = nullptr;
  float* target_logit = nullptr;
};
void cross_entropy_statistics(const LogitRows& in, const RowStatistics& out, cudaStream_t stream);

/// row_sum *= exp(row_max - whole_max). All (N).
void cross_entropy_rescale(float* row_sum, const float* row_max, const float* whole_max,
                           int64_t rows, cudaStream_t stream);

/// lse (N) = row_max + log row_sum; loss_sum (1) fp64 += Σ over unmasked rows of lse -
/// target_logit, in an order that depends on N alone.
void cross_entropy_forward(double* loss_sum, float* lse, const RowStatistics& in,
                           const int32_t* targets, int64_t rows, cudaStream_t stream);

/// dlogits = scale · (softmax(logits) - onehot(target)), 0 on ignored rows and padded columns.
/// dlogits (N, V_tp) in a dtype of its own beside fp32 logits, else in theirs; may alias them when
/// the dtypes are equal.
void cross_entropy_backward(void* dlogits, DType dtype, const LogitRows& in, const float* lse,
                            double scale, cudaStream_t stream);

/// How the fused kernel keeps a row between its two looks at it.
struct FusedPlan {
  int threads = 0;         ///< of a block, which has a row; 0: the whole plan is chosen
  bool registers = false;  ///< eight vectors a thread in registers, where they have room
  int shared_bytes = 0;    ///< vectors beyond those in so much shared memory; others are read again
  int blocks = 0;  ///< not 0: so many blocks take rows in turn, each copying the next row to
                   ///< shared memory while it computes one, if two fit; instead of the above
};
/// Statistics and gradient of whole rows in one kernel, where the vocabulary is not cut: logits are
/// read once and, where dlogits aliases them, overwritten by their gradient.
/// cross_entropy_forward() makes lse and loss of the statistics. Throws ShapeError unless 16 bytes
/// at a time fit the rows: the steps one by one take any.
void cross_entropy_fused(void* dlogits, DType dtype, const LogitRows& in, const RowStatistics& out,
                         double scale, cudaStream_t stream, const FusedPlan& plan = {});

}  // namespace gradus::cuda
