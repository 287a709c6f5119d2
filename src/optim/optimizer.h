#pragma once

#include <vector>

#include "core/executor.h"
#include "core/parameters.h"
#include "core/step_state.h"
#include "optim/optim_config.h"
#include "parallel/tensor_parallel.h"

namespace gradus {

/// AdamW over a model's parameters: moments, master weights where training keeps them apart, the
/// global norm and the step's decision. Works on whole sections of buckets, whatever parameters are
/// in them.
class Optimizer {
 public:
  /// parameters must outlive this, and so must tp: the ranks that share the parameters, with whom
  /// the norm is summed. null: this rank has all of them.
  Optimizer(const OptimConfig& config, const Parameters& parameters, TensorParallel* tp = nullptr);

  void declare(TensorVisitor& visitor);

  /// Zero moments and a fresh StepState.
  void reset(Executor& x);
  /// Gradients of a new step start from zero.
  void zero_gradients(Executor& x);
  /// One step from the gradients: norm, clipping, and AdamW unless something is not finite. loss:
  /// fp64 (1), the step's mean loss. Asynchronous; state() tells the outcome.
  void step(Executor& x, double lr, const ConstTensor& loss);
  /// Of the last step.
  StepState state() const;
  void set_state(const StepState& state);

  /// The weights that the optimizer updates, shaped like parameter.value: master weights, or the
  /// parameter itself where there are none apart.
  Tensor master(const Parameter& parameter) const;
  Tensor first_moment(const Parameter& parameter) const;
  Tensor second_moment(const Parameter& parameter) const;
  /// Rounds the master weights into the parameters, after they were written from outside.
  void publish_master(Executor& x);

 private:
  struct BucketState {
    Tensor master;  // undefined where the parameters are their own
    Tensor m;
    Tensor v;
  };
  void sum_norm(Executor& x);
  Tensor view(const Parameter& parameter, const Tensor& flat) const;

  OptimConfig config_;
  const Parameters& parameters_;
  TensorParallel* tp_;
  std::vector<BucketState> buckets_;
  Tensor partials_;  // fp64: of the global norm, over all sections in order
  Tensor state_;     // u8 (sizeof(StepState))
};

}  // namespace gradus
