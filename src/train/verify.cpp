#include "train/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <optional>

#include "core/rng.h"
#include "data/tokenizer.h"
#include "parallel/mesh.h"
#include "train/held_values.h"
#include "train/run_checkpoint.h"
#include "train/step.h"
#include "train/synthetic_batch.h"

namespace gradus {
namespace {

constexpr double kDifferenceLimit = 1e-6;  // central differences in fp64
constexpr double kLayoutLimit = 1e-10;     // sums in another order in fp64
constexpr double kUpdatedLimit = 1e-7;     // the same, carried on by AdamW
constexpr double kTrainingRate = 1e-2;
// Gradients below this share of the model's largest are rounding noise around zero (those of key
// biases are zero by mathematics) and are measured against it.
constexpr double kNoiseFloor = 1e-3;

struct Layout {
  MeshShape mesh;
  bool sequence = false;
  int64_t zero = 0;

  std::string name() const {
    return fmt::format("pp {} dp {} tp {}{}{}", mesh.pp, mesh.dp, mesh.tp,
                       sequence ? " sequence" : "",
                       mesh.dp > 1 ? fmt::format(" zero {}", zero) : "");
  }
};

/// A model of the verification with memory and a batch; alone, or as a rank of a layout.
class Subject {
 public:
  explicit Subject(const Config& config)
      : config_(config),
        x_(Device::cpu, 1),
        model_(config_, *config_.model.vocab_size, x_, parallel_),
        stepper_(config_, model_) {
    start();
  }
  Subject(const Config& config, Bootstrap& bootstrap, const Layout& layout)
      : config_(config),
        x_(Device::cpu, 1),
        mesh_(std::in_place, bootstrap, layout.mesh),
        parallel_(*mesh_, {.sequence = layout.sequence, .zero = layout.zero}),
        model_(config_, *config_.model.vocab_size, x_, parallel_),
        stepper_(config_, model_) {
    start();
  }

  /// One optimizer step over global batch `number`; at rate 0 the weights stay.
  StepState step(int64_t number, double lr) {
    fill_synthetic_batch(model_, static_cast<uint64_t>(number), SyntheticTargets::four_in_five);
    const StepState state = stepper_.run(number * config_.train.global_batch, lr);
    stepper_.wait_for_weights();
    return state;
  }

  TrainingModel& model() { return model_; }
  const Parameters& parameters() const { return model_.parameters(); }
  const Optimizer& optimizer() const { return model_.optimizer(); }

 private:
  void start() {
    model_.allocate();
    model_.initialize(static_cast<uint64_t>(config_.seed));
  }

  Config config_;
  Executor x_;
  std::optional<Mesh> mesh_;
  Parallelism parallel_;
  TrainingModel model_;
  Stepper stepper_;
};

/// The largest deviation seen, and where.
struct Deviation {
  double worst = 0.0;
  std::string where;

  void add(double value, const std::string& name) {
    if (value <= worst || std::isnan(worst)) return;  // true for a NaN that follows a number
    worst = value;
    where = name;
  }
};

/// Whole gradients of a model on one rank, by name.
struct Gradients {
  std::map<std::string, std::vector<double>> values;
  double loss = 0.0;
  double norm = 0.0;

  double largest() const {
    double most = 0.0;
    for (const auto& [name, tensor] : values) most = std::max(most, largest_of(tensor));
    return most;
  }
  /// What deviations of a tensor's gradient are measured against.
  double scale_of(const std::string& name) const {
    return std::max(largest_of(values.at(name)), kNoiseFloor * largest());
  }

