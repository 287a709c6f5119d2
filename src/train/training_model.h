#pragma once

#include <cstdint>
#include <memory>

#include "core/arena.h"
#include "core/executor.h"
#include "core/parameters.h"
#include "model/gpt.h"
#include "optim/optimizer.h"
#include "parallel/parallelism.h"
#include "train/config.h"

namespace gradus {

/// Everything of a training run that lives in this rank's arena: its part of the parameters,
/// optimizer and model, and its batch of one step. `gradus plan` makes one and only measures it.
class TrainingModel {
 public:
  /// vocabulary: V. x and parallel must outlive this. Throws ConfigError or ShapeError.
  TrainingModel(const Config& config, int64_t vocabulary, Executor& x, Parallelism& parallel);

  /// What the run will allocate.
  std::unique_ptr<MemoryPlan> plan();
  /// Bytes that the job's other ranks on this machine will allocate. machine: the same on all ranks
  /// of one machine (Bootstrap::machine). All ranks call this together.
  int64_t bytes_of_neighbours(int machine);
  /// Allocates it. others: as for Arena. Throws MemoryError when it does not fit.
  void allocate(int64_t others = 0);
  /// Draws the initial weights.
  void initialize(uint64_t seed);
  /// Brings the optimizer's master weights, written from outside, to the parameters of all
  /// replicas, which call this together. No step's weights may be on their way
  /// (Stepper::wait_for_weights).
  void publish();

  const Parameters& parameters() const { return parameters_; }
  Optimizer& optimizer() { return optimizer_; }
  const Optimizer& optimizer() const { return optimizer_; }
  Gpt& gpt() { return gpt_; }
  const Gpt& gpt() const { return gpt_; }
  Executor& executor() { return x_; }
  Parallelism& parallel() { return parallel_; }
  const Parallelism& parallel() const { return parallel_; }
  const Arena& arena() const { return *arena_; }

  /// Micro-batches of this replica in a step.
  int64_t micro_batches() const { return micro_batches_; }
  /// This replica's tokens and targets of a step, i32 (micro_batches · B, T).
  const Tensor& tokens() const { return tokens_; }
  const Tensor& targets() const { return targets_; }
  /// fp64 (1).
  const Tensor& loss() const { return loss_; }

 private:
  void declare(TensorVisitor& visitor);

  Executor& x_;
  Parallelism& parallel_;
  int64_t micro_batches_;
  Parameters parameters_;
  Optimizer optimizer_;
  Gpt gpt_;
  Tensor tokens_;
  Tensor targets_;
  Tensor loss_;
  std::unique_ptr<Arena> arena_;
};

}  // namespace gradus
