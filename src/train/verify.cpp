#include "train/verify.h"

#include <fmt/format.h>

#include <array>
#include <chrono>
#include <cmath>
#include <exception>
#include <filesystem>
#include <memory>
#include <system_error>
#include <utility>
#include <vector>

#include "data/tokenizer.h"
#include "train/run_checkpoint.h"
#include "train/verify_deviation.h"
#include "train/verify_layouts.h"

namespace gradus {
namespace {

constexpr double kDifferenceLimit = 1e-6;  // central differences in fp64
constexpr double kLayoutLimit = 1e-10;     // sums in another order in fp64
constexpr double kUpdatedLimit = 1e-7;     // the same, carried on by AdamW
constexpr double kTrainingRate = 1e-2;
constexpr int64_t kCurveSteps = 4;
constexpr double kCurveRate = 1e-3;

/// Sums in another order, in the run's own precision.
double rounding_limit(PrecisionPreset precision) {
  switch (precision) {
    case PrecisionPreset::fp64:
      return kLayoutLimit;
    case PrecisionPreset::fp32:
      return 1e-5;
    default:
      return 2e-2;
  }
}

/// A place for a checkpoint that all ranks see. The first rank removes it when all are done, with
/// the run's folder if that did not exist; after an error it does so at once.
class Folder {
 public:
  Folder(std::filesystem::path path, Communicator& world)
      : path_(std::move(path)),
        made_parent_(!std::filesystem::exists(path_.parent_path())),
        world_(world) {}
  ~Folder() {
    try {
      Executor x(Device::cpu, 1);
      if (std::uncaught_exceptions() == 0) world_.barrier(x).wait(x);
    } catch (...) {
      // Another rank has failed; the job is about to end.
    }
    if (world_.rank() != 0) return;
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
    if (made_parent_) std::filesystem::remove(path_.parent_path(), ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  bool made_parent_;
  Communicator& world_;
};

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
      VerifiedModel model(config);
      return deviation_from_differences(model, static_cast<size_t>(world_->rank()),
                                        static_cast<size_t>(world_->size()));
    });
    against_one_pass();
    if (bootstrap_.size() == 1) {
      check_resume({});
      return checks_;
    }
    own_losses_ = [&] {
      VerifiedModel alone(config_);
      return losses_of(alone);
    }();
    for (const VerifiedLayout& layout : layouts_to_verify(config_, bootstrap_.size()).fitting) {
      check_layout(layout);
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
    VerifiedModel reference(plain);
    expected_ = gradients_of(reference);
    reference.step(0, kTrainingRate);
    expected_after_ = gradients_of(reference, 1);
    for (const Recompute recompute : {Recompute::selective, Recompute::full}) {
      Config config = plain;
      config.train.recompute = recompute;
      check(fmt::format("recompute {} against none, fp64", to_string(recompute)), 0.0, [&] {
        VerifiedModel model(config);
        return deviation_from(expected_, model);
      });
    }
    check(fmt::format("{} micro-batches against one, fp64",
                      config_.train.global_batch / config_.train.micro_batch),
          kLayoutLimit, [&] {
            VerifiedModel model(exact());
            return deviation_from(expected_, model);
          });
  }

  void check_layout(const VerifiedLayout& layout) {
    check(layout.name() + " against one rank, fp64", kLayoutLimit, [&] {
      VerifiedModel model(exact(), bootstrap_, layout);
      return deviation_from(expected_, model);
    });
    check(layout.name() + " after an update, fp64", kUpdatedLimit, [&] {
      VerifiedModel model(exact(), bootstrap_, layout);
      model.step(0, 0.0);
      model.step(0, kTrainingRate);
      return deviation_from(expected_after_, model, 1);
    });
    check(fmt::format("{} loss curve, {}", layout.name(), to_string(config_.train.precision)),
          rounding_limit(config_.train.precision), [&] {
            VerifiedModel model(config_, bootstrap_, layout);
            const std::vector<double> losses = losses_of(model);
            Deviation deviation;
            for (size_t i = 0; i < losses.size(); ++i) {
              deviation.add(std::abs(losses[i] - own_losses_[i]) / own_losses_[i],
                            fmt::format("the loss of step {}", i));
            }
            return deviation;
          });
    check_resume(layout);
  }

  static std::vector<double> losses_of(VerifiedModel& model) {
    std::vector<double> losses;
    for (int64_t number = 0; number < kCurveSteps; ++number) {
      losses.push_back(model.step(number, kCurveRate).loss);
    }
    return losses;
  }

  /// In the run's own precision.
  void check_resume(const VerifiedLayout& layout) {
    const std::string name = bootstrap_.size() > 1 ? layout.name() + " " : "";
    check(name + "resumed against straight on", 0.0, [&] {
      const Folder folder(std::filesystem::path(config_.run.dir) / ".verify", *world_);
      VerifiedModel straight(config_, bootstrap_, layout);
      straight.step(0, kTrainingRate);
      save_run(folder.path(), {.step = 1, .samples = config_.train.global_batch}, config_,
               *tokenizer_, {}, straight.model());
      straight.step(1, kTrainingRate);

      std::vector<std::string> refused;
      VerifiedModel resumed(config_, bootstrap_, layout);
      load_run(open_checkpoint(folder.path(), refused), resumed.model());
      resumed.step(1, kTrainingRate);
      return differing_elements(straight, resumed);
    });
  }

  const Config& config_;
  Bootstrap& bootstrap_;
  std::unique_ptr<Communicator> world_;
  const std::function<void(const Check&)>& report_;
  std::unique_ptr<Tokenizer> tokenizer_;
  Gradients expected_;              // of the initial weights
  Gradients expected_after_;        // of those after an update
  std::vector<double> own_losses_;  // of a curve on one rank, in the run's own precision
  std::vector<Check> checks_;
};

}  // namespace

std::vector<Check> verify(const Config& config, Bootstrap& bootstrap,
                          const std::function<void(const Check&)>& report) {
  return Verification(config, bootstrap, report).run();
}

}  // namespace gradus