 private:
  static double largest_of(const std::vector<double>& tensor) {
    double most = 0.0;
    for (const double value : tensor) most = std::max(most, std::abs(value));
    return most;
  }
};

Gradients gradients_of(Subject& subject, int64_t number = 0) {
  const StepState state = subject.step(number, 0.0);
  Gradients gradients{.loss = state.loss, .norm = state.grad_norm};
  for (const Parameter& parameter : subject.parameters().all()) {
    auto& values = gradients.values[parameter.spec.name];
    values.resize(static_cast<size_t>(parameter.spec.shape.numel()));
    for_each_held(parameter, subject.optimizer().held(parameter, Optimizer::Kind::gradient),
                  [&](int64_t i, double value) { values[static_cast<size_t>(i)] = value; });
  }
  return gradients;
}

/// What `subject` has of the gradients of batch `number`, against all of them.
Deviation deviation_from(const Gradients& expected, Subject& subject, int64_t number = 0) {
  const StepState state = subject.step(number, 0.0);
  Deviation deviation;
  deviation.add(std::abs(state.loss - expected.loss) / expected.loss, "the loss");
  deviation.add(std::abs(state.grad_norm - expected.norm) / expected.norm, "the gradients' norm");
  for (const Parameter& parameter : subject.parameters().all()) {
    const std::string& name = parameter.spec.name;
    const double scale = expected.scale_of(name);
    const std::vector<double>& whole = expected.values.at(name);
    for_each_held(parameter, subject.optimizer().held(parameter, Optimizer::Kind::gradient),
                  [&](int64_t i, double value) {
                    deviation.add(std::abs(value - whole[static_cast<size_t>(i)]) / scale, name);
                  });
  }
  return deviation;
}

/// Gradients of a few weights against central differences of the loss; of every `ranks`-th
/// parameter from number `rank` on.
Deviation deviation_from_differences(Subject& subject, size_t rank, size_t ranks) {
  constexpr int64_t kSamples = 3;
  constexpr double kStep = 1e-3;
  // Away from the initial weights, where many gradients are alike.
  for (int64_t number = 1; number < 3; ++number) subject.step(number, 5e-2);
  const Gradients gradients = gradients_of(subject);
  Deviation deviation;
  const std::vector<Parameter>& all = subject.parameters().all();
  for (size_t p = rank; p < all.size(); p += ranks) {
    const Parameter& parameter = all[p];
    const std::string& name = parameter.spec.name;
    const std::vector<double>& expected = gradients.values.at(name);
    const auto largest =
        std::ranges::max_element(expected, {}, [](double v) { return std::abs(v); });
    std::vector<int64_t> elements = {largest - expected.begin()};
    for (int64_t k = 0; k < kSamples; ++k) {
      const auto words = philox4x32(rng_key(7, rng_site(name)), 0, static_cast<uint64_t>(k));
      elements.push_back(static_cast<int64_t>(words[0] % expected.size()));
    }
    auto* weights = parameter.value.as<double>();
    for (const int64_t i : elements) {
      const double weight = weights[i];
      const auto loss_at = [&](double steps) {
        weights[i] = weight + steps * kStep;
        return subject.step(0, 0.0).loss;
      };
      // Of fourth order: the step can be so long that the loss's rounding does not show.
      const double numeric =
          (8 * (loss_at(1) - loss_at(-1)) - (loss_at(2) - loss_at(-2))) / (12 * kStep);
      weights[i] = weight;
      const double exact = expected[static_cast<size_t>(i)];
      deviation.add(std::abs(numeric - exact) / gradients.scale_of(name), name);
    }
  }
  return deviation;
}

/// 1 where a tensor of what two models' optimizers have differs in any bit, else 0.
Deviation differing_elements(Subject& one, Subject& other) {
  using Kind = Optimizer::Kind;
  Deviation deviation;
  for (const Parameter& parameter : one.parameters().all()) {
    const Parameter& same = other.parameters()[parameter.spec.name];
    for (const Kind kind : {Kind::master, Kind::first_moment, Kind::second_moment}) {
      const HeldPart a = one.optimizer().held(parameter, kind);
      const HeldPart b = other.optimizer().held(same, kind);
      const bool equal =
          a.values.numel() == b.values.numel() &&
          (a.values.numel() == 0 || std::memcmp(a.values.data(), b.values.data(),
                                                static_cast<size_t>(a.values.bytes())) == 0);
      deviation.add(equal ? 0.0 : 1.0, parameter.spec.name);
    }
  }
  return deviation;
}

/// The meshes of so many ranks that fit the model, with everything that can be chosen within each.
std::vector<Layout> layouts_of(const Config& config, int ranks) {
  std::vector<Layout> layouts;
  const ModelConfig& model = config.model;
  for (int tp = 1; tp <= ranks; ++tp) {
    for (int pp = 1; pp <= ranks / tp; ++pp) {
      if (ranks % (tp * pp) != 0) continue;
      const int dp = ranks / (tp * pp);
      const bool fits = model.heads % tp == 0 && resolved_mlp_width(model) % tp == 0 &&
                        model.layers >= pp &&
                        config.train.global_batch % (config.train.micro_batch * dp) == 0;
      if (!fits) continue;
      for (const bool sequence : {false, true}) {
        if (sequence && (tp == 1 || model.context % tp != 0)) continue;
        for (int64_t zero = 0; zero <= (dp > 1 ? 2 : 0); ++zero) {
          layouts.push_back({{.pp = pp, .dp = dp, .tp = tp}, sequence, zero});
        }
      }
    }
  }
  return layouts;
}

class Verification {
 public:
  Verification(const Config& config, Bootstrap& bootstrap,
               const std::function<void(const Check&)>& report)
      : config_(config),
        bootstrap_(bootstrap),
        world_(bootstrap.split(0, "verify")),
        report_(report),
        tokenizer_(build_tokenizer("bytes", {})) {}

