// The step against other ways to the same numbers: other cuts of the batch, other numbers of
// threads, losses added up one sequence at a time.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "core/error.h"
#include "data/prepare.h"
#include "kernels/elementwise.h"
#include "support/temp_dir.h"
#include "support/tensors.h"
#include "support/tiny_model.h"
#include "support/tolerances.h"

namespace gradus {
namespace {

using test::TinyModel;

Config config_for(int64_t micro_batch, PrecisionPreset precision = PrecisionPreset::fp64) {
  Config config = test::tiny_config();
  config.model.channels = 20;
  config.model.heads = 4;
  config.model.context = 9;
  config.model.mlp_width = 37;
  config.model.vocab_size = 41;
  config.model.dropout = 0.3;
  config.train.precision = precision;
  config.train.micro_batch = micro_batch;
  config.train.global_batch = 12;
  return config;
}

/// Outcome and gradients of the first step.
struct Step {
  StepState state;
  std::map<std::string, std::vector<double>> gradients;

  explicit Step(const Config& config, int threads = 2) {
    TinyModel tiny(config, threads);
    // Biases and layernorms away from the 0 and 1 that an untrained model has.
    for (const Parameter& parameter : tiny.model.parameters().all()) {
      const Tensor w = parameter.logical(tiny.model.optimizer().master(parameter));
      for (int64_t i = 0; i < w.numel(); ++i) {
        test::set_value(w, i, test::get_value(w, i) + 0.01 * static_cast<double>(i % 7 - 3));
      }
    }
    tiny.model.optimizer().publish_master(tiny.x);
    state = tiny.stepper.run(1000, 1e-3);
    for (const Parameter& parameter : tiny.model.parameters().all()) {
      gradients[parameter.spec.name] = test::values(parameter.logical(parameter.grad));
    }
  }
};

/// Gradients that are zero by mathematics (the key bias's: softmax does not see what all scores of
/// a row share) are rounding and nothing else: measured by the model's largest gradient.
bool zero_by_mathematics(const std::string& name) { return name.ends_with("attention.k.bias"); }

void expect_same_step(const Step& a, const Step& b, double tolerance) {
  EXPECT_NEAR(a.state.loss, b.state.loss, tolerance * b.state.loss);
  EXPECT_NEAR(a.state.grad_norm, b.state.grad_norm, tolerance * b.state.grad_norm);
  const auto magnitude = [](const std::vector<double>& values) {
    double largest = 0.0;
    for (const double value : values) largest = std::max(largest, std::abs(value));
    return largest;
  };
  double largest_of_all = 0.0;
  for (const auto& [name, values] : b.gradients) {
    largest_of_all = std::max(largest_of_all, magnitude(values));
  }
  for (const auto& [name, expected] : b.gradients) {
    const std::vector<double>& actual = a.gradients.at(name);
    ASSERT_EQ(actual.size(), expected.size());
    double worst = 0.0;
    for (size_t i = 0; i < expected.size(); ++i) {
      worst = std::max(worst, std::abs(actual[i] - expected[i]));
    }
    const double scale = zero_by_mathematics(name) ? largest_of_all : magnitude(expected);
    EXPECT_GT(scale, 0.0) << name;
    EXPECT_LE(worst, tolerance * scale) << name;
  }
}

TEST(Step, DoesNotDependOnHowTheBatchIsCut) {
  const Step whole(config_for(12));
  for (const int64_t micro_batch : {1, 3, 4}) {
    SCOPED_TRACE(micro_batch);
    expect_same_step(Step(config_for(micro_batch)), whole, test::layout_tolerance(DType::fp64));
  }
}

TEST(Step, DoesNotDependOnTheNumberOfThreads) {
  for (const auto& [precision, dtype] : {std::pair{PrecisionPreset::fp64, DType::fp64},
                                         std::pair{PrecisionPreset::fp32, DType::fp32}}) {
    const Step one(config_for(4, precision), 1);
    for (const int threads : {2, 3, 8}) {
      SCOPED_TRACE(threads);
      expect_same_step(Step(config_for(4, precision), threads), one, test::layout_tolerance(dtype));
    }
  }
}

TEST(Step, CountsTargetsOverTheWholeBatch) {
  // Micro-batches with very different numbers of targets: a mean of their means is another number.
  Config config = config_for(3);
  config.model.dropout = 0.0;
  TinyModel tiny(config);
  int32_t* targets = tiny.model.targets().as<int32_t>();
  const int64_t T = config.model.context;
  std::fill(targets, targets + 3 * T, -1);
  targets[5] = 7;
  std::fill(targets + 6 * T, targets + 9 * T, -1);
  const int64_t count = tiny.target_count();
  const StepState state = tiny.stepper.run(0, 0.0);

  Config single = config;
  single.train.micro_batch = 1;
  single.train.global_batch = 1;
  TinyModel row(single);
  double sum = 0.0;
  for (int64_t i = 0; i < 12; ++i) {
    std::copy_n(tiny.model.tokens().as<int32_t>() + i * T, T, row.model.tokens().as<int32_t>());
    std::copy_n(targets + i * T, T, row.model.targets().as<int32_t>());
    fill(row.x, row.model.loss(), 0.0);
    row.model.gpt().forward(row.x,
                            {.tokens = row.model.tokens(),
                             .targets = row.model.targets(),
                             .loss_sum = row.model.loss()},
                            row.hooks);
    sum += *row.model.loss().as<double>();
  }
  EXPECT_NEAR(state.loss, sum / static_cast<double>(count), 1e-12 * state.loss);
}

TEST(Step, IsRefusedWithoutATarget) {
  TinyModel tiny(config_for(4));
  int32_t* targets = tiny.model.targets().as<int32_t>();
  std::fill(targets, targets + tiny.model.targets().numel(), -1);
  try {
    tiny.stepper.run(24, 1e-3);
    FAIL() << "a step without a target was taken";
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(),
                testing::HasSubstr("the batch at sample 24 has no target to learn from"));
  }
  EXPECT_EQ(tiny.model.optimizer().state().attempted, 0);
}

/// Validation text of 7 whole sequences of T = 9 and a rest.
class Evaluation : public testing::Test {
 protected:
  static constexpr int64_t kSamples = 7;
  static constexpr int64_t kContext = 9;

