#include "train/config_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <string_view>

#include "train/config_fields.h"
#include "train/config_value.h"

namespace gradus {
namespace {

/// "1, 2, 3, 4, 6 or 12"
std::string divisors(int64_t value) {
  constexpr int64_t kMostRanks = 1024;  // larger groups are no advice for anybody
  std::vector<int64_t> found;
  for (int64_t d = 1; d <= std::min(value, kMostRanks); ++d) {
    if (value % d == 0) found.push_back(d);
  }
  const int64_t last = found.back();
  found.pop_back();
  return found.empty() ? fmt::format("{}", last)
                       : fmt::format("{} or {}", fmt::join(found, ", "), last);
}

class ContradictionCheck {
 public:
  ContradictionCheck(const Config& config, const KeyStates& states, ConfigProblems& problems)
      : c_(config), states_(states), problems_(problems) {}

  void run() const {
    check_model();
    check_schedule();
    check_batches();
    check_parallel();
    check_sizes();
    check_build();
  }

 private:
  using Keys = std::initializer_list<std::string_view>;

  const KeyState& state(std::string_view key) const {
    const auto found = states_.find(key);
    if (found == states_.end()) throw Error(fmt::format("a check names the unknown key {}", key));
    return found->second;
  }

  bool valid(Keys keys) const {
    return std::all_of(keys.begin(), keys.end(), [&](auto key) { return state(key).valid; });
  }

  /// Reported at the first of the keys that somebody set; says where the others come from.
  void report(Keys keys, const std::string& message) const {
    const auto set = [&](auto key) { return !state(key).place.empty(); };
    const auto* const main = std::find_if(keys.begin(), keys.end(), set);
    const std::string_view at = main == keys.end() ? *keys.begin() : *main;
    std::string others;
    for (const std::string_view key : keys) {
      if (key == at) continue;
      others += fmt::format("{}{}: {}", others.empty() ? "" : ", ", key,
                            set(key) ? state(key).place : "default");
    }
    problems_.add(state(at).place, at,
                  others.empty() ? message : fmt::format("{} ({})", message, others));
  }

  void check_model() const {
    const ModelConfig& m = c_.model;
    if (const Keys keys{"model.channels", "model.heads"}; valid(keys) && m.channels % m.heads) {
      report(keys, fmt::format("channels {} are not divisible by heads {}: use channels {}",
                               m.channels, m.heads, nearest_multiples(m.channels, m.heads)));
    }
  }

  void check_schedule() const {
    const OptimConfig& o = c_.optim;
    const bool wsd = o.schedule == ScheduleKind::wsd;
    if (const Keys keys{"optim.min_lr", "optim.lr", "optim.schedule"};
        valid(keys) && o.schedule != ScheduleKind::constant && o.min_lr > o.lr) {
      report(keys, fmt::format("min_lr {} is above lr {}: schedule {} would raise the rate",
                               write_value(o.min_lr), write_value(o.lr), to_string(o.schedule)));
    }
    const Keys warmup{"optim.warmup_steps", "train.steps"};
    bool warmup_fits = valid(warmup) && o.warmup_steps <= c_.train.steps;
    if (valid(warmup) && !warmup_fits) {
      report(warmup, fmt::format("warmup_steps {} exceed the run's {} steps: use at most that many",
                                 o.warmup_steps, c_.train.steps));
    }
    if (const Keys keys{"optim.warmup_steps", "train.steps", "optim.schedule", "optim.min_lr",
                        "optim.lr"};
        valid(keys) && o.schedule != ScheduleKind::constant && o.min_lr < o.lr &&
        o.warmup_steps == c_.train.steps) {
      warmup_fits = false;
      report(keys, fmt::format("warmup_steps {} leave none of the run's {} steps for schedule {} "
                               "to go down to min_lr {}: use at most {}, or schedule constant",
                               o.warmup_steps, c_.train.steps, to_string(o.schedule),
                               write_value(o.min_lr), c_.train.steps - 1));
    }
    if (const Keys keys{"optim.decay_steps", "optim.schedule"};
        valid(keys) && !wsd && o.decay_steps) {
      report(keys, fmt::format("decay_steps has no effect with schedule {}: use schedule wsd or "
                               "decay_steps auto",
                               to_string(o.schedule)));
    }
    const Keys keys{"optim.decay_steps", "optim.warmup_steps", "train.steps", "optim.schedule"};
    if (valid(keys) && wsd && warmup_fits) {
      const int64_t decay = resolved_decay_steps(o, c_.train.steps);
      if (decay > c_.train.steps - o.warmup_steps) {
        report(keys,
               fmt::format("warmup_steps {} and decay_steps {}{} exceed the run's {} steps: use "
                           "decay_steps of at most {}",
                           o.warmup_steps, decay, o.decay_steps ? "" : " (auto)", c_.train.steps,
                           c_.train.steps - o.warmup_steps));
      }
    }
  }

