// Whatever the layout of the ranks, training is that of one rank: every parameter's gradient, the
// norm, whole loss curves, evaluation, and checkpoints that any other layout reads.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "data/prepare.h"
#include "mpi_job.h"
#include "parallel/gather_values.h"
#include "parallel/mesh.h"
#include "support/temp_dir.h"
#include "support/tensors.h"
#include "support/tiny_model.h"
#include "train/held_values.h"
#include "train/run_checkpoint.h"

namespace gradus {
namespace {

struct Layout {
  MeshShape mesh;
  bool sequence = false;
  int64_t zero = 1;
  bool bias = true;
  bool tied = true;
  Recompute recompute = Recompute::none;
  double dropout = 0.0;
  int64_t micro_batch = 2;
};

std::ostream& operator<<(std::ostream& out, const Layout& l) {
  return out << to_string(l.mesh) << (l.sequence ? ", sequence" : "") << ", ZeRO-" << l.zero
             << (l.bias ? "" : ", no bias") << (l.tied ? "" : ", untied") << ", recompute "
             << to_string(l.recompute) << ", dropout " << l.dropout << ", micro-batch "
             << l.micro_batch;
}

/// The layouts tried with so many ranks. Together: every kind of parallelism alone and with every
/// other, each with dropout, each recompute setting, with and without biases, tied and untied.
std::vector<Layout> layouts_of(int ranks) {
  constexpr auto kFull = Recompute::full;
  constexpr auto kSelective = Recompute::selective;
  switch (ranks) {
    case 1:
      return {{.dropout = 0.2}};
    case 2:
      return {{.mesh = {.tp = 2}},
              {.mesh = {.tp = 2}, .bias = false, .tied = false},
              {.mesh = {.tp = 2}, .dropout = 0.2},
              {.mesh = {.tp = 2}, .sequence = true},
              {.mesh = {.tp = 2}, .sequence = true, .bias = false, .tied = false},
              {.mesh = {.tp = 2}, .sequence = true, .recompute = kSelective, .dropout = 0.2},
              {.mesh = {.dp = 2}, .zero = 0, .dropout = 0.2},
              {.mesh = {.dp = 2}, .zero = 1, .recompute = kFull, .dropout = 0.2},
              {.mesh = {.dp = 2}, .zero = 2, .dropout = 0.2},
              {.mesh = {.dp = 2}, .zero = 2, .bias = false, .tied = false},
              {.mesh = {.dp = 2}, .zero = 1, .micro_batch = 6},
              {.mesh = {.pp = 2}, .dropout = 0.2},
              {.mesh = {.pp = 2}, .bias = false, .tied = false, .recompute = kFull},
              {.mesh = {.pp = 2}, .micro_batch = 12}};
    case 3:
      return {{.mesh = {.tp = 3}, .dropout = 0.2},
              {.mesh = {.tp = 3}, .sequence = true, .recompute = kFull, .dropout = 0.2},
              {.mesh = {.dp = 3}, .zero = 0},
              {.mesh = {.dp = 3}, .zero = 1, .bias = false, .tied = false},
              {.mesh = {.dp = 3}, .zero = 2, .dropout = 0.2},
              {.mesh = {.pp = 3}, .recompute = kSelective, .dropout = 0.2, .micro_batch = 1}};
    case 4:
      return {{.mesh = {.tp = 4}},
              {.mesh = {.tp = 4}, .sequence = true, .recompute = kFull, .dropout = 0.2},
              {.mesh = {.dp = 2, .tp = 2}, .sequence = true, .zero = 1, .dropout = 0.2},
              {.mesh = {.dp = 2, .tp = 2}, .sequence = true, .zero = 2, .tied = false},
              {.mesh = {.dp = 2, .tp = 2}, .zero = 0},
              {.mesh = {.pp = 2, .tp = 2}, .sequence = true, .dropout = 0.2},
              {.mesh = {.pp = 2, .tp = 2}, .tied = false},
              {.mesh = {.pp = 2, .dp = 2}, .zero = 0},
              {.mesh = {.pp = 2, .dp = 2}, .zero = 1, .recompute = kSelective, .dropout = 0.2},
              {.mesh = {.pp = 2, .dp = 2}, .zero = 2, .dropout = 0.2, .micro_batch = 1},
              {.mesh = {.pp = 4}, .dropout = 0.2},
              {.mesh = {.pp = 4}, .tied = false, .micro_batch = 6}};
    case 8:
      return {{.mesh = {.pp = 2, .dp = 2, .tp = 2}, .sequence = true, .zero = 1, .dropout = 0.2},
              {.mesh = {.pp = 2, .dp = 2, .tp = 2},
               .sequence = true,
               .zero = 2,
               .recompute = kSelective,
               .dropout = 0.2},
              {.mesh = {.pp = 2, .dp = 2, .tp = 2}, .zero = 0, .tied = false}};
    default:
      return {};
  }
}

constexpr int64_t kGlobalBatch = 12;

/// Sizes that 1, 2, 3 and 4 ranks divide, a vocabulary that none of them does, and an odd number of
/// layers.
Config config_for(const Layout& layout, PrecisionPreset precision) {
  Config config;
  config.seed = 7;
  config.model = {.layers = 5,
                  .channels = 36,
                  .heads = 12,
                  .context = 12,
                  .mlp_width = 60,
                  .dropout = layout.dropout,
                  .bias = layout.bias,
                  .tied_embeddings = layout.tied,
                  .vocab_size = 29};
  config.optim.clip_norm = 0.5;
  config.train.micro_batch = layout.micro_batch;
  config.train.global_batch = kGlobalBatch;
  config.train.precision = precision;
  config.train.recompute = layout.recompute;
  return config;
}

/// The whole model on this rank alone.
test::TinyModel whole(const Layout& layout, PrecisionPreset precision) {
  return test::TinyModel(config_for(layout, precision), 1);
}

/// A layout's groups and this rank's part of the model in it.
struct Part {
  Part(const Layout& layout, PrecisionPreset precision)
      : mesh(test::job(), layout.mesh),
        tiny(config_for(layout, precision), 1,
             Parallelism(mesh, {.sequence = layout.sequence, .zero = layout.zero})) {}

