#pragma once

#include <cstdint>
#include <functional>

#include "core/executor.h"
#include "model/gpt.h"
#include "parallel/pipeline_parallel.h"

namespace gradus {

/// Micro-batches of a stage that are between forward and backward at the same time under 1F1B: one
/// more than there are stages behind it, or all that there are.
int64_t micro_batches_in_flight(const PipelineParallel& pp, int64_t micro_batches);

/// One step's micro-batches through the stages of a pipeline.
class PipelineSchedule {
 public:
  /// All must outlive this.
  PipelineSchedule(Gpt& gpt, PipelineParallel& pp) : gpt_(gpt), pp_(pp) {}

  /// A pass of this stage over one micro-batch, whose activations are in the slot.
  using Pass = std::function<void(int64_t micro_batch, int64_t slot)>;

  /// One forward, one backward (arXiv:1806.03377; PipeDream-Flush of arXiv:2104.04473): forward
  /// passes until the pipeline is full, then backward of the oldest after each forward of the
  /// newest, then the backward passes that are left.
  void train(Executor& x, int64_t micro_batches, const Pass& forward, const Pass& backward);
  /// Forward passes alone, each in slot 0.
  void evaluate(Executor& x, int64_t micro_batches, const Pass& forward);

 private:
  Gpt& gpt_;
  PipelineParallel& pp_;
};

}  // namespace gradus
