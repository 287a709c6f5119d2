#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "core/step_state.h"

namespace gradus {

/// Every field, so that reading it back gives the same bits; infinities and NaN (their payload
/// apart) as the strings "inf", "-inf" and "nan".
nlohmann::json step_state_to_json(const StepState& state);

/// Throws CheckpointError when a field is missing, unknown, of another type or too large for it.
/// name: what stands for the object in messages.
StepState step_state_from_json(const nlohmann::json& json, const std::string& name = "step state");

}  // namespace gradus