  Mesh mesh;
  test::TinyModel tiny;
};

StepState step(test::TinyModel& tiny, uint64_t number, double lr) {
  tiny.fill_batch(number);
  return tiny.stepper.run(static_cast<int64_t>(number) * kGlobalBatch, lr);
}

/// Largest difference of this rank's part of a gradient from the whole one, over its magnitude.
double difference(const test::TinyModel& many, const Parameter& held, const ConstTensor& whole) {
  double largest = 0.0;
  for (int64_t i = 0; i < whole.numel(); ++i) {
    largest = std::max(largest, std::abs(test::get_value(whole, i)));
  }
  double worst = 0.0;
  for_each_held(held, many.model.optimizer().held(held, Optimizer::Kind::gradient),
                [&](int64_t i, double value) {
                  worst = std::max(worst, std::abs(value - test::get_value(whole, i)));
                });
  return largest < 1e-12 ? worst : worst / largest;
}

template <typename Body>
void for_each_layout(Body&& body) {
  for (const Layout& layout : layouts_of(test::job().size())) {
    SCOPED_TRACE(testing::Message() << layout << ", rank " << test::job().rank());
    body(layout);
  }
}

/// Failures of the test so far, on this rank.
int failures() {
  return testing::UnitTest::GetInstance()->current_test_info()->result()->total_part_count();
}

/// Whether it is true on any rank.
bool anywhere(bool mine) {
  const std::vector<std::string> all = test::job().exchange(mine ? "true" : "false");
  return std::ranges::count(all, "true") > 0;
}

TEST(Layouts, GradientsNormsAndLossCurvesAreThoseOfOneRank) {
  for_each_layout([](const Layout& layout) {
    test::TinyModel one = whole(layout, PrecisionPreset::fp64);
    Part part(layout, PrecisionPreset::fp64);
    test::TinyModel& many = part.tiny;
    const int before = failures();
    for (uint64_t number = 0; number < 5; ++number) {
      const StepState expected = step(one, number, 1e-2);
      const StepState state = step(many, number, 1e-2);
      // Sums over ranks have another order than sums within one, and AdamW carries that on.
      const double tolerance = number == 0 ? 1e-10 : 1e-8;
      EXPECT_NEAR(state.loss, expected.loss, tolerance * expected.loss) << "step " << number;
      EXPECT_NEAR(state.grad_norm, expected.grad_norm, tolerance * expected.grad_norm)
          << "step " << number;
      EXPECT_LT(state.clip_scale, 1.0f) << "clipping must be active";
      EXPECT_EQ(state.applied, expected.applied);
      for (const Parameter& held : many.model.parameters().all()) {
        const Parameter& all = one.model.parameters()[held.spec.name];
        EXPECT_LE(difference(many, held, all.logical(all.grad)), tolerance)
            << held.spec.name << ", step " << number;
      }
      // All later steps would be wrong too, and bury the first.
      if (anywhere(failures() > before)) return;
    }
  });
}

/// One batch, again and again, so that the updates move the loss by far more than rounding does.
TEST(Layouts, Fp32AndBf16StayWithinRoundingOfOneRank) {
  for_each_layout([](const Layout& layout) {
    for (const auto& [precision, tolerance] :
         {std::pair{PrecisionPreset::fp32, 1e-4}, std::pair{PrecisionPreset::bf16, 2e-2}}) {
      test::TinyModel one = whole(layout, precision);
      Part many(layout, precision);
      double first = 0.0;
      double last = 0.0;
      for (int i = 0; i < 6; ++i) {
        last = step(one, 0, 1e-2).loss;
        if (i == 0) first = last;
        EXPECT_NEAR(step(many.tiny, 0, 1e-2).loss, last, tolerance * last)
            << to_string(precision) << ", step " << i;
      }
      EXPECT_LT(last, first * (1.0 - 5.0 * tolerance)) << "the updates must show";
    }
  });
}

/// The first rank's values of a tensor, on every rank of the group.
std::vector<double> first_of(Executor& x, Communicator& group, const Tensor& tensor) {
  std::vector<std::byte> bytes(tensor.data(), tensor.data() + tensor.bytes());
  const Tensor copy(bytes.data(), tensor.dtype(), Device::cpu, tensor.shape());
  group.broadcast(x, copy, 0).wait(x);
  return test::values(copy);
}

TEST(Layouts, ReplicasStayEqualToTheBit) {
  for_each_layout([](const Layout& layout) {
    for (const PrecisionPreset precision : {PrecisionPreset::fp32, PrecisionPreset::bf16}) {
      Part part(layout, precision);
      test::TinyModel& tiny = part.tiny;
      for (uint64_t number = 0; number < 3; ++number) step(tiny, number, 1e-2);
      tiny.stepper.wait_for_weights();
      for (const Parameter& parameter : tiny.model.parameters().all()) {
        const auto mine = test::values(parameter.value);
        EXPECT_EQ(first_of(tiny.x, part.mesh.dp(), parameter.value), mine) << parameter.spec.name;
        if (parameter.spec.cut == TpCut::none) {
          EXPECT_EQ(first_of(tiny.x, part.mesh.tp(), parameter.value), mine) << parameter.spec.name;
        }
      }
      const Bucket& embedding = tiny.model.parameters().buckets().front();
      if (layout.tied && embedding.holding != Holding::none) {
        EXPECT_EQ(first_of(tiny.x, part.mesh.embedding(), embedding.value),
                  test::values(embedding.value));
      }
    }
  });
}

TEST(Layouts, KnowsWhatTheRanksOfItsMachineWillAllocate) {
  for_each_layout([](const Layout& layout) {
    Part part(layout, PrecisionPreset::fp32);
    const int rank = test::job().rank();
    const int64_t mine = part.tiny.model.arena().plan().total_bytes();
    const auto all = gather_values(part.tiny.x, part.mesh.world(), mine);
    for (const int machines : {1, 2}) {
      int64_t others = 0;
      for (int other = rank % machines; other < test::job().size(); other += machines) {
        if (other != rank) others += all[static_cast<size_t>(other)];
      }
      EXPECT_EQ(part.tiny.model.bytes_of_neighbours(rank % machines), others);
    }
  });
}

/// Sums over rows depend on the number of threads in their last bits, and ranks may have different
/// numbers of them: where cores do not divide evenly, or where a machine's settings say so.
TEST(Layouts, TensorParallelRanksWithDifferentThreadsStayEqualToTheBit) {
  const int ranks = test::job().size();
  if (ranks == 1 || ranks == 8) return;  // 8 ranks would have two threads each on few cores
  for (const bool sequence : {false, true}) {
    Config config = config_for({.micro_batch = kGlobalBatch}, PrecisionPreset::fp32);
    config.model.context = 60;  // enough rows for two threads to share them
    Mesh mesh(test::job(), {.tp = ranks});
    test::TinyModel tiny(config, 1 + mesh.tp().rank() % 2,
                         Parallelism(mesh, {.sequence = sequence}));
    for (uint64_t number = 0; number < 3; ++number) step(tiny, number, 1e-2);
    tiny.stepper.wait_for_weights();
    for (const Parameter& parameter : tiny.model.parameters().all()) {
      if (parameter.spec.cut != TpCut::none) continue;
      EXPECT_EQ(first_of(tiny.x, mesh.tp(), parameter.value), test::values(parameter.value))
          << "equal over tp: " << parameter.spec.name << (sequence ? ", sequence" : "");
    }
  }
}

/// What backward keeps must shrink with the tokens that a rank keeps it for.
TEST(Layouts, SequenceParallelismKeepsLess) {
  for_each_layout([](const Layout& layout) {
    if (!layout.sequence) return;
    Layout without = layout;
    without.sequence = false;
    const auto saved = [](const Layout& of) {
      const Part part(of, PrecisionPreset::fp32);
      return part.tiny.model.arena().plan().bytes_of(Lifetime::Kind::saved);
    };
    EXPECT_LT(saved(layout), saved(without));
  });
}

/// Where each replica has one micro-batch, levels sum the same numbers in the same order. With
/// more, level 2 sums replicas before micro-batches.
TEST(Layouts, ZeroLevelsAreEqualToTheBitAndKeepLess) {
  for (Layout layout : layouts_of(test::job().size())) {
    if (layout.mesh.dp == 1) continue;
    for (const bool accumulates : {false, true}) {
      layout.micro_batch = kGlobalBatch / layout.mesh.dp / (accumulates ? 2 : 1);
      SCOPED_TRACE(testing::Message() << layout << ", rank " << test::job().rank());
      std::vector<std::vector<double>> levels;
      std::vector<int64_t> bytes;
      for (const int64_t zero : {0, 1, 2}) {
        layout.zero = zero;
        Part part(layout, PrecisionPreset::bf16);
        std::vector<double> seen;
        for (uint64_t number = 0; number < 3; ++number) {
          const StepState state = step(part.tiny, number, 1e-2);
          seen.push_back(state.loss);
          seen.push_back(state.grad_norm);
        }
        part.tiny.stepper.wait_for_weights();
        for (const Bucket& bucket : part.tiny.model.parameters().buckets()) {
          if (!bucket.value.defined()) continue;
          const auto weights = test::values(bucket.value);
          seen.insert(seen.end(), weights.begin(), weights.end());
        }
        levels.push_back(seen);
        bytes.push_back(part.tiny.model.arena().plan().bytes_of(Lifetime::Kind::persistent));
      }
      EXPECT_EQ(levels[0], levels[1]);
      if (!accumulates) {
        EXPECT_EQ(levels[0], levels[2]);
      }
      EXPECT_LT(bytes[1], bytes[0]);
      // The blocks' two shared gradient buffers pay from three blocks a stage on.
      if (layout.mesh.pp == 1) {
        EXPECT_LT(bytes[2], bytes[1]);
      }
    }
  }
}

/// A corpus and folders that all ranks see; the first rank's are the ones in use.
class SharedFolder {
 public:
  explicit SharedFolder(Communicator& world) : world_(world) {
    std::string text = own_.path().string();
    text.resize(4096);
    world_.broadcast(x_, Tensor(text.data(), DType::u8, Device::cpu, {4096}), 0).wait(x_);
    path_ = text.c_str();
  }
  ~SharedFolder() { meet(); }  // nobody's folder goes while another reads
  SharedFolder(const SharedFolder&) = delete;
  SharedFolder& operator=(const SharedFolder&) = delete;

