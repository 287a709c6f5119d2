// Recomputation changes memory and nothing else: gradients and weights are equal to the bit.

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "support/tensors.h"
#include "support/tiny_model.h"

namespace gradus {
namespace {

Config config_for(PrecisionPreset precision, Recompute recompute) {
  Config config = test::tiny_config();
  config.model.layers = 3;
  config.model.channels = 40;
  config.model.heads = 5;
  config.model.context = 19;
  config.model.mlp_width = 71;
  config.model.vocab_size = 101;
  config.model.dropout = 0.2;
  config.train.precision = precision;
  config.train.recompute = recompute;
  config.train.global_batch = 6;
  return config;
}

/// The bytes of every weight after a few steps, and of the last step's gradients.
std::vector<std::byte> bytes_after_steps(const Config& config) {
  test::TinyModel tiny(config);
  for (uint64_t step = 0; step < 3; ++step) {
    tiny.fill_batch(step);
    const StepState state = tiny.stepper.run(static_cast<int64_t>(step) * 6, 1e-2);
    EXPECT_EQ(state.nonfinite, 0);
  }
  std::vector<std::byte> bytes;
  for (const Parameter& parameter : tiny.model.parameters().all()) {
    for (const Tensor& tensor : {tiny.model.optimizer().master(parameter), parameter.grad}) {
      bytes.insert(bytes.end(), tensor.data(), tensor.data() + tensor.bytes());
    }
  }
  return bytes;
}

class Recomputation : public testing::TestWithParam<PrecisionPreset> {};

TEST_P(Recomputation, IsBitwiseEqualToKeepingWithDropoutAndAccumulation) {
  const auto kept = bytes_after_steps(config_for(GetParam(), Recompute::none));
  EXPECT_EQ(kept, bytes_after_steps(config_for(GetParam(), Recompute::none))) << "repeated run";
  EXPECT_EQ(kept, bytes_after_steps(config_for(GetParam(), Recompute::selective)));
  EXPECT_EQ(kept, bytes_after_steps(config_for(GetParam(), Recompute::full)));
}

TEST_P(Recomputation, KeepsLessTheMoreIsMadeAgain) {
  std::vector<int64_t> saved;
  for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
    test::TinyModel tiny(config_for(GetParam(), recompute));
    saved.push_back(tiny.model.arena().plan().bytes_of(Lifetime::Kind::saved));
  }
  EXPECT_GT(saved[0], saved[1]);
  EXPECT_GT(saved[1], saved[2]);
  // Full recomputation keeps the L + 1 states of the residual stream and nothing else.
  const Config config = config_for(GetParam(), Recompute::full);
  const int64_t one = config.train.micro_batch * config.model.context * config.model.channels *
                      size_of(GetParam() == PrecisionPreset::fp64        ? DType::fp64
                              : GetParam() == PrecisionPreset::bf16_lean ? DType::bf16
                                                                         : DType::fp32);
  EXPECT_NEAR(static_cast<double>(saved[2]),
              static_cast<double>((config.model.layers + 1) * ((one + 63) / 64 * 64)), 1.0);
}

INSTANTIATE_TEST_SUITE_P(Precisions, Recomputation,
                         testing::Values(PrecisionPreset::fp64, PrecisionPreset::fp32,
                                         PrecisionPreset::bf16, PrecisionPreset::bf16_lean),
                         [](const auto& parameter) {
                           return std::string(to_string(parameter.param));
                         });

}  // namespace
}  // namespace gradus
