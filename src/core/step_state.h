#pragma once

#include <cstdint>

namespace gradus {

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
  int32_t nonfinite = 0;       ///< 1: loss or norm of the step just decided was not finite
  int32_t skipped_in_row = 0;  ///< consecutive non-finite steps up to now
  int64_t skipped = 0;         ///< non-finite steps in all
};

}  // namespace gradus
