// Copies that ranks hold of the same are the same, and where one bit differs that is found and
// named; one rank's decision on a step holds for all, on whatever processors they run.

#include "train/replica_check.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <hwy/targets.h>
#include <spdlog/logger.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/checkpoint_folder.h"
#include "core/error.h"
#include "data/prepare.h"
#include "mpi_job.h"
#include "parallel_layout.h"
#include "support/temp_dir.h"
#include "support/tiny_model.h"
#include "train/trainer.h"

namespace gradus {
namespace {

using testing::AllOf;
using testing::Each;
using testing::HasSubstr;
using Kind = Optimizer::Kind;

std::vector<test::ParallelLayout> layouts_of(int ranks) {
  switch (ranks) {
    case 2:
      return {{.mesh = {.tp = 2}},
              {.mesh = {.tp = 2}, .sequence = true},
              {.mesh = {.dp = 2}, .zero = 0},
              {.mesh = {.dp = 2}, .zero = 1},
              {.mesh = {.dp = 2}, .zero = 2},
              {.mesh = {.pp = 2}}};
    case 4:
      return {{.mesh = {.dp = 2, .tp = 2}, .zero = 0},
              {.mesh = {.dp = 2, .tp = 2}, .sequence = true, .zero = 2},
              {.mesh = {.pp = 2, .tp = 2}},
              {.mesh = {.pp = 2, .dp = 2}, .zero = 0},
              {.mesh = {.pp = 2, .dp = 2}, .zero = 1},
              {.mesh = {.pp = 4}}};
    default:
      return {{}};
  }
}

Config config_of(PrecisionPreset precision) {
  Config config = test::tiny_config();
  config.model.layers = 4;
  config.model.channels = 8;
  config.model.heads = 4;
  config.model.mlp_width = 12;
  config.model.context = 4;
  config.train.micro_batch = 1;
  config.train.global_batch = 4;
  config.train.precision = precision;
  config.optim.clip_norm = 0.05;
  return config;
}

template <typename Body>
void for_each_layout(PrecisionPreset precision, Body&& body) {
  for (const test::ParallelLayout& layout : layouts_of(test::job().size())) {
    SCOPED_TRACE(testing::Message() << layout << ", rank " << test::job().rank());
    Mesh mesh(test::job(), layout.mesh);
    test::TinyModel tiny(config_of(precision), 1, layout.on(mesh));
    for (int64_t step = 0; step < 3; ++step) tiny.stepper.run(4 * step, 1e-2);
    tiny.stepper.wait_for_weights();
    body(layout, tiny);
  }
}

/// What each rank says, by rank.
std::vector<std::string> findings(test::TinyModel& tiny) {
  std::string found;
  try {
    check_replicas(tiny.model);
  } catch (const NumericError& error) {
    found = error.what();
  }
  return test::job().exchange(found);
}

/// Whether this rank's stage has the parameter, and its shard some of it.
bool has(const test::TinyModel& tiny, const std::string& name, Kind kind) {
  const Parameters& parameters = tiny.model.parameters();
  return parameters.has(name) &&
         tiny.model.optimizer().held(parameters[name], kind).values.numel() > 0;
}

/// Flips a bit of the first element on the rank `culprit`; again, to mend it.
void flip(const test::TinyModel& tiny, int culprit, const std::string& name, Kind kind) {
  if (test::job().rank() != culprit) return;
  const Tensor values = tiny.model.optimizer().held(tiny.model.parameters()[name], kind).values;
  values.data()[0] ^= std::byte{1};
}

TEST(ReplicaCheck, CopiesOfAllLayoutsAreTheSame) {
  for (const PrecisionPreset precision : {PrecisionPreset::fp32, PrecisionPreset::bf16}) {
    for_each_layout(precision, [](const auto&, test::TinyModel& tiny) {
      EXPECT_THAT(findings(tiny), Each(std::string()));
    });
  }
}

TEST(ReplicaCheck, OneBitOnOneRankIsFoundByAllAndNamed) {
  struct Case {
    const char* name;
    Kind kind;
    const char* what;
  };
  // Held more than once: the first by dp replicas, tp ranks (not cut) and, tied, by two stages; the
  // second by dp replicas and tp ranks.
  const Case cases[] = {{"embedding.position.weight", Kind::first_moment, "first moment"},
                        {"embedding.position.weight", Kind::second_moment, "second moment"},
                        {"embedding.position.weight", Kind::master, "master weights"},
                        {"block.3.ln2.weight", Kind::master, "master weights"}};
  for_each_layout(PrecisionPreset::bf16, [&](const test::ParallelLayout& layout,
                                             test::TinyModel& tiny) {
    const bool sharded = layout.zero > 0 && layout.mesh.dp > 1;
    for (const Case& c : cases) {
      const bool stages_share = layout.mesh.pp > 1 && std::string(c.name).starts_with("embed");
      const bool copied = layout.mesh.tp > 1 || stages_share || (layout.mesh.dp > 1 && !sharded);
      for (int culprit = 0; copied && culprit < test::job().size(); ++culprit) {
        const bool holds = has(tiny, c.name, c.kind);
        const auto all = test::job().exchange(holds ? "holds" : "");
        if (all[static_cast<size_t>(culprit)].empty()) continue;
        flip(tiny, culprit, c.name, c.kind);
        EXPECT_THAT(findings(tiny),
                    Each(AllOf(HasSubstr(fmt::format("copies of the {} of {} are", c.what, c.name)),
                               HasSubstr(fmt::format("{}", culprit)))))
            << c.what << ", rank " << culprit;
        flip(tiny, culprit, c.name, c.kind);
        EXPECT_THAT(findings(tiny), Each(std::string()));
      }
    }
  });
}

/// Whatever is divided among replicas, weights are whole on each.
TEST(ReplicaCheck, WeightsOfReplicasAreComparedAtEveryZeroLevel) {
  if (test::job().size() != 2) return;
  for (const int64_t zero : {0, 1, 2}) {
    const test::ParallelLayout layout{.mesh = {.dp = 2}, .zero = zero};
    Mesh mesh(test::job(), layout.mesh);
    test::TinyModel tiny(config_of(PrecisionPreset::bf16), 1, layout.on(mesh));
    const Tensor& weights = tiny.model.parameters()["block.1.mlp.up.weight"].value;
    if (test::job().rank() == 1) weights.data()[weights.bytes() - 1] ^= std::byte{64};
    EXPECT_THAT(findings(tiny),
                Each(AllOf(HasSubstr("copies of the weights of block.1.mlp.up.weight are"),
                           HasSubstr("(rank 0 against rank 1;"), HasSubstr("1 of "))));
  }
}

/// Flips a bit of a weight right after the optimizer has written it for the given time.
class FlipsInUpdate : public OperationObserver {
 public:
  FlipsInUpdate(Executor& x, int64_t call) : x_(x), call_(call) { x_.observe(this); }
  FlipsInUpdate(const FlipsInUpdate&) = delete;
  FlipsInUpdate& operator=(const FlipsInUpdate&) = delete;
  ~FlipsInUpdate() override { x_.observe(nullptr); }

