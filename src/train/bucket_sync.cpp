#include "train/bucket_sync.h"

#include "kernels/elementwise.h"

namespace gradus {
namespace {

// Of gradients, and of weights: a process's communicators have room for 1024 operations together
// (MpiEngine::kSlots).
constexpr size_t kMostUnderWay = 256;

}  // namespace

BucketSync::BucketSync(TrainingModel& model)
    : model_(model),
      gradients_(model.parameters().buckets().size()),
      weights_(model.parameters().buckets().size()),
      summing_(model.parameters().buckets().size()) {}

void BucketSync::acquire(int index) { weights_[at(index)].wait(x()); }

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
  // Backward comes from the last bucket.
  if (at(index) + kMostUnderWay < gradients_.size())
    gradients_[at(index) + kMostUnderWay].wait(x());
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
  if (model_.parallel().tp.size() > 1) agree_on_what_is_not_cut();
  if (model_.gpt().options().model.tied_embeddings && bucket(0).holding != Holding::none) {
    model_.parallel().pp.sum_tied(x(), bucket(0).grad_shard);
  }
}

/// Parameters that are whole on every rank of tensor parallelism: layernorms, biases behind
/// row-parallel products, positions. Under sequence parallelism each rank has seen its own tokens
/// only, and has a part of their gradients. Without it all have the same but for its last bits,
/// which may follow the number of threads and the processor: one rank's count, or the weights would
/// drift apart.
void BucketSync::agree_on_what_is_not_cut() {
  TensorParallel& tp = model_.parallel().tp;
  for_each_uncut_part(model_.parameters(), [&](const Bucket& b, const ElementRange& mine) {
    const Tensor grad = b.grad_shard.slice(0, mine.begin - b.shard.begin, mine.numel());
    tp.sequence_parallel() ? tp.all_reduce(x(), grad) : tp.broadcast(x(), grad);
  });
}

void BucketSync::gather_weights() {
  for (size_t index = 0; index < weights_.size(); ++index) {
    if (bucket(index).holding == Holding::none) continue;
    if (index >= kMostUnderWay) weights_[index - kMostUnderWay].wait(x());
    weights_[index] = model_.parallel().dp.gather_weights(x(), bucket(index));
  }
}

void BucketSync::wait_for_weights() {
  for (Pending& pending : weights_) pending.wait(x());
}

}  // namespace gradus
