#include "parallel/tensor_parallel.h"

#include <cmath>
#include <cstring>

namespace gradus {
namespace {

/// Sequence b of a (B, T, C) tensor, flat.
template <typename AnyTensor>
AnyTensor sequence(const AnyTensor& tensor, int64_t b) {
  return tensor.slice(0, b, 1).reshape({-1});
}

template <typename S>
void rescale(const Tensor& row_sum, const ConstTensor& local_max, const ConstTensor& global_max) {
  S* sum = row_sum.as<S>();
  const S* local = local_max.as<S>();
  const S* global = global_max.as<S>();
  for (int64_t i = 0; i < row_sum.numel(); ++i) sum[i] *= std::exp(local[i] - global[i]);
}

}  // namespace

void TensorParallel::gather(Executor& x, const Tensor& full, const ConstTensor& part) {
  if (!sequence_parallel_) return;
  for (int64_t b = 0; b < full.size(0); ++b) {
    group_->all_gather(x, sequence(full, b), sequence(part, b)).wait(x);
  }
}

Pending TensorParallel::gather_backward(Executor& x, const Tensor& dpart, const Tensor& dfull) {
  if (size() == 1) return {};
  if (!sequence_parallel_) return group_->all_reduce(x, dfull, dfull);
  const int64_t last = dfull.size(0) - 1;
  for (int64_t b = 0; b < last; ++b) {
    group_->reduce_scatter(x, sequence(dpart, b), sequence(dfull, b)).wait(x);
  }
  return group_->reduce_scatter(x, sequence(dpart, last), sequence(dfull, last));
}

void TensorParallel::reduce_scatter(Executor& x, const Tensor& part, const Tensor& full) {
  if (size() == 1) return;
  if (!sequence_parallel_) {
    group_->all_reduce(x, full, full).wait(x);
    return;
  }
  for (int64_t b = 0; b < full.size(0); ++b) {
    group_->reduce_scatter(x, sequence(part, b), sequence(full, b)).wait(x);
  }
}

void TensorParallel::reduce_scatter_backward(Executor& x, const Tensor& dfull,
                                             const ConstTensor& dpart) {
  gather(x, dfull, dpart);
}

void TensorParallel::reduce_softmax_statistics(Executor& x, const Tensor& row_max,
                                               const Tensor& row_sum, const Tensor& target_logit) {
  if (size() == 1) return;
  Scratch scratch(x);
  const Tensor local_max(scratch.take<double>(row_max.numel()), row_max.dtype(), row_max.device(),
                         row_max.shape());
  std::memcpy(local_max.data(), row_max.data(), static_cast<size_t>(row_max.bytes()));
  group_->all_reduce(x, row_max, row_max, ReduceOp::max).wait(x);
  if (row_max.dtype() == DType::fp64) {
    rescale<double>(row_sum, local_max, row_max);
  } else {
    rescale<float>(row_sum, local_max, row_max);
  }
  group_->all_reduce(x, row_sum, row_sum).wait(x);
  group_->all_reduce(x, target_logit, target_logit).wait(x);
}

}  // namespace gradus