  Loader validation() const {
    std::string text;
    for (int64_t i = 0; i < 2 * (kSamples * kContext + 5); ++i) {
      text += static_cast<char>('A' + (i * i + i / 7) % 31);
    }
    prepare({.inputs = {test::write_file(dir_ / "text.txt", text)},
             .out_dir = dir_ / "data",
             .val_fraction = 0.5});
    Loader loader({.paths = {dir_ / "data"},
                   .split = Split::kVal,
                   .context = kContext,
                   .order = SampleOrder::kSequential});
    EXPECT_EQ(loader.samples_per_epoch(), kSamples);
    return loader;
  }

  /// Sum of the losses of sequences [0, samples), each run by itself.
  static double loss_sum(const Loader& loader, int64_t samples) {
    Config config = config_for(1);
    config.train.global_batch = 1;
    TinyModel tiny(config);
    double sum = 0.0;
    std::vector<int32_t> tokens(kContext);
    std::vector<int32_t> targets(kContext);
    for (int64_t i = 0; i < samples; ++i) {
      loader.read(i, tokens, targets);
      std::ranges::copy(tokens, tiny.model.tokens().as<int32_t>());
      std::ranges::copy(targets, tiny.model.targets().as<int32_t>());
      fill(tiny.x, tiny.model.loss(), 0.0);
      tiny.model.gpt().forward(tiny.x,
                               {.tokens = tiny.model.tokens(),
                                .targets = tiny.model.targets(),
                                .loss_sum = tiny.model.loss()},
                               tiny.hooks);
      sum += *tiny.model.loss().as<double>();
    }
    return sum;
  }

 private:
  test::TempDir dir_;
};

TEST_F(Evaluation, IsTheMeanOverEveryTargetOfAPartialLastBatchToo) {
  const Loader loader = validation();
  TinyModel tiny(config_for(3));  // 7 sequences: 3, 3 and 1
  struct Expected {
    EvalTokens tokens;
    int64_t samples;
  };
  constexpr int64_t kLarge = std::numeric_limits<int64_t>::max();
  for (const auto& [tokens, samples] :
       {Expected{{1}, 1}, Expected{{9}, 1}, Expected{{10}, 2}, Expected{{27}, 3}, Expected{{28}, 4},
        Expected{{62}, 7}, Expected{{63}, 7}, Expected{{64}, 7}, Expected{{kLarge}, 7},
        Expected{{}, 7}}) {
    const auto result = tiny.stepper.evaluate(loader, tokens);
    EXPECT_EQ(result.targets, samples * kContext);
    const double mean = loss_sum(loader, samples) / static_cast<double>(samples * kContext);
    EXPECT_NEAR(result.loss, mean, 1e-12 * mean) << tokens.count.value_or(-1) << " tokens";
  }
}

TEST_F(Evaluation, DependsOnNeitherTheMicroBatchNorTheAccumulation) {
  const Loader loader = validation();
  for (const PrecisionPreset precision : {PrecisionPreset::fp64, PrecisionPreset::fp32}) {
    const bool exact = precision == PrecisionPreset::fp64;
    for (const EvalTokens& tokens : {EvalTokens{1}, EvalTokens{40}, EvalTokens{}}) {
      TinyModel one(config_for(1, precision));
      const auto expected = one.stepper.evaluate(loader, tokens);
      for (const int64_t micro_batch : {2, 3, 4, 6, 12}) {
        TinyModel tiny(config_for(micro_batch, precision));
        const auto result = tiny.stepper.evaluate(loader, tokens);
        EXPECT_EQ(result.targets, expected.targets);
        EXPECT_NEAR(result.loss, expected.loss, (exact ? 1e-12 : 1e-6) * expected.loss)
            << to_string(precision) << ", micro_batch " << micro_batch;
      }
    }
  }
}

TEST_F(Evaluation, OfAModelThatKnowsNothingIsTheLogarithmOfTheVocabulary) {
  const Loader loader = validation();
  TinyModel tiny(config_for(3));
  for (const Bucket& bucket : tiny.model.parameters().buckets()) fill(tiny.x, bucket.value, 0.0);
  EXPECT_DOUBLE_EQ(tiny.stepper.evaluate(loader, {}).loss, std::log(41.0));
}

TEST_F(Evaluation, LeavesTrainingAsItWas) {
  const Loader loader = validation();
  const auto weights_after = [&](bool evaluate) {
    TinyModel tiny(config_for(3));
    std::vector<double> weights;
    for (uint64_t step = 0; step < 3; ++step) {
      if (evaluate) tiny.stepper.evaluate(loader, {});
      tiny.fill_batch(step);
      tiny.stepper.run(static_cast<int64_t>(step) * 12, 1e-2);
    }
    for (const Bucket& bucket : tiny.model.parameters().buckets()) {
      const auto values = test::values(bucket.value);
      weights.insert(weights.end(), values.begin(), values.end());
    }
    return weights;
  };
  EXPECT_EQ(weights_after(true), weights_after(false));
}

}  // namespace
}  // namespace gradus