  void completed(const char* operation, const ConstTensor& written) override {
    if (std::string_view(operation) != "adamw_step" || written.numel() == 0) return;
    if (call_-- == 0) *const_cast<std::byte*>(written.data()) ^= std::byte{1};
  }

 private:
  Executor& x_;
  int64_t call_;
};

/// A run ends before the first checkpoint after the fault, with the earlier ones as they were.
TEST(ReplicaCheck, ARunWithCopiesThatDifferEndsBeforeItSaves) {
  if (test::job().size() != 2) return;
  Mesh mesh(test::job(), {.dp = 2});
  Executor x(Device::cpu, 1);
  test::TempDir own;
  const std::filesystem::path folder = test::job().exchange(own.path().string()).front();
  if (test::job().rank() == 0) {
    const auto text = test::write_file(folder / "text.txt", std::string(4000, 'a'));
    prepare({.inputs = {text}, .out_dir = folder / "data"});
  }
  mesh.world().barrier(x).wait(x);
  Config config = config_of(PrecisionPreset::fp32);
  config.model.vocab_size = std::nullopt;
  config.run.dir = (folder / "run").string();
  config.data.train = {(folder / "data").string()};
  config.train.steps = 20;
  config.checkpoint.every = 2;
  config.parallel.zero = 0;
  Parallelism parallel(mesh, {.zero = 0});
  spdlog::logger quiet("quiet");
  StopSignals signals(false, 1);
  Trainer trainer({.config = config}, x, parallel, quiet, signals);
  // Some 50 tensors are written in a step: the fault comes behind the first checkpoints.
  std::optional<FlipsInUpdate> fault;
  if (test::job().rank() == 1) fault.emplace(x, 300);
  std::string error;
  try {
    trainer.run();
  } catch (const NumericError& caught) {
    error = caught.what();
  }
  EXPECT_THAT(test::job().exchange(error),
              Each(HasSubstr("are no longer the same (rank 0 against")));
  const auto saved = list_step_folders(folder / "run" / kCheckpointsName);
  mesh.world().barrier(x).wait(x);
  ASSERT_FALSE(saved.empty());
  EXPECT_LT(step_of(saved.front()).value_or(100), 10);
}

/// Binds this rank's kernels to an instruction set, as if it ran on another processor.
class OnProcessor {
 public:
  explicit OnProcessor(int64_t target) { bind(target); }
  ~OnProcessor() { bind(0); }
  OnProcessor(const OnProcessor&) = delete;
  OnProcessor& operator=(const OnProcessor&) = delete;

 private:
  static void bind(int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

TEST(ReplicaCheck, OneDecisionHoldsOnMixedProcessors) {
  const std::vector<int64_t> targets = hwy::SupportedAndGeneratedTargets();
  for (const test::ParallelLayout& layout : layouts_of(test::job().size())) {
    SCOPED_TRACE(testing::Message() << layout << ", rank " << test::job().rank());
    Mesh mesh(test::job(), layout.mesh);
    test::TinyModel tiny(config_of(PrecisionPreset::fp32), 1, layout.on(mesh));
    const OnProcessor mine(targets[static_cast<size_t>(test::job().rank()) % targets.size()]);
    for (int64_t step = 0; step < 5; ++step) {
      const StepState state = tiny.stepper.run(4 * step, 1e-2);
      tiny.stepper.wait_for_weights();
      EXPECT_LT(state.clip_scale, 1.0f);
      const std::string bytes(reinterpret_cast<const char*>(&state), sizeof(state));
      EXPECT_THAT(test::job().exchange(bytes), Each(test::job().exchange(bytes).front()))
          << "step " << step;
    }
  }
}

}  // namespace
}  // namespace gradus
