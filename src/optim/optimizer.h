#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/executor.h"
#include "core/parameters.h"
#include "core/step_state.h"
#include "optim/optim_config.h"
#include "parallel/parallelism.h"

namespace gradus {

/// The part of a parameter's elements that this rank's optimizer updates: from `first` on, in
/// row-major order of the parameter's memory on this rank.
struct HeldPart {
  int64_t first = 0;
  Tensor values;  ///< (n); n is 0 where other replicas have all of it
};

/// AdamW over a model's parameters: moments, master weights where training keeps them apart, the
/// global norm and the step's decision. Works on whole sections of buckets, whatever parameters are
/// in them, and within each bucket on this replica's shard.
class Optimizer {
 public:
  /// parameters must outlive this, and so must parallel: the ranks that have other parts of the
  /// model, with whom the norm is summed. null: this rank has all of it.
  Optimizer(const OptimConfig& config, const Parameters& parameters,
            Parallelism* parallel = nullptr);

  void declare(TensorVisitor& visitor);

  /// Zero moments and a fresh StepState.
  void reset(Executor& x);
  /// The gradients that are kept start from zero.
  void zero_gradients(Executor& x);
  /// One step from the buckets' grad_shard: norm, clipping, and AdamW unless something is, or might
  /// become, not finite. loss: fp64 (1), the step's mean loss. Asynchronous; state() tells the
  /// outcome. Other replicas' shards of the weights are left as they were.
  void step(Executor& x, double lr, const ConstTensor& loss);
  /// Of the last step.
  StepState state() const;
  void set_state(const StepState& state);
  /// What made the last step's fault StepFault::overflow, for messages; the same on every rank.
  /// Empty where a weight or moment was not finite before the step already.
  std::string describe_overflow() const;

  /// What the optimizer has of a parameter: the weights that it updates (master weights, or the
  /// parameter itself where there are none apart), the moments, and the gradient it reads.
  enum class Kind : uint8_t { master, first_moment, second_moment, gradient };
  HeldPart held(const Parameter& parameter, Kind kind) const;
  /// The same shaped like parameter.value, where this rank holds all of it. Throws Error where
  /// replicas divide it.
  Tensor master(const Parameter& parameter) const { return whole(parameter, Kind::master); }
  Tensor first_moment(const Parameter& parameter) const {
    return whole(parameter, Kind::first_moment);
  }
  Tensor second_moment(const Parameter& parameter) const {
    return whole(parameter, Kind::second_moment);
  }
  /// Rounds the master weights into the parameters, after they were written from outside; this
  /// replica's shards only.
  void publish_master(Executor& x);

 private:
  /// Flat, each as long as the bucket's shard.
  struct BucketState {
    Tensor master;  // undefined where the parameters are their own
    Tensor m;
    Tensor v;
  };
  void sum_norm(Executor& x);
  void measure_largest(Executor& x);
  void adopt_first_ranks_state(Executor& x);
  Tensor whole(const Parameter& parameter, Kind kind) const;
  Tensor shard_of(size_t bucket, Kind kind) const;

  OptimConfig config_;
  const Parameters& parameters_;
  Parallelism* parallel_;
  std::vector<BucketState> buckets_;
  Tensor partials_;    // fp64: of the global norm, over all sections in order
  Tensor stage_sums_;  // fp64 (stages): Σ partials of each pipeline stage
  Tensor largest_;     // fp64 (3), see Largest: before the next step
  Tensor state_;       // u8 (sizeof(StepState))
};

}  // namespace gradus
