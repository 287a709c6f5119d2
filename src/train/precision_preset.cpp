#include "train/precision_preset.h"

#include "core/error.h"

namespace gradus {

Precision precision_of(PrecisionPreset preset) {
  switch (preset) {
    case PrecisionPreset::fp32:
      return precision::kFp32;
    case PrecisionPreset::bf16:
      return precision::kBf16;
    case PrecisionPreset::bf16_lean:
      return precision::kBf16Lean;
    case PrecisionPreset::fp64:
      return precision::kFp64;
    case PrecisionPreset::fp16:
      break;
  }
  throw ConfigError("train.precision {} needs a GPU, which this build does not use",
                    to_string(preset));
}

}  // namespace gradus
