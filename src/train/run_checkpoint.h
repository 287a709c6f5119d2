#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/checkpoint_writer.h"
#include "data/tokenizer.h"
#include "train/config.h"
#include "train/data_identity.h"
#include "train/run_state.h"
#include "train/training_model.h"

namespace gradus {

/// Saves a training run into RUN/checkpoints: logical weights (the master weights where there are
/// any), moments, StepState, progress, what its data is, the resolved configuration and the
/// tokenizer. All ranks of the run call this together (save_together); the first one's result says
/// what was saved.
SaveResult save_run(const std::filesystem::path& run, const RunProgress& progress,
                    const Config& config, const Tokenizer& tokenizer, const DataIdentity& data,
                    TrainingModel& model);

/// Why the run must not be saved as it is: its last step was skipped, or a weight or a moment is
/// not finite. Such a checkpoint would take the place of one to go back to. Empty where it may. All
/// ranks call this together.
std::string unfit_to_save(TrainingModel& model);

/// Refuses a checkpoint whose model, precision, tokenizer or (unless data.changed allows it) data
/// is not the run's, with every difference, and one whose state no run can have been in. Throws
/// CheckpointError. Returns lines for the log: what else differs, "key: before -> now".
std::vector<std::string> check_run(const Checkpoint& checkpoint, const Config& config,
                                   const Tokenizer& tokenizer, const DataIdentity& data);

/// Restores what save_run saved into an allocated model, whatever layout saved it. All ranks call
/// this together. Throws CheckpointError where a weight or a moment is not one that a run can go on
/// from.
RunProgress load_run(const Checkpoint& checkpoint, TrainingModel& model);

}  // namespace gradus
