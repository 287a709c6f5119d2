#pragma once

#include "core/precision.h"
#include "model/model_config.h"

namespace gradus {

/// The dtypes that train.precision names. Throws ConfigError for one that this build cannot compute
/// in.
Precision precision_of(PrecisionPreset preset);

}  // namespace gradus
