#include "kernels/cross_entropy.h"

#include "kernels/cpu/cross_entropy.h"
#include "kernels/validate.h"

namespace gradus {
namespace {

/// logits (N, V_tp) in fp32 or fp64, targets i32 (N), and where the columns lie.
void require_logits(const char* operation, const Executor& x, const ConstTensor& logits,
                    const ConstTensor& targets, int64_t first_column, int64_t vocabulary) {
  require_contiguous(operation, x, {{"logits", logits}, {"targets", targets}});
  if (logits.rank() != 2 || (logits.dtype() != DType::fp32 && logits.dtype() != DType::fp64)) {
    throw ShapeError("{}: logits is {}, expected fp32 or fp64 (N, V_tp)", operation,
                     describe(logits));
  }
  require_shape(operation, "targets", targets, {logits.size(0)});
  require_dtype(operation, "targets", targets, DType::i32);
  if (first_column < 0 || vocabulary < 1) {
    throw ShapeError("{}: first_column {} and vocabulary {} are no part of a vocabulary", operation,
                     first_column, vocabulary);
  }
}

void require_statistic(const char* operation, const char* argument, const Executor& x,
                       const ConstTensor& statistic, int64_t rows, DType dtype) {
  require_contiguous(operation, x, {{argument, statistic}});
  require_shape(operation, argument, statistic, {rows});
  require_dtype(operation, argument, statistic, dtype);
}

}  // namespace

void cross_entropy_statistics(Executor& x, Tensor row_max, Tensor row_sum, Tensor target_logit,
                              ConstTensor logits, ConstTensor targets, int64_t first_column,
                              int64_t vocabulary) {
  constexpr const char* kName = "cross_entropy_statistics";
  require_logits(kName, x, logits, targets, first_column, vocabulary);
  const int64_t rows = logits.size(0);
  require_statistic(kName, "row_max", x, row_max, rows, logits.dtype());
  require_statistic(kName, "row_sum", x, row_sum, rows, logits.dtype());
  require_statistic(kName, "target_logit", x, target_logit, rows, logits.dtype());
  cpu::cross_entropy_statistics(x, row_max, row_sum, target_logit, logits, targets, first_column,
                                vocabulary);
  // row_max is -inf where a rank holds padding alone, so only the others are worth a check.
  x.completed(kName, {row_sum, target_logit});
}

void cross_entropy_rescale(Executor& x, Tensor row_sum, ConstTensor row_max,
                           ConstTensor whole_max) {
  constexpr const char* kName = "cross_entropy_rescale";
  require_contiguous(kName, x, {{"row_sum", row_sum}});
  if (row_sum.dtype() != DType::fp32 && row_sum.dtype() != DType::fp64) {
    refuse_dtypes(kName, {row_sum});
  }
  const int64_t rows = row_sum.size(0);
  require_statistic(kName, "row_max", x, row_max, rows, row_sum.dtype());
  require_statistic(kName, "whole_max", x, whole_max, rows, row_sum.dtype());
  cpu::cross_entropy_rescale(x, row_sum, row_max, whole_max);
  x.completed(kName, {row_sum});
}

void cross_entropy_forward(Executor& x, Tensor loss_sum, Tensor lse, ConstTensor row_max,
                           ConstTensor row_sum, ConstTensor target_logit, ConstTensor targets) {
  constexpr const char* kName = "cross_entropy_forward";
  require_contiguous(kName, x, {{"loss_sum", loss_sum}, {"lse", lse}, {"targets", targets}});
  require_shape(kName, "loss_sum", loss_sum, {1});
  require_dtype(kName, "loss_sum", loss_sum, DType::fp64);
  if (lse.rank() != 1 || (lse.dtype() != DType::fp32 && lse.dtype() != DType::fp64)) {
    throw ShapeError("{}: lse is {}, expected fp32 or fp64 (N)", kName, describe(lse));
  }
  const int64_t rows = lse.size(0);
  require_statistic(kName, "row_max", x, row_max, rows, lse.dtype());
  require_statistic(kName, "row_sum", x, row_sum, rows, lse.dtype());
  require_statistic(kName, "target_logit", x, target_logit, rows, lse.dtype());
  require_statistic(kName, "targets", x, targets, rows, DType::i32);
  cpu::cross_entropy_forward(x, loss_sum, lse, row_max, row_sum, target_logit, targets);
  x.completed(kName, {loss_sum, lse});
}

void cross_entropy_backward(Executor& x, Tensor dlogits, ConstTensor logits, ConstTensor lse,
                            ConstTensor targets, int64_t first_column, int64_t vocabulary,
                            double scale) {
  constexpr const char* kName = "cross_entropy_backward";
  require_logits(kName, x, logits, targets, first_column, vocabulary);
  require_contiguous(kName, x, {{"dlogits", dlogits}});
  require_shape(kName, "dlogits", dlogits, logits.shape());
  require_statistic(kName, "lse", x, lse, logits.size(0), logits.dtype());
  const bool narrowed = dlogits.dtype() == DType::bf16 && logits.dtype() == DType::fp32;
  if (dlogits.dtype() != logits.dtype() && !narrowed) refuse_dtypes(kName, {dlogits, logits});
  if (dlogits.data() == logits.data() && narrowed && logits.numel() > 0) {
    throw ShapeError("{}: {} may share the memory of {} only where their dtypes are equal", kName,
                     describe(dlogits), describe(logits));
  }
  cpu::cross_entropy_backward(x, dlogits, logits, lse, targets, first_column, vocabulary, scale);
  x.completed(kName, {dlogits});
}

}  // namespace gradus
