#include "train/bucket_sync.h"

#include "kernels/elementwise.h"

namespace gradus {

BucketSync::BucketSync(TrainingModel& model)
    : model_(model),
      gradients_(model.parameters().buckets().size()),
      weights_(model.parameters().buckets().size()),
      summing_(model.parameters().buckets().size()) {}

void BucketSync::gradients_begin(int index) {
  if (model_.parameters().sharding() != Sharding::gradients) return;
  const Tensor& grad = bucket(at(index)).grad;
  // Another block's gradients may still be on their way out of the same memory.
  for (size_t other = 0; other < summing_.size(); ++other) {
    if (summing_[other] && bucket(other).grad.data() == grad.data()) finish(other);
  }
  fill(x(), grad, 0.0);
}

void BucketSync::gradients_ready(int index) {
  if (!last_micro_batch_ && model_.parameters().sharding() != Sharding::gradients) return;
  gradients_[at(index)] = model_.parallel().dp.sum_gradients(x(), bucket(at(index)));
  summing_[at(index)] = true;
}

void BucketSync::finish(size_t index) {
  gradients_[index].wait(x());
  summing_[index] = false;
  if (model_.parameters().sharding() != Sharding::gradients) return;
  const Bucket& b = bucket(index);
  add(x(), b.grad_shard, b.grad.slice(0, b.shard.begin, b.shard.numel()));
}

void BucketSync::finish_gradients() {
  for (size_t index = 0; index < summing_.size(); ++index) {
    if (summing_[index]) finish(index);
  }
  if (model_.parallel().tp.sequence_parallel()) sum_over_tensor_parallel();
  if (model_.gpt().options().model.tied_embeddings && bucket(0).holding != Holding::none) {
    model_.parallel().pp.sum_tied(x(), bucket(0).grad_shard);
  }
}

/// Under sequence parallelism each rank has seen its own tokens only, and parameters that are whole
/// on every rank (layernorms, biases behind row-parallel products, positions) have a part of their
/// gradient.
void BucketSync::sum_over_tensor_parallel() {
  for_each_uncut_part(model_.parameters(), [&](const Bucket& b, const ElementRange& mine) {
    model_.parallel().tp.all_reduce(
        x(), b.grad_shard.slice(0, mine.begin - b.shard.begin, mine.numel()));
  });
}

void BucketSync::gather_weights() {
  for (size_t index = 0; index < weights_.size(); ++index) {
    if (bucket(index).holding == Holding::none) continue;
    weights_[index] = model_.parallel().dp.gather_weights(x(), bucket(index));
  }
}

void BucketSync::wait_for_weights() {
  for (Pending& pending : weights_) pending.wait(x());
}

}  // namespace gradus