  void meet() { world_.barrier(x_).wait(x_); }
  const std::filesystem::path& path() const { return path_; }

 private:
  Executor x_{Device::cpu, 1};
  Communicator& world_;
  test::TempDir own_;
  std::filesystem::path path_;
};

/// Every element that this rank's optimizer has, against the whole model's.
void expect_parts_of(const test::TinyModel& whole, const test::TinyModel& part) {
  using Kind = Optimizer::Kind;
  for (const Parameter& held : part.model.parameters().all()) {
    const Parameter& all = whole.model.parameters()[held.spec.name];
    for (const Kind kind : {Kind::master, Kind::first_moment, Kind::second_moment}) {
      const Tensor expected = whole.model.optimizer().held(all, kind).values;
      int64_t wrong = 0;
      for_each_held(held, part.model.optimizer().held(held, kind), [&](int64_t i, double value) {
        wrong += value == test::get_value(expected, i) ? 0 : 1;
      });
      EXPECT_EQ(wrong, 0) << held.spec.name << ", kind " << static_cast<int>(kind);
    }
  }
}

TEST(Layouts, CheckpointsAreReadByEveryLayoutToTheBit) {
  const auto tokenizer = build_tokenizer("bytes", {});
  for_each_layout([&](const Layout& layout) {
    for (const PrecisionPreset precision : {PrecisionPreset::fp32, PrecisionPreset::bf16}) {
      Part saved(layout, precision);
      SharedFolder folder(saved.mesh.world());
      for (uint64_t number = 0; number < 2; ++number) step(saved.tiny, number, 1e-2);
      save_run(folder.path(), {.step = 2, .samples = 24}, saved.tiny.config, *tokenizer, {},
               saved.tiny.model);

      std::vector<std::string> refused;
      const Checkpoint checkpoint = open_checkpoint(folder.path(), refused);
      test::TinyModel one = whole(layout, precision);
      EXPECT_EQ(load_run(checkpoint, one.model).samples, 24);
      EXPECT_EQ(one.model.optimizer().state().applied, 2);
      expect_parts_of(one, saved.tiny);
      for (Layout other : layouts_of(test::job().size())) {
        if (other.bias != layout.bias || other.tied != layout.tied) continue;
        SCOPED_TRACE(testing::Message() << "read by " << other);
        Part many(other, precision);
        load_run(checkpoint, many.tiny.model);
        expect_parts_of(one, many.tiny);
      }
      // The weights that the next step starts from are those of all replicas.
      Part again(layout, precision);
      load_run(checkpoint, again.tiny.model);
      EXPECT_EQ(step(again.tiny, 2, 1e-2).loss, step(saved.tiny, 2, 1e-2).loss);
    }
  });
}

TEST(Layouts, EvaluationIsThatOfOneRank) {
  for_each_layout([](const Layout& layout) {
    Part many(layout, PrecisionPreset::fp64);
    SharedFolder folder(many.mesh.world());
    if (test::job().rank() == 0) {
      std::string text;
      for (int i = 0; i < 400; ++i) text += static_cast<char>('a' + i * i % 23);
      const auto file = test::write_file(folder.path() / "text.txt", text);
      prepare({.inputs = {file}, .out_dir = folder.path() / "data"});
    }
    folder.meet();
    const Loader val({.paths = {folder.path() / "data"},
                      .split = Split::kTrain,
                      .context = many.tiny.config.model.context,
                      .seed = 1,
                      .order = SampleOrder::kSequential});
    Layout sequences = layout;
    sequences.micro_batch = 1;
    test::TinyModel one = whole(sequences, PrecisionPreset::fp64);
    // One sequence, 8, and all 29 of them, which no batch and no number of ranks divides.
    const auto compare = [&](double tolerance) {
      for (const auto& [tokens, count] :
           {std::pair{EvalTokens{1}, 1}, {EvalTokens{12 * 7 + 1}, 8}, {EvalTokens{}, 29}}) {
        const auto expected = one.stepper.evaluate(val, tokens);
        const auto result = many.tiny.stepper.evaluate(val, tokens);
        EXPECT_EQ(result.targets, count * 12);
        EXPECT_EQ(expected.targets, count * 12);
        EXPECT_NEAR(result.loss, expected.loss, tolerance * expected.loss) << count;
      }
    };
    compare(1e-12);
    // The step's weights may still be on their way when evaluation begins. They carry the rounding
    // of a first step of AdamW.
    step(one, 0, 1e-2);
    step(many.tiny, 0, 1e-2);
    compare(1e-9);
  });
}

}  // namespace
}  // namespace gradus
