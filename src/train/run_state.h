#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "checkpoint/checkpoint.h"
#include "core/step_state.h"
#include "train/data_identity.h"

namespace gradus {

/// How far a run has come, beside weights and optimizer state.
struct RunProgress {
  int64_t step = 0;             ///< optimizer steps attempted
  int64_t samples = 0;          ///< training sequences used: the next global sample number
  bool evaluation_due = false;  ///< a signal came before the evaluation of this step
};

/// What state.json says of a run, but for the step, which every checkpoint has.
struct RunState {
  RunProgress progress;
  int64_t vocabulary = 0;            ///< V
  std::string tokenizer_hash;        ///< Tokenizer::hash(), hexadecimal
  std::optional<DataIdentity> data;  ///< none in checkpoints of versions that did not keep it
  StepState step_state;
};

nlohmann::json to_json(const RunState& state);

/// Throws CheckpointError (file, field, what was found, what was expected) for a state that no run
/// can have been in, whatever its checksum says: training would go on from it without a word.
RunState run_state_of(const Checkpoint& checkpoint);

}  // namespace gradus
