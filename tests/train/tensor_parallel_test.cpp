// Tensor and sequence parallel training gives what one rank gives: every parameter's gradient,
// whole loss curves, and checkpoints that any layout reads.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "kernels/elementwise.h"
#include "mpi_job.h"
#include "support/temp_dir.h"
#include "support/tensors.h"
#include "support/tiny_model.h"
#include "train/run_checkpoint.h"

namespace gradus {
namespace {

struct Layout {
  const char* name;
  bool sequence = false;
  bool bias = true;
  bool tied = true;
  Recompute recompute = Recompute::none;
  double dropout = 0.0;
};

std::ostream& operator<<(std::ostream& out, const Layout& layout) { return out << layout.name; }

/// Sizes that 1, 2, 3 and 4 ranks divide, and a vocabulary that none of them does.
Config config_for(const Layout& layout, PrecisionPreset precision) {
  Config config;
  config.seed = 7;
  config.model = {.layers = 2,
                  .channels = 36,
                  .heads = 12,
                  .context = 12,
                  .mlp_width = 60,
                  .dropout = layout.dropout,
                  .bias = layout.bias,
                  .tied_embeddings = layout.tied,
                  .vocab_size = 29};
  config.optim.clip_norm = 0.5;
  config.train.micro_batch = 3;
  config.train.global_batch = 6;
  config.train.precision = precision;
  config.train.recompute = layout.recompute;
  return config;
}

class TensorParallelTraining : public testing::TestWithParam<Layout> {
 protected:
  /// The whole model on this rank.
  test::TinyModel whole(const Layout& layout, PrecisionPreset precision) const {
    return test::TinyModel(config_for(layout, precision), 1);
  }
  /// This rank's part of it.
  test::TinyModel part(const Layout& layout, PrecisionPreset precision) {
    return test::TinyModel(config_for(layout, precision), 1, *world_, layout.sequence);
  }
  Communicator& world() { return *world_; }
  /// The first rank's path, on every rank.
  std::filesystem::path shared_path(Executor& x, const std::filesystem::path& path) {
    std::string text = path.string();
    text.resize(4096);
    world().broadcast(x, Tensor(text.data(), DType::u8, Device::cpu, {4096}), 0).wait(x);
    return text.c_str();
  }

