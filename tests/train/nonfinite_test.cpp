// A step with a value that is not finite changes nothing, is counted, and the first bad tensor is
// named.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "support/tensors.h"
#include "support/tiny_model.h"

namespace gradus {
namespace {

using test::TinyModel;
using testing::HasSubstr;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

Config config_for(PrecisionPreset precision) {
  Config config = test::tiny_config();
  config.model.dropout = 0.1;
  config.model.tied_embeddings = false;
  config.train.precision = precision;
  config.train.global_batch = 6;
  return config;
}

/// Sets every element of a weight, or its i-th alone.
void set_weight(TinyModel& tiny, const std::string& name, double value, int64_t i = -1) {
  const Parameter& parameter = tiny.model.parameters()[name];
  const Tensor weight = parameter.logical(tiny.model.optimizer().master(parameter));
  for (int64_t j = 0; j < weight.numel(); ++j) {
    if (i < 0 || i == j) test::set_value(weight, j, value);
  }
  tiny.model.optimizer().publish_master(tiny.x);
}

/// The bytes of all weights and moments.
std::vector<std::byte> training_bytes(const TinyModel& tiny) {
  std::vector<std::byte> bytes;
  const Optimizer& optimizer = tiny.model.optimizer();
  for (const Parameter& parameter : tiny.model.parameters().all()) {
    for (const Tensor& tensor :
         {parameter.value, optimizer.master(parameter), optimizer.first_moment(parameter),
          optimizer.second_moment(parameter)}) {
      bytes.insert(bytes.end(), tensor.data(), tensor.data() + tensor.bytes());
    }
  }
  return bytes;
}

class NonFinite : public testing::TestWithParam<PrecisionPreset> {};

TEST_P(NonFinite, StepsChangeNothingAndAreCounted) {
  TinyModel tiny(config_for(GetParam()));
  StepState state = tiny.stepper.run(0, 1e-2);
  ASSERT_EQ(state.nonfinite, 0);
  const double good = test::get_value(
      tiny.model.optimizer().master(tiny.model.parameters()["block.1.mlp.up.weight"]), 5);
  for (const double bad : {kNaN, std::numeric_limits<double>::infinity()}) {
    const StepState before = state;
    set_weight(tiny, "block.1.mlp.up.weight", bad, 5);
    const auto bytes = training_bytes(tiny);
    for (int32_t in_row = 1; in_row <= 2; ++in_row) {
      state = tiny.stepper.run(6 * in_row, 1e-2);
      EXPECT_EQ(state.nonfinite, 1);
      EXPECT_EQ(state.attempted, before.attempted + in_row);
      EXPECT_EQ(state.applied, before.applied);
      EXPECT_EQ(state.skipped, before.skipped + in_row);
      EXPECT_EQ(state.skipped_in_row, in_row);
      EXPECT_FALSE(std::isfinite(state.loss) && std::isfinite(state.grad_norm));
      EXPECT_TRUE(training_bytes(tiny) == bytes);
      EXPECT_EQ(tiny.stepper.find_nonfinite(),
                "the weights of block.1.mlp.up.weight are not finite");
      EXPECT_TRUE(training_bytes(tiny) == bytes) << "by the search";
    }
    set_weight(tiny, "block.1.mlp.up.weight", good, 5);
    state = tiny.stepper.run(18, 1e-2);
    EXPECT_EQ(state.nonfinite, 0);
    EXPECT_EQ(state.applied, before.applied + 1);
    EXPECT_EQ(state.skipped, before.skipped + 2);
    EXPECT_EQ(state.skipped_in_row, 0);
    EXPECT_FALSE(training_bytes(tiny) == bytes);
  }
}

TEST_P(NonFinite, SkippedStepsLeaveNoTrace) {
  const auto weights_after = [](bool with_bad_step) {
    TinyModel tiny(config_for(GetParam()));
    tiny.stepper.run(0, 1e-2);
    if (with_bad_step) {
      const double good =
          test::get_value(tiny.model.optimizer().master(tiny.model.parameters()["ln_f.weight"]), 0);
      set_weight(tiny, "ln_f.weight", kNaN, 0);
      EXPECT_EQ(tiny.stepper.run(6, 1e-2).nonfinite, 1);
      set_weight(tiny, "ln_f.weight", good, 0);
    }
    tiny.stepper.run(12, 1e-2);
    return training_bytes(tiny);
  };
  EXPECT_TRUE(weights_after(true) == weights_after(false));
}

INSTANTIATE_TEST_SUITE_P(Precisions, NonFinite,
                         testing::Values(PrecisionPreset::fp64, PrecisionPreset::fp32,
                                         PrecisionPreset::bf16, PrecisionPreset::bf16_lean),
                         [](const auto& c) { return std::string(to_string(c.param)); });

/// Finite weights with which one operation of the step overflows, and none before it.
struct Overflow {
  const char* name;
  std::function<void(TinyModel&)> provoke;
  const char* message;
};

std::ostream& operator<<(std::ostream& out, const Overflow& overflow) {
  return out << overflow.name;
}

class FirstBadTensor : public testing::TestWithParam<Overflow> {};

TEST_P(FirstBadTensor, IsNamedWithTheOperationThatWroteIt) {
  TinyModel tiny(config_for(PrecisionPreset::fp32));
  GetParam().provoke(tiny);
  EXPECT_EQ(tiny.stepper.run(0, 1e-2).nonfinite, 1);
  EXPECT_THAT(tiny.stepper.find_nonfinite(), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    Operations, FirstBadTensor,
    testing::Values(
        Overflow{"layernorm",
                 [](TinyModel& tiny) {
                   for (int64_t i = 0; i < 13 * 6; ++i) {
                     set_weight(tiny, "embedding.token.weight", i % 2 == 0 ? 1e30 : -1e30, i);
                   }
                 },
                 "layernorm_forward wrote a non-finite value to block.0.ln1"},
        Overflow{"up",
                 [](TinyModel& tiny) {
                   for (int64_t i = 0; i < 11 * 6; ++i) {
                     set_weight(tiny, "block.1.mlp.up.weight", i % 5 == 0 ? 3e38 : -3e38, i);
                   }
                 },
                 "matmul_forward wrote a non-finite value to block.1.up"},
        Overflow{"logits",
                 [](TinyModel& tiny) {
                   for (int64_t i = 0; i < 13 * 6; ++i) {
                     set_weight(tiny, "head.weight", i % 5 == 0 ? 3e38 : -3e38, i);
                   }
                 },
                 "matmul_forward wrote a non-finite value to head.logits"},
        // Keys of 1e38 under queries of 0: scores are finite, and the gradient of a query is not.
        Overflow{"query_gradient",
                 [](TinyModel& tiny) {
                   const std::string attention = "block.1.attention.";
                   set_weight(tiny, attention + "q.weight", 0.0);
                   set_weight(tiny, attention + "q.bias", 0.0);
                   for (int64_t i = 0; i < 36; ++i) {
                     set_weight(tiny, attention + "k.weight", i % 5 == 0 ? 3e37 : -2e37, i);
                     set_weight(tiny, attention + "v.weight", i % 4 == 0 ? 300.0 : -200.0, i);
                     set_weight(tiny, attention + "out.weight", i % 3 == 0 ? 0.1 : -0.05, i);
                   }
                   for (int64_t i = 0; i < 13 * 6; ++i) {
                     set_weight(tiny, "head.weight", i % 5 == 0 ? 3e4 : -2e4, i);
                   }
                 },
                 "attention_backward wrote a non-finite value to shared.d_qkv"}),
    [](const auto& c) { return std::string(c.param.name); });

TEST(NonFiniteNorm, OfFiniteGradientsIsSaidToBeOne) {
  TinyModel tiny(config_for(PrecisionPreset::fp64));
  for (int64_t i = 0; i < 13 * 6; ++i) {
    set_weight(tiny, "head.weight", i % 5 == 0 ? 1e200 : -1e200, i);
  }
  const StepState state = tiny.stepper.run(0, 1e-2);
  EXPECT_EQ(state.nonfinite, 1);
  EXPECT_TRUE(std::isfinite(state.loss));
  EXPECT_EQ(tiny.stepper.find_nonfinite(),
            "every tensor of the step is finite: the sum of squares of the gradients overflowed");
}

}  // namespace
}  // namespace gradus
