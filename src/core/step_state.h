#pragma once

#include <cstdint>

namespace gradus {

/// Why a step was not applied, as StepState::nonfinite holds it.
enum class StepFault : int32_t {
  none = 0,
  nonfinite = 1,  ///< its loss or gradient norm was not finite
  overflow = 2,   ///< its update might have left the range of the weights or moments
};

/// What the kernels of one optimizer step share, in the executor's device memory. AdamW reads it,
/// so a non-finite step changes nothing without the host being asked; the host reads it when the
/// step is over.
struct StepState {
  int64_t attempted = 0;       ///< steps decided so far; the schedule counts these
  int64_t applied = 0;         ///< steps that changed the weights; bias correction counts these
  double loss = 0.0;           ///< of the step just decided: nats per target
  double grad_norm = 0.0;      ///< global L2 norm before clipping
  float lr = 0.0f;             ///< learning rate of the step just decided
  float clip_scale = 1.0f;     ///< factor on gradients: min(1, clip_norm / grad_norm) / loss_scale
  float loss_scale = 1.0f;     ///< factor that the loss's gradient was multiplied with (fp16)
  int32_t nonfinite = 0;       ///< StepFault of the step just decided; 0: it was applied
  int32_t skipped_in_row = 0;  ///< consecutive steps up to now that were not applied
  int64_t skipped = 0;         ///< of all steps

  StepFault fault() const { return static_cast<StepFault>(nonfinite); }
};

}  // namespace gradus