 private:
  std::unique_ptr<Communicator> world_ = test::job().split(0, "world");
};

/// The part of a whole tensor that this rank holds of it; a rank may hold padding alone.
ConstTensor held_part(const Parameter& held, const ConstTensor& whole) {
  const Tensor mine = held.logical(held.value);
  if (held.spec.cut == TpCut::none) return whole;
  const int axis = held.spec.cut == TpCut::rows ? 0 : 1;
  return whole.slice(axis, std::min(held.row_begin, whole.size(axis)), mine.size(axis));
}

/// Largest difference of this rank's part from the same part of the whole, over the whole's
/// magnitude.
double difference(const Parameter& part, const ConstTensor& whole) {
  const Tensor mine = part.logical(part.grad);
  const ConstTensor expected = held_part(part, whole);
  double worst = 0.0;
  double largest = 0.0;
  for (int64_t i = 0; i < whole.numel(); ++i) {
    largest = std::max(largest, std::abs(test::get_value(whole, i)));
  }
  for (int64_t i = 0; i < mine.numel(); ++i) {
    worst = std::max(worst, std::abs(test::get_value(mine, i) - test::get_value(expected, i)));
  }
  return largest < 1e-12 ? worst : worst / largest;
}

TEST_P(TensorParallelTraining, GradientsAndLossCurveAreThoseOfOneRank) {
  test::TinyModel one = whole(GetParam(), PrecisionPreset::fp64);
  test::TinyModel many = part(GetParam(), PrecisionPreset::fp64);
  for (uint64_t step = 0; step < 6; ++step) {
    for (test::TinyModel* tiny : {&one, &many}) tiny->fill_batch(step);
    const auto first_sample = static_cast<int64_t>(step) * 6;
    const StepState expected = one.stepper.run(first_sample, 1e-2);
    const StepState state = many.stepper.run(first_sample, 1e-2);
    // Sums over ranks have another order than sums within one.
    EXPECT_NEAR(state.loss, expected.loss, 1e-10 * expected.loss) << "step " << step;
    EXPECT_NEAR(state.grad_norm, expected.grad_norm, 1e-9 * expected.grad_norm) << "step " << step;
    EXPECT_EQ(state.applied, expected.applied);
    for (const Parameter& held : many.model.parameters().all()) {
      const Parameter& all = one.model.parameters()[held.spec.name];
      EXPECT_LE(difference(held, all.logical(all.grad)), 1e-8)
          << held.spec.name << ", step " << step;
    }
  }
}

TEST_P(TensorParallelTraining, Fp32AndBf16StayWithinRoundingOfOneRank) {
  for (const auto& [precision, tolerance] :
       {std::pair{PrecisionPreset::fp32, 1e-5}, std::pair{PrecisionPreset::bf16, 2e-2}}) {
    test::TinyModel one = whole(GetParam(), precision);
    test::TinyModel many = part(GetParam(), precision);
    for (uint64_t step = 0; step < 4; ++step) {
      for (test::TinyModel* tiny : {&one, &many}) tiny->fill_batch(step);
      const auto first_sample = static_cast<int64_t>(step) * 6;
      const double expected = one.stepper.run(first_sample, 1e-3).loss;
      EXPECT_NEAR(many.stepper.run(first_sample, 1e-3).loss, expected, tolerance * expected)
          << to_string(precision) << ", step " << step;
    }
  }
}

TEST_P(TensorParallelTraining, SequenceParallelismKeepsLessAndReplicasStayEqual) {
  test::TinyModel many = part(GetParam(), PrecisionPreset::fp32);
  Layout whole_sequences = GetParam();
  whole_sequences.sequence = false;
  test::TinyModel without = part(whole_sequences, PrecisionPreset::fp32);
  const auto saved = [](const test::TinyModel& tiny) {
    return tiny.model.arena().plan().bytes_of(Lifetime::Kind::saved);
  };
  if (GetParam().sequence && world().size() > 1) {
    EXPECT_LT(saved(many), saved(without));
  }

  for (uint64_t step = 0; step < 3; ++step) {
    many.fill_batch(step);
    many.stepper.run(static_cast<int64_t>(step) * 6, 1e-2);
  }
  // What every rank has whole must be the same to the bit: nothing ever brings it together again.
  for (const Parameter& parameter : many.model.parameters().all()) {
    if (parameter.spec.cut != TpCut::none) continue;
    std::vector<float> first(static_cast<size_t>(parameter.numel()));
    std::copy_n(parameter.value.as<float>(), parameter.numel(), first.begin());
    const Tensor received(first.data(), DType::fp32, Device::cpu, {parameter.numel()});
    world().broadcast(many.x, received, 0).wait(many.x);
    EXPECT_EQ(test::values(received), test::values(parameter.value.reshape({-1})))
        << parameter.spec.name;
  }
}

TEST_P(TensorParallelTraining, CheckpointsAreReadByEveryLayoutToTheBit) {
  test::TempDir folder;  // the first rank's is the one in use
  const auto tokenizer = build_tokenizer("bytes", {});
  for (const PrecisionPreset precision : {PrecisionPreset::fp32, PrecisionPreset::bf16}) {
    test::TinyModel saved = part(GetParam(), precision);
    for (uint64_t step = 0; step < 2; ++step) {
      saved.fill_batch(step);
      saved.stepper.run(static_cast<int64_t>(step) * 6, 1e-2);
    }
    const std::filesystem::path run = shared_path(saved.x, folder.path()) / to_string(precision);
    save_run(run, {.step = 2, .samples = 12}, saved.config, *tokenizer, saved.model, &world());

    test::TinyModel one = whole(GetParam(), precision);
    test::TinyModel many = part(GetParam(), precision);
    std::vector<std::string> refused;
    const Checkpoint checkpoint = open_checkpoint(run, refused);
    for (test::TinyModel* tiny : {&one, &many}) {
      EXPECT_EQ(load_run(checkpoint, tiny->model).samples, 12);
      EXPECT_EQ(tiny->model.optimizer().state().applied, 2);
    }
    for (const Parameter& held : saved.model.parameters().all()) {
      const Parameter& all = one.model.parameters()[held.spec.name];
      const Parameter& again = many.model.parameters()[held.spec.name];
      for (const auto view :
           {&Optimizer::master, &Optimizer::first_moment, &Optimizer::second_moment}) {
        const auto of = [&](const test::TinyModel& tiny, const Parameter& parameter) {
          return parameter.logical((tiny.model.optimizer().*view)(parameter));
        };
        const auto expected = test::values(of(saved, held));
        EXPECT_EQ(test::values(of(many, again)), expected) << held.spec.name;
        EXPECT_EQ(test::values(held_part(held, of(one, all))), expected) << held.spec.name;
      }
    }
    world().barrier(saved.x).wait(saved.x);  // nobody's folder goes while another reads
  }
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, TensorParallelTraining,
    testing::Values(
        Layout{.name = "tensor"}, Layout{.name = "sequence", .sequence = true},
        Layout{.name = "untied_no_bias", .bias = false, .tied = false},
        Layout{.name = "sequence_untied_no_bias", .sequence = true, .bias = false, .tied = false},
        Layout{.name = "dropout", .dropout = 0.2},
        Layout{.name = "sequence_dropout_full",
               .sequence = true,
               .recompute = Recompute::full,
               .dropout = 0.2},
        Layout{.name = "sequence_dropout_selective",
               .sequence = true,
               .recompute = Recompute::selective,
               .dropout = 0.2}),
    [](const auto& parameter) { return std::string(parameter.param.name); });

}  // namespace
}  // namespace gradus
