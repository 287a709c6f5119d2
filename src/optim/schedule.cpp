#include "optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace gradus {
namespace {

/// Of the way from step `begin` (exclusive) to the last step: in (0, 1], 1 at the last.
double progress(int64_t step, int64_t begin, int64_t steps) {
  return std::min(1.0, static_cast<double>(step - begin + 1) /
                           static_cast<double>(std::max<int64_t>(1, steps - begin)));
}

}  // namespace

double learning_rate(const OptimConfig& optim, int64_t step, int64_t steps) {
  if (step < optim.warmup_steps) {
    return optim.lr * static_cast<double>(step + 1) / static_cast<double>(optim.warmup_steps);
  }
  const double range = optim.lr - optim.min_lr;
  switch (optim.schedule) {
    case ScheduleKind::constant:
      return optim.lr;
    case ScheduleKind::linear:
      return optim.min_lr + range * (1.0 - progress(step, optim.warmup_steps, steps));
    case ScheduleKind::cosine: {
      const double angle = std::numbers::pi * progress(step, optim.warmup_steps, steps);
      return optim.min_lr + range * 0.5 * (1.0 + std::cos(angle));
    }
    case ScheduleKind::wsd: {
      const int64_t begin =
          std::max(optim.warmup_steps, steps - resolved_decay_steps(optim, steps));
      if (step < begin) return optim.lr;
      return optim.min_lr + range * (1.0 - progress(step, begin, steps));
    }
  }
  return optim.lr;
}

}  // namespace gradus
