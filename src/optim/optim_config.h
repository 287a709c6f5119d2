#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace gradus {

/// The learning rate after warmup. wsd is warmup-stable-decay (arXiv:2404.06395): constant, then a
/// decay over the last steps.
enum class ScheduleKind : uint8_t { constant, linear, cosine, wsd };
constexpr std::array<std::string_view, 4> enum_names(ScheduleKind) {
  return {"constant", "linear", "cosine", "wsd"};
}
constexpr std::string_view to_string(ScheduleKind kind) {
  return enum_names(kind)[static_cast<size_t>(kind)];
}

/// AdamW (arXiv:1711.05101), its schedule and clipping. nullopt stands for `auto`.
struct OptimConfig {
  double lr = 1e-3;            ///< the peak, reached when warmup ends
  double min_lr = 1e-4;        ///< at the last step; of no effect with schedule constant
  int64_t warmup_steps = 100;  ///< linear, from 0; fewer than the run's, for the decay's sake
  ScheduleKind schedule = ScheduleKind::cosine;
  std::optional<int64_t> decay_steps =
      std::nullopt;           ///< of wsd only; auto: a fifth of the run's steps
  double weight_decay = 0.1;  ///< decoupled, of matrices only
  double beta1 = 0.9;
  double beta2 = 0.99;
  double eps = 1e-8;
  double clip_norm = 1.0;  ///< the largest global gradient norm; 0: no clipping

  bool operator==(const OptimConfig&) const = default;
};

/// Length of wsd's decay in a run of `steps`, with auto resolved: 20% of them, rounded up.
constexpr int64_t resolved_decay_steps(const OptimConfig& optim, int64_t steps) {
  return optim.decay_steps.value_or(steps / 5 + (steps % 5 != 0 ? 1 : 0));
}

}  // namespace gradus
