#pragma once

#include <cstdint>
#include <string>

#include "core/step_state.h"
#include "data/loader.h"
#include "train/training_model.h"

namespace gradus {

/// Runs optimizer steps and evaluations of a TrainingModel.
class Stepper {
 public:
  /// All must outlive this.
  Stepper(const Config& config, TrainingModel& model, LayerHooks& hooks);

  /// One optimizer step over the global batch that starts at global sample `first_sample`:
  /// forward and backward of each micro-batch, norm, clipping, AdamW at rate lr. Throws DataError
  /// when the batch has no target.
  StepState run(const Loader& loader, int64_t first_sample, double lr);
  /// The same over what already stands in the model's tokens() and targets().
  StepState run(int64_t first_sample, double lr);

  /// Runs the last step's forward and backward again, weights being unchanged since, and names the
  /// first tensor that is not finite and the operation that wrote it: "gelu_forward wrote … to
  /// block.2.gelu".
  std::string find_nonfinite();

  struct Evaluation {
    double loss = 0.0;  ///< nats per target
    int64_t targets = 0;
  };
  /// Mean loss over the first `batches` micro-batches of a sequential loader, or all it has; no
  /// dropout.
  Evaluation evaluate(const Loader& loader, int64_t batches);

 private:
  void accumulate_gradients();
  void sum_replicated_gradients();
  MicroBatch micro_batch(int64_t index) const;

  const Config& config_;
  TrainingModel& model_;
  LayerHooks& hooks_;
  int64_t first_sample_ = 0;
  int64_t target_count_ = 0;
};

}  // namespace gradus
