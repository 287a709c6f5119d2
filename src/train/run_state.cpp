#include "train/run_state.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "checkpoint/checkpoint_state.h"
#include "checkpoint/step_state_json.h"
#include "core/json_fields.h"

namespace gradus {
namespace {

using Fields = JsonFields<CheckpointError>;

// Of one step, over all ranks.
constexpr int64_t kMostSamples = int64_t{1} << 31;

/// Throws where no sequence of steps leads to this state.
void require_possible(const StepState& state, int64_t step, const Fields& fields) {
  const auto require = [&](bool possible, const char* field, const std::string& expected) {
    if (!possible) fields.refuse(field, expected);
  };
  require(state.attempted == step, "attempted", fmt::format("{}, the checkpoint's step", step));
  require(state.applied >= 0 && state.applied <= step, "applied",
          fmt::format("an integer of 0 … {}", step));
  require(state.skipped == step - state.applied, "skipped",
          fmt::format("{}, the steps that were attempted and not applied", step - state.applied));
  require(state.skipped_in_row >= 0 && state.skipped_in_row <= state.skipped, "skipped_in_row",
          fmt::format("an integer of 0 … {}", state.skipped));
  const bool applied = state.nonfinite == static_cast<int32_t>(StepFault::none);
  const bool known = applied || state.nonfinite == static_cast<int32_t>(StepFault::nonfinite) ||
                     state.nonfinite == static_cast<int32_t>(StepFault::overflow);
  require(known && applied == (state.skipped_in_row == 0), "nonfinite",
          state.skipped_in_row > 0 ? "1 or 2, as a step was skipped last" : "0");
  require(!applied || std::isfinite(state.loss), "loss", "a finite number");
  require(!applied || (std::isfinite(state.grad_norm) && state.grad_norm >= 0.0), "grad_norm",
          "a finite number of 0 or more");
  require(std::isfinite(state.lr) && state.lr >= 0.0f, "lr", "a finite number of 0 or more");
  // Another factor belongs to fp16, which is not part of this build.
  require(state.loss_scale == 1.0f, "loss_scale", "1");
  require(state.clip_scale >= 0.0f && state.clip_scale <= 1.0f, "clip_scale", "a number of 0 … 1");
}

int64_t samples_from(const Fields& fields, int64_t step) {
  const int64_t most =
      step > std::numeric_limits<int64_t>::max() / kMostSamples ? step : step * kMostSamples;
  return fields.integer("samples", step, most);  // a step uses one at least
}

}  // namespace

nlohmann::json to_json(const RunState& state) {
  nlohmann::json json = {{"samples", state.progress.samples},
                         {"evaluation_due", state.progress.evaluation_due},
                         {"vocabulary", state.vocabulary},
                         {"tokenizer_hash", state.tokenizer_hash},
                         {"step_state", step_state_to_json(state.step_state)}};
  if (state.data) json["data"] = to_json(*state.data);
  return json;
}

RunState run_state_of(const Checkpoint& checkpoint) {
  const std::string name = state_name(checkpoint);
  const Fields fields(checkpoint.state(), name);
  RunState state;
  state.progress.step = checkpoint.step();
  state.progress.samples = samples_from(fields, checkpoint.step());
  state.progress.evaluation_due = fields.has("evaluation_due") && fields.boolean("evaluation_due");
  state.vocabulary = vocabulary_of(checkpoint);
  state.tokenizer_hash = fmt::format("{:016x}", fields.hash64("tokenizer_hash"));
  if (fields.has("data")) {
    state.data = data_identity_from_json(fields.object("data"), name + ": data");
  }
  const nlohmann::json& step_state = fields.object("step_state");
  const std::string place = name + ": step_state";
  state.step_state = step_state_from_json(step_state, place);
  require_possible(state.step_state, checkpoint.step(), Fields(step_state, place));
  return state;
}

}  // namespace gradus
