#include "parallel/tensor_parallel.h"

namespace gradus {
namespace {

/// Sequence b of a (B, T, C) tensor, flat.
template <typename AnyTensor>
AnyTensor sequence(const AnyTensor& tensor, int64_t b) {
  return tensor.slice(0, b, 1).reshape({-1});
}

}  // namespace

void TensorParallel::gather(Executor& x, const Tensor& full, const ConstTensor& part) {
  if (!sequence_parallel_) return;
  PendingSet pending;
  for (int64_t b = 0; b < full.size(0); ++b) {
    pending.add(x, group_->all_gather(x, sequence(full, b), sequence(part, b)));
  }
  pending.wait(x);
}

PendingSet TensorParallel::gather_backward(Executor& x, const Tensor& dpart, const Tensor& dfull) {
  PendingSet pending;
  if (size() == 1) return pending;
  if (!sequence_parallel_) {
    pending.add(x, group_->all_reduce(x, dfull, dfull));
    return pending;
  }
  for (int64_t b = 0; b < dfull.size(0); ++b) {
    pending.add(x, group_->reduce_scatter(x, sequence(dpart, b), sequence(dfull, b)));
  }
  return pending;
}

void TensorParallel::reduce_scatter(Executor& x, const Tensor& part, const Tensor& full) {
  if (size() == 1) return;
  if (!sequence_parallel_) {
    group_->all_reduce(x, full, full).wait(x);
    return;
  }
  PendingSet pending;
  for (int64_t b = 0; b < full.size(0); ++b) {
    pending.add(x, group_->reduce_scatter(x, sequence(part, b), sequence(full, b)));
  }
  pending.wait(x);
}

void TensorParallel::reduce_scatter_backward(Executor& x, const Tensor& dfull,
                                             const ConstTensor& dpart) {
  gather(x, dfull, dpart);
}

void TensorParallel::broadcast(Executor& x, const Tensor& inout) {
  if (size() > 1) group_->broadcast(x, inout, 0).wait(x);
}

void TensorParallel::all_reduce(Executor& x, const Tensor& inout, ReduceOp op) {
  if (size() > 1) group_->all_reduce(x, inout, inout, op).wait(x);
}

}  // namespace gradus
