#pragma once

#include <cstdint>

#include "train/training_model.h"

namespace gradus {

/// Which targets of a synthetic batch are to be predicted; the others are kIgnoredTarget.
enum class SyntheticTargets : uint8_t { all, four_in_five };

/// Fills the model's tokens() and targets() with global batch `number` of an endless random text:
/// element i of the global batch is a function of (number, i), whatever the layout. For measuring
/// and verifying, where the work of a step does not depend on what the tokens are.
void fill_synthetic_batch(TrainingModel& model, uint64_t number, SyntheticTargets which);

}  // namespace gradus
