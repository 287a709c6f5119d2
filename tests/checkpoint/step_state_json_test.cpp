#include "checkpoint/step_state_json.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "core/error.h"

namespace gradus {
namespace {

/// Through text, as a file does it.
StepState through_text(const StepState& state) {
  return step_state_from_json(nlohmann::json::parse(step_state_to_json(state).dump(2)));
}

TEST(StepStateJson, KeepsEveryBit) {
  const StepState state{.attempted = std::numeric_limits<int64_t>::max(),
                        .applied = 9'007'199'254'740'993,
                        .loss = 0.1 + 0.2,
                        .grad_norm = std::numeric_limits<double>::denorm_min(),
                        .lr = 1e-3f,
                        .clip_scale = std::nextafterf(1.0f, 0.0f),
                        .loss_scale = 65536.0f,
                        .nonfinite = 1,
                        .skipped_in_row = 3,
                        .skipped = 17};
  const StepState back = through_text(state);
  EXPECT_EQ(back.attempted, state.attempted);
  EXPECT_EQ(back.applied, state.applied);
  EXPECT_EQ(std::bit_cast<uint64_t>(back.loss), std::bit_cast<uint64_t>(state.loss));
  EXPECT_EQ(std::bit_cast<uint64_t>(back.grad_norm), std::bit_cast<uint64_t>(state.grad_norm));
  EXPECT_EQ(std::bit_cast<uint32_t>(back.lr), std::bit_cast<uint32_t>(state.lr));
  EXPECT_EQ(std::bit_cast<uint32_t>(back.clip_scale), std::bit_cast<uint32_t>(state.clip_scale));
  EXPECT_EQ(back.loss_scale, state.loss_scale);
  EXPECT_EQ(back.nonfinite, state.nonfinite);
  EXPECT_EQ(back.skipped_in_row, state.skipped_in_row);
  EXPECT_EQ(back.skipped, state.skipped);
}

TEST(StepStateJson, HoldsWhatANonFiniteStepLeaves) {
  StepState state;
  state.loss = std::numeric_limits<double>::quiet_NaN();
  state.grad_norm = std::numeric_limits<double>::infinity();
  state.clip_scale = -std::numeric_limits<float>::infinity();
  const StepState back = through_text(state);
  EXPECT_TRUE(std::isnan(back.loss));
  EXPECT_EQ(back.grad_norm, state.grad_norm);
  EXPECT_EQ(back.clip_scale, state.clip_scale);
}

TEST(StepStateJson, RefusesMissingUnknownAndIllTypedFields) {
  const nlohmann::json whole = step_state_to_json({});
  for (const auto& [name, unused] : whole.items()) {
    nlohmann::json damaged = whole;
    damaged.erase(name);
    EXPECT_THROW(step_state_from_json(damaged), CheckpointError) << name;
    damaged = whole;
    damaged[name] = "text";
    EXPECT_THROW(step_state_from_json(damaged), CheckpointError) << name;
  }
  nlohmann::json more = whole;
  more["surplus"] = 1;
  EXPECT_THROW(step_state_from_json(more), CheckpointError);
  EXPECT_THROW(step_state_from_json(nlohmann::json::array()), CheckpointError);
}

}  // namespace
}  // namespace gradus