  void check_batches() const {
    const TrainConfig& t = c_.train;
    const Keys keys{"train.global_batch", "train.micro_batch", "parallel.dp"};
    if (!valid(keys)) return;
    const int64_t dp = c_.parallel.dp.value_or(1);
    if (t.micro_batch > t.global_batch / dp) {
      report(keys, fmt::format("global_batch {} is less than micro_batch {} × dp {}: use {}",
                               t.global_batch, t.micro_batch, dp,
                               t.global_batch < dp ? fmt::format("dp of at most {}", t.global_batch)
                                                   : fmt::format("micro_batch of at most {}",
                                                                 t.global_batch / dp)));
    } else if (const int64_t pass = t.micro_batch * dp; t.global_batch % pass != 0) {
      report(keys, fmt::format("global_batch {} is not a multiple of micro_batch {} × dp {}: use "
                               "global_batch {}",
                               t.global_batch, t.micro_batch, dp,
                               nearest_multiples(t.global_batch, pass)));
    }
  }

  /// What tensor and pipeline parallelism cut must divide; the number of ranks is the mesh's
  /// affair.
  void check_parallel() const {
    const ModelConfig& m = c_.model;
    const ParallelConfig& p = c_.parallel;
    if (const Keys keys{"model.heads", "parallel.tp"}; valid(keys) && m.heads % p.tp != 0) {
      report(keys, fmt::format("heads {} are not divisible by tp {}: use tp {}", m.heads, p.tp,
                               divisors(m.heads)));
    }
    if (const Keys keys{"model.mlp_width", "model.channels", "parallel.tp"};
        valid(keys) && resolvable_mlp_width() && resolved_mlp_width(m) % p.tp != 0) {
      report(keys, fmt::format("mlp_width {} is not divisible by tp {}: use mlp_width {}",
                               resolved_mlp_width(m), p.tp,
                               nearest_multiples(resolved_mlp_width(m), p.tp)));
    }
    if (const Keys keys{"model.context", "parallel.tp", "parallel.sequence"};
        valid(keys) && p.sequence && m.context % p.tp != 0) {
      report(keys, fmt::format("context {} is not divisible by tp {}, along which sequence: true "
                               "cuts it: use context {}",
                               m.context, p.tp, nearest_multiples(m.context, p.tp)));
    }
    if (const Keys keys{"model.layers", "parallel.pp"}; valid(keys) && m.layers < p.pp) {
      report(keys, fmt::format(
                       "layers {} are too few for pp {}, where every stage needs one: use pp of at "
                       "most {}",
                       m.layers, p.pp, m.layers));
    }
  }

  bool resolvable_mlp_width() const { return c_.model.channels < kMostElements; }

