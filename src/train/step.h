#pragma once

#include <cstdint>
#include <string>

#include "core/step_state.h"
#include "data/loader.h"
#include "train/batch_reads.h"
#include "train/bucket_sync.h"
#include "train/pipeline_schedule.h"
#include "train/training_model.h"

namespace gradus {

class FirstNonfinite;

/// Runs optimizer steps and evaluations of a TrainingModel. All ranks call these together.
class Stepper {
 public:
  /// Both must outlive this.
  Stepper(const Config& config, TrainingModel& model);

  /// One optimizer step over the global batch that starts at global sample `first_sample`, of which
  /// each replica reads its part: forward and backward of each micro-batch, norm, clipping, AdamW
  /// at rate lr. Throws DataError when the batch has no target, UnusableBatch, on all ranks, when
  /// it cannot be read.
  StepState run(const Loader& loader, int64_t first_sample, double lr);
  /// The same over what already stands in the model's tokens() and targets().
  StepState run(int64_t first_sample, double lr);

  /// Runs the last step's forward and backward again, weights being unchanged since, and names the
  /// first tensor that is not finite and the operation that wrote it: "gelu_forward wrote … to
  /// block.2.gelu".
  std::string find_nonfinite();

  /// After a step, weights may be on their way from other replicas. Whoever reads them beside the
  /// model's own passes waits first.
  void wait_for_weights() { sync_.wait_for_weights(); }

  struct Evaluation {
    double loss = 0.0;  ///< nats per target
    int64_t targets = 0;
  };
  /// Mean loss over the first `tokens` targets of a sequential loader, rounded up to whole samples,
  /// or over all it has; no dropout. The samples do not depend on the micro-batch or the layout.
  /// Throws UnusableBatch, on all ranks, after the last batch.
  Evaluation evaluate(const Loader& loader, const EvalTokens& tokens);

 private:
  void accumulate_gradients();
  void forward(int64_t index, int64_t slot);
  void backward(int64_t index, int64_t slot);
  MicroBatch micro_batch(int64_t index) const;
  void read_evaluation_batch(const Loader& loader, int64_t batch, int64_t samples);
  void sum_over_replicas_and_stages(const Tensor& inout);

  const Config& config_;
  TrainingModel& model_;
  BatchReads reads_;
  BucketSync sync_;
  PipelineSchedule schedule_;
  FirstNonfinite* replay_ = nullptr;  ///< told of each pass while a step is replayed
  int64_t first_sample_ = 0;          ///< of this replica
  int64_t target_count_ = 0;          ///< of all replicas
};

}  // namespace gradus
