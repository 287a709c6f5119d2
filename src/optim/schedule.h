#pragma once

#include <cstdint>

#include "optim/optim_config.h"

namespace gradus {

/// The learning rate of step `step` (from 0) of a run of `steps`. Linear warmup, (step + 1) /
/// warmup_steps of the peak, then constant, linear, cosine (arXiv:1608.03983) or
/// warmup-stable-decay (linear over the last decay_steps, arXiv:2404.06395). All but constant reach
/// min_lr exactly at the last step, provided that it comes after warmup (warmup_steps < steps).
double learning_rate(const OptimConfig& optim, int64_t step, int64_t steps);

}  // namespace gradus
