#include "parallel/data_parallel.h"

namespace gradus {

Pending DataParallel::sum_gradients(Executor& x, const Bucket& bucket) {
  if (size_ == 1) return {};
  if (sharding() == Sharding::none) return group_->all_reduce(x, bucket.grad, bucket.grad);
  const Tensor shard = bucket.grad.slice(0, bucket.shard.begin, bucket.shard.numel());
  return group_->reduce_scatter(x, shard, bucket.grad);
}

Pending DataParallel::gather_weights(Executor& x, const Bucket& bucket) {
  if (sharding() == Sharding::none) return {};
  const Tensor shard = bucket.value.slice(0, bucket.shard.begin, bucket.shard.numel());
  return group_->all_gather(x, bucket.value, shard);
}

void DataParallel::all_reduce(Executor& x, const Tensor& inout) {
  if (size_ > 1) group_->all_reduce(x, inout, inout).wait(x);
}

}  // namespace gradus