  std::vector<Check> run() {
    check("gradients against central differences, fp64", kDifferenceLimit, [&] {
      Config config = exact();
      config.train.global_batch = 2 * config.train.micro_batch;
      Subject subject(config);
      return deviation_from_differences(subject, static_cast<size_t>(world_->rank()),
                                        static_cast<size_t>(world_->size()));
    });
    against_one_pass();
    if (bootstrap_.size() == 1) check_resume({});
    for (const Layout& layout : layouts_of(config_, bootstrap_.size())) {
      if (bootstrap_.size() > 1) check_layout(layout);
    }
    return checks_;
  }

 private:
  Config exact() const {
    Config config = config_;
    config.train.precision = PrecisionPreset::fp64;
    return config;
  }

  /// Runs a check on every rank and agrees on the worst.
  template <typename Body>
  void check(const std::string& name, double limit, Body&& body) {
    const auto begin = std::chrono::steady_clock::now();
    Check line = agreed(body());
    line.name = name;
    line.limit = limit;
    line.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    report_(line);
    checks_.push_back(line);
  }

  Check agreed(const Deviation& mine) {
    Check line{.worst = mine.worst};
    Executor x(Device::cpu, 1);
    const Tensor worst(&line.worst, DType::fp64, Device::cpu, {1});
    world_->all_reduce(x, worst, worst, ReduceOp::max).wait(x);
    const bool here = mine.worst == line.worst || std::isnan(mine.worst);
    int32_t rank = here && !mine.where.empty() ? world_->size() - world_->rank() : 0;
    const Tensor first(&rank, DType::i32, Device::cpu, {1});
    world_->all_reduce(x, first, first, ReduceOp::max).wait(x);
    if (rank == 0) return line;
    std::array<char, 256> text{};
    mine.where.copy(text.data(), text.size() - 1);
    const int root = world_->size() - rank;
    const Tensor name(text.data(), DType::u8, Device::cpu, {static_cast<int64_t>(text.size())});
    world_->broadcast(x, name, root).wait(x);
    line.where = world_->size() > 1 ? fmt::format("{} on rank {}", text.data(), root) : text.data();
    return line;
  }

  /// One rank, one micro-batch, nothing recomputed: what everything else must agree with.
  void against_one_pass() {
    Config plain = exact();
    plain.train.recompute = Recompute::none;
    plain.train.micro_batch = plain.train.global_batch;
    Subject reference(plain);
    expected_ = gradients_of(reference);
    reference.step(0, kTrainingRate);
    expected_after_ = gradients_of(reference, 1);
    for (const Recompute recompute : {Recompute::selective, Recompute::full}) {
      Config config = plain;
      config.train.recompute = recompute;
      check(fmt::format("recompute {} against none, fp64", to_string(recompute)), 0.0, [&] {
        Subject subject(config);
        return deviation_from(expected_, subject);
      });
    }
    check(fmt::format("{} micro-batches against one, fp64",
                      config_.train.global_batch / config_.train.micro_batch),
          kLayoutLimit, [&] {
            Subject subject(exact());
            return deviation_from(expected_, subject);
          });
  }

  void check_layout(const Layout& layout) {
    check(layout.name() + " against one rank, fp64", kLayoutLimit, [&] {
      Subject subject(exact(), bootstrap_, layout);
      return deviation_from(expected_, subject);
    });
    check(layout.name() + " after an update, fp64", kUpdatedLimit, [&] {
      Subject subject(exact(), bootstrap_, layout);
      subject.step(0, 0.0);
      subject.step(0, kTrainingRate);
      return deviation_from(expected_after_, subject, 1);
    });
    check_resume(layout);
  }

