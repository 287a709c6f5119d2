#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "checkpoint/checkpoint.h"
#include "checkpoint/checkpoint_writer.h"
#include "data/tokenizer.h"
#include "train/config.h"
#include "train/training_model.h"

namespace gradus {

/// How far a run has come, beside weights and optimizer state.
struct RunProgress {
  int64_t step = 0;             ///< optimizer steps attempted
  int64_t samples = 0;          ///< training sequences used: the next global sample number
  bool evaluation_due = false;  ///< a signal came before the evaluation of this step
};

/// Saves a training run into RUN/checkpoints: logical weights (the master weights where there are
/// any), moments, StepState, progress, the resolved configuration and the tokenizer. All ranks of
/// the run call this together (save_together); the first one's result says what was saved.
SaveResult save_run(const std::filesystem::path& run, const RunProgress& progress,
                    const Config& config, const Tokenizer& tokenizer, TrainingModel& model);

/// Refuses a checkpoint whose model, precision or tokenizer is not the run's, with every
/// difference. Throws CheckpointError. Returns the other settings that differ, "key: before ->
/// now", for the log.
std::vector<std::string> check_run(const Checkpoint& checkpoint, const Config& config,
                                   const Tokenizer& tokenizer);

/// Restores what save_run saved into an allocated model, whatever layout saved it. All ranks call
/// this together.
RunProgress load_run(const Checkpoint& checkpoint, TrainingModel& model);

}  // namespace gradus
