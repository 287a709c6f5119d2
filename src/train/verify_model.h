#pragma once

#include <cstdint>
#include <optional>

#include "core/executor.h"
#include "parallel/bootstrap.h"
#include "parallel/parallelism.h"
#include "train/step.h"
#include "train/training_model.h"
#include "train/verify_layouts.h"

namespace gradus {

/// A model of the verification with memory and random batches; alone, or as a rank of a layout.
class VerifiedModel {
 public:
  explicit VerifiedModel(const Config& config);
  /// Collective over the job.
  VerifiedModel(const Config& config, Bootstrap& bootstrap, const VerifiedLayout& layout);

  /// One optimizer step over global batch `number`; at rate 0 the weights stay.
  StepState step(int64_t number, double lr);

  TrainingModel& model() { return model_; }
  const Parameters& parameters() const { return model_.parameters(); }
  const Optimizer& optimizer() const { return model_.optimizer(); }

 private:
  void start();

  Config config_;
  Executor x_;
  std::optional<Mesh> mesh_;
  Parallelism parallel_;
  TrainingModel model_;
  Stepper stepper_;
};

}  // namespace gradus