  /// In the run's own precision.
  void check_resume(const Layout& layout) {
    const std::string name = bootstrap_.size() > 1 ? layout.name() + " " : "";
    check(name + "resumed against straight on", 0.0, [&] {
      const std::filesystem::path folder = std::filesystem::path(config_.run.dir) / ".verify";
      Subject straight(config_, bootstrap_, layout);
      straight.step(0, kTrainingRate);
      save_run(folder, {.step = 1, .samples = config_.train.global_batch}, config_, *tokenizer_,
               straight.model());
      straight.step(1, kTrainingRate);

      std::vector<std::string> refused;
      Subject resumed(config_, bootstrap_, layout);
      load_run(open_checkpoint(folder, refused), resumed.model());
      resumed.step(1, kTrainingRate);
      Executor x(Device::cpu, 1);
      world_->barrier(x).wait(x);
      if (world_->rank() == 0) std::filesystem::remove_all(folder);
      return differing_elements(straight, resumed);
    });
  }

  const Config& config_;
  Bootstrap& bootstrap_;
  std::unique_ptr<Communicator> world_;
  const std::function<void(const Check&)>& report_;
  std::unique_ptr<Tokenizer> tokenizer_;
  Gradients expected_;        // of the initial weights
  Gradients expected_after_;  // of those after an update
  std::vector<Check> checks_;
};

/// The largest divisor of `value` up to `most`, at least 1.
int64_t divisor_up_to(int64_t value, int64_t most) {
  int64_t divisor = std::clamp<int64_t>(most, 1, value);
  while (value % divisor != 0) --divisor;
  return divisor;
}

}  // namespace

Config shrink_for_verification(const Config& config, int ranks, std::vector<std::string>& rule) {
  Config small = config;
  const auto lower = [&](const char* key, int64_t& value, int64_t most) {
    if (value <= most) return;
    rule.push_back(fmt::format("{} {} -> {}", key, value, most));
    value = most;
  };
  ModelConfig& model = small.model;
  const double mlp_ratio =
      static_cast<double>(resolved_mlp_width(model)) / static_cast<double>(model.channels);
  lower("model.layers", model.layers, std::max(4, ranks));
  const int64_t head_size = std::min<int64_t>(model.channels / model.heads, 4);
  const int64_t tp = small.parallel.tp;
  if (model.heads > 16) {  // to a divisor of theirs that the run's own tp divides
    const int64_t fewer = model.heads % tp == 0 ? tp * divisor_up_to(model.heads / tp, 16 / tp)
                                                : divisor_up_to(model.heads, 16);
    lower("model.heads", model.heads, fewer);
  }
  lower("model.channels", model.channels, model.heads * head_size);
  // A multiple of the heads: what cuts heads then cuts the MLP too.
  const int64_t width =
      std::max<int64_t>(1, std::llround(mlp_ratio * static_cast<double>(head_size))) * model.heads;
  if (resolved_mlp_width(config.model) != width) {
    rule.push_back(
        fmt::format("model.mlp_width {} -> {}", resolved_mlp_width(config.model), width));
  }
  model.mlp_width = width;
  lower("model.context", model.context, (24 + tp - 1) / tp * tp);
  int64_t vocabulary = model.vocab_size.value_or(std::numeric_limits<int64_t>::max());
  if (vocabulary > 131) {
    rule.push_back(fmt::format("model.vocab_size {} -> 131", model.vocab_size
                                                                 ? std::to_string(vocabulary)
                                                                 : std::string("auto")));
    vocabulary = 131;
  }
  model.vocab_size = vocabulary;
  lower("train.micro_batch", small.train.micro_batch, 2);
  const int64_t batch = small.train.micro_batch * 2 * ranks;
  rule.push_back(fmt::format("train.global_batch {} -> {}", small.train.global_batch, batch));
  small.train.global_batch = batch;
  rule.emplace_back("random tokens, one thread a rank");
  return small;
}

std::vector<Check> verify(const Config& config, Bootstrap& bootstrap,
                          const std::function<void(const Check&)>& report) {
  return Verification(config, bootstrap, report).run();
}

}  // namespace gradus
