#pragma once

#include <vector>

#include "model/layer_hooks.h"
#include "train/training_model.h"

namespace gradus {

/// Calls body(bucket, range) for what tensor parallelism does not cut of each bucket, as far as
/// this replica's shard has it.
template <typename Body>
void for_each_uncut_part(const Parameters& parameters, Body&& body) {
  for (const Bucket& bucket : parameters.buckets()) {
    for (const BucketSection& section : bucket.sections) {
      const ElementRange mine = section.range.intersect(bucket.shard);
      if (section.replicated && !mine.empty()) body(bucket, mine);
    }
  }
}

/// Keeps the replicas of data parallelism (and of a tied embedding, and of what tensor parallelism
/// does not cut) one model: sums the gradients of a bucket over replicas while backward goes on
/// with the next, and brings updated weights back while the next forward pass has begun.
class BucketSync final : public LayerHooks {
 public:
  /// model must outlive this.
  explicit BucketSync(TrainingModel& model);

  /// Before each micro-batch's backward pass. Gradients are summed over replicas after the last
  /// one, or after each where only shards are kept (Sharding::gradients).
  void begin_backward(bool last_micro_batch) { last_micro_batch_ = last_micro_batch; }
  /// After the step's last backward pass: on return every bucket's grad_shard holds the sum over
  /// the whole batch.
  void finish_gradients();
  /// After the optimizer's step: starts bringing the shards of the weights together.
  void gather_weights();
  /// Until then a bucket's weights may only be read after acquire().
  void wait_for_weights();

  void acquire(int bucket) override;
  void gradients_begin(int bucket) override;
  void gradients_ready(int bucket) override;

 private:
  static size_t at(int bucket) { return static_cast<size_t>(bucket); }
  Executor& x() { return model_.executor(); }
  const Bucket& bucket(size_t index) const { return model_.parameters().buckets()[index]; }
  void finish(size_t index);
  void agree_on_what_is_not_cut();

  TrainingModel& model_;
  std::vector<Pending> gradients_;  // by bucket
  std::vector<Pending> weights_;
  std::vector<bool> summing_;  // whose gradients are under way
  bool last_micro_batch_ = true;
};

}  // namespace gradus