  /// Later arithmetic on sizes is in int64; numbers that no machine holds are refused here.
  void check_sizes() const {
    const ModelConfig& m = c_.model;
    const auto real = [](int64_t size) { return static_cast<double>(size); };
    const double width = m.mlp_width ? real(*m.mlp_width) : 4 * real(m.channels);
    if (const Keys keys{"model.layers", "model.channels", "model.mlp_width", "model.vocab_size",
                        "model.context"};
        valid(keys)) {
      const double rows = real(m.vocab_size.value_or(1)) + real(m.context);
      const double parameters =
          real(m.channels) * (real(m.layers) * (4 * real(m.channels) + 2 * width) + rows);
      if (parameters > real(kMostElements)) {
        report(keys, fmt::format("the model has about {:.1e} parameters: sizes above {:.0e} are "
                                 "not supported",
                                 parameters, real(kMostElements)));
      }
    }
    if (const Keys keys{"train.micro_batch", "model.context", "model.layers", "model.channels",
                        "model.mlp_width", "model.heads"};
        valid(keys)) {
      const double per_token = real(m.layers) * (12 * real(m.channels) + 3 * width +
                                                 2 * real(m.heads) * real(m.context));
      const double activations = real(c_.train.micro_batch) * real(m.context) * per_token;
      if (activations > real(kMostElements)) {
        report(keys, fmt::format("a micro-batch has about {:.1e} activations: sizes above {:.0e} "
                                 "are not supported",
                                 activations, real(kMostElements)));
      }
    }
    if (const Keys keys{"train.global_batch", "model.context"}; valid(keys)) {
      const double tokens = real(c_.train.global_batch) * real(m.context);
      if (tokens > real(kMostElements)) {
        report(keys,
               fmt::format("a step has about {:.1e} tokens: sizes above {:.0e} are not supported",
                           tokens, real(kMostElements)));
      }
    }
    if (const Keys keys{"train.steps", "train.global_batch", "model.context"}; valid(keys)) {
      const double tokens = real(c_.train.steps) * real(c_.train.global_batch) * real(m.context);
      if (tokens > 9e18) {
        report(keys,
               fmt::format("the run would see {:.1e} tokens, more than 64 bits can count", tokens));
      }
    }
    if (const Keys keys{"parallel.pp", "parallel.dp", "parallel.cp", "parallel.tp"}; valid(keys)) {
      const ParallelConfig& p = c_.parallel;
      const double ranks = real(p.pp) * real(p.dp.value_or(1)) * real(p.cp) * real(p.tp);
      if (ranks > 2147483647.0) {
        report(keys, fmt::format("the mesh has {:.1e} ranks, more than MPI can number", ranks));
      }
    }
  }

  void check_build() const {
    if (valid({"device"}) && c_.device == DeviceChoice::cuda) {
      report({"device"}, "cuda is not part of this build: use cpu or auto");
    }
    if (valid({"train.precision"}) && c_.train.precision == PrecisionPreset::fp16) {
      report({"train.precision"}, "fp16 is not part of this build: use bf16 or fp32");
    }
    if (valid({"parallel.cp"}) && c_.parallel.cp != 1) {
      report({"parallel.cp"}, fmt::format("context parallelism is not part of this build: found "
                                          "{}, use 1",
                                          c_.parallel.cp));
    }
    if (valid({"parallel.zero"}) && c_.parallel.zero > 2) {
      report({"parallel.zero"},
             fmt::format("ZeRO-{} is not part of this build: use 0, 1 or 2", c_.parallel.zero));
    }
  }

  static constexpr int64_t kMostElements = 1'000'000'000'000'000;

  const Config& c_;
  const KeyStates& states_;
  ConfigProblems& problems_;
};

}  // namespace

std::string nearest_multiples(int64_t value, int64_t divisor) {
  const int64_t below = value / divisor * divisor;
  if (below == 0) return fmt::format("{}", divisor);
  if (below > std::numeric_limits<int64_t>::max() - divisor) return fmt::format("{}", below);
  return fmt::format("{} or {}", below, below + divisor);
}

KeyStates default_key_states() {
  KeyStates states;
  const Config config;
  for_each_value(config, "", [&](const std::string& key, const auto&, const auto&) {
    states.emplace(key, KeyState{});
  });
  return states;
}

void check_ranges(const Config& config, KeyStates& states, ConfigProblems& problems) {
  for_each_value(config, "", [&](const std::string& key, const auto& field, const auto& value) {
    if (in_range(value, field.range)) return;
    KeyState& state = states.at(key);
    state.valid = false;
    problems.add(
        state.place, key,
        fmt::format("found {}, expected {}", write_value(value), expectation(value, field.range)));
  });
}

void check_contradictions(const Config& config, const KeyStates& states, ConfigProblems& problems) {
  ContradictionCheck(config, states, problems).run();
}

void check_config(const Config& config) {
  KeyStates states = default_key_states();
  ConfigProblems problems;
  check_ranges(config, states, problems);
  check_contradictions(config, states, problems);
  problems.throw_if_any();
}

}  // namespace gradus
