// Cached decoding against the training model's forward pass over the same tokens.

#include "model/gpt_decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/error.h"
#include "kernels/elementwise.h"
#include "model/gpt_parameters.h"
#include "support/tensors.h"
#include "support/tiny_model.h"
#include "train/precision_preset.h"

namespace gradus {
namespace {

using test::TinyModel;

struct Case {
  const char* name;
  PrecisionPreset precision;
  AttentionKind attention;
  bool tied;
  bool bias;
  /// Of log-probabilities. fp64 and fp32: the same sums through two blocks, cut into tiles
  /// otherwise. bf16: some roundings of 2^-9 of activations of size 1 that fall otherwise.
  double tolerance;
};

std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.name; }

Config config_for(const Case& c) {
  Config config = test::tiny_config();
  config.model.context = 11;
  config.model.attention = c.attention;
  config.model.tied_embeddings = c.tied;
  config.model.bias = c.bias;
  config.model.dropout = 0.3;  // of training: generation must not draw any
  config.train.precision = c.precision;
  config.train.micro_batch = config.train.global_batch = 1;
  return config;
}

/// A decoder over the weights of a training model.
class Decoder {
 public:
  explicit Decoder(const TinyModel& tiny)
      : parameters_(gpt_parameters(tiny.config.model, *tiny.config.model.vocab_size, 1),
                    {.precision = precision_of(tiny.config.train.precision), .gradients = false}),
        decoder_({.model = tiny.config.model,
                  .vocabulary = *tiny.config.model.vocab_size,
                  .precision = precision_of(tiny.config.train.precision),
                  .keep = Keep::nothing,
                  .B = 1,
                  .T = tiny.config.model.context},
                 tp_) {
    auto plan = std::make_unique<MemoryPlan>(Device::cpu);
    declare(*plan);
    plan->lay_out();
    arena_ = std::make_unique<Arena>(std::move(plan));
    declare(*arena_);
    arena_->check_complete();
    x_.bind_scratch(arena_->scratch());
    for (const Parameter& parameter : parameters_.all()) {
      const Tensor& source = tiny.model.parameters()[parameter.spec.name].value;
      std::copy_n(source.data(), source.bytes(), parameter.value.data());
    }
  }

  GptDecoder* operator->() { return &decoder_; }
  std::vector<double> logits(const std::vector<int32_t>& tokens) {
    return test::values(decoder_.forward(x_, tokens));
  }

 private:
  void declare(TensorVisitor& visitor) {
    parameters_.declare(visitor);
    decoder_.declare(visitor, parameters_, x_);
  }

  Executor x_{Device::cpu, 2};
  TensorParallel tp_{0, 1, false};
  Parameters parameters_;
  GptDecoder decoder_;
  std::unique_ptr<Arena> arena_;
};

std::vector<double> log_softmax(std::vector<double> logits) {
  const double largest = *std::ranges::max_element(logits);
  double sum = 0.0;
  for (const double logit : logits) sum += std::exp(logit - largest);
  for (double& logit : logits) logit -= largest + std::log(sum);
  return logits;
}

class GptDecoderIn : public testing::TestWithParam<Case> {
 protected:
  GptDecoderIn() : tiny_(config_for(GetParam())) {
    std::mt19937_64 rng(test::test_seed());
    std::normal_distribution<double> draw(0.0, 0.4);
    for (const Parameter& parameter : tiny_.model.parameters().all()) {
      const Tensor w = parameter.logical(tiny_.model.optimizer().master(parameter));
      for (int64_t i = 0; i < w.numel(); ++i) test::set_value(w, i, draw(rng));
    }
    tiny_.model.optimizer().publish_master(tiny_.x);
    for (int64_t t = 0; t < T(); ++t) tokens_.push_back(static_cast<int32_t>(rng() % 13));
    for (int64_t t = 0; t < T(); ++t) expected_.push_back(log_probabilities(t));
  }

  int64_t T() const { return tiny_.config.model.context; }

  /// log p(v | tokens up to position t) of the training model over the whole text: its loss with
  /// one target.
  std::vector<double> log_probabilities(int64_t t) {
    const Tensor& targets = tiny_.model.targets();
    std::ranges::copy(tokens_, tiny_.model.tokens().as<int32_t>());
    std::vector<double> out;
    for (int32_t v = 0; v < 13; ++v) {
      std::fill_n(targets.as<int32_t>(), targets.numel(), -1);
      targets.as<int32_t>()[t] = v;
      fill(tiny_.x, tiny_.model.loss(), 0.0);
      tiny_.model.gpt().forward(
          tiny_.x,
          {.tokens = tiny_.model.tokens(), .targets = targets, .loss_sum = tiny_.model.loss()},
          tiny_.hooks);
      out.push_back(-*tiny_.model.loss().as<double>());
    }
    return out;
  }

  void expect_position(int64_t t, const std::vector<double>& logits) {
    const auto actual = log_softmax(logits);
    const auto& expected = expected_[static_cast<size_t>(t)];
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t v = 0; v < actual.size(); ++v) {
      // The loss sums in fp64 what is of the dtype itself.
      EXPECT_NEAR(actual[v], expected[v], GetParam().tolerance) << "position " << t << ", id " << v;
    }
  }

  std::vector<int32_t> piece(int64_t begin, int64_t count) const {
    return {tokens_.begin() + begin, tokens_.begin() + begin + count};
  }

  TinyModel tiny_;
  std::vector<int32_t> tokens_;
  std::vector<std::vector<double>> expected_;
};

TEST_P(GptDecoderIn, TokenByToken) {
  Decoder decoder(tiny_);
  EXPECT_EQ(decoder->capacity(), T());
  for (int64_t t = 0; t < T(); ++t) {
    EXPECT_EQ(decoder->length(), t);
    expect_position(t, decoder.logits(piece(t, 1)));
  }
}

TEST_P(GptDecoderIn, InChunksOfEverySize) {
  Decoder decoder(tiny_);
  for (int64_t chunk = 2; chunk <= T(); ++chunk) {
    SCOPED_TRACE(testing::Message() << "chunks of " << chunk);
    decoder->reset();
    for (int64_t t = 0; t < T(); t += chunk) {
      const int64_t count = std::min(chunk, T() - t);
      expect_position(t + count - 1, decoder.logits(piece(t, count)));
    }
  }
}

TEST_P(GptDecoderIn, APromptAndThenTokens) {
  Decoder decoder(tiny_);
  expect_position(5, decoder.logits(piece(0, 6)));
  for (int64_t t = 6; t < T(); ++t) expect_position(t, decoder.logits(piece(t, 1)));
}

TEST_P(GptDecoderIn, ResetForgetsWhatTheCacheHeld) {
  Decoder decoder(tiny_);
  decoder.logits(std::vector<int32_t>(static_cast<size_t>(T()), 12));
  decoder->reset();
  EXPECT_EQ(decoder->length(), 0);
  expect_position(2, decoder.logits(piece(0, 3)));
}

INSTANTIATE_TEST_SUITE_P(
    Settings, GptDecoderIn,
    testing::Values(Case{"fp64", PrecisionPreset::fp64, AttentionKind::flash, true, true, 1e-12},
                    Case{"fp64_plain_untied_no_bias", PrecisionPreset::fp64, AttentionKind::plain,
                         false, false, 1e-12},
                    Case{"fp32", PrecisionPreset::fp32, AttentionKind::flash, true, true, 2e-5},
                    Case{"fp32_plain", PrecisionPreset::fp32, AttentionKind::plain, true, true,
                         2e-5},
                    Case{"bf16", PrecisionPreset::bf16, AttentionKind::flash, true, true, 0.1}),
    [](const auto& c) { return std::string(c.param.name); });

TEST(GptDecoder, RefusesMoreTokensThanItsCacheTakes) {
  const TinyModel tiny(
      config_for({"", PrecisionPreset::fp32, AttentionKind::flash, true, true, 0.0}));
  Decoder decoder(tiny);
  EXPECT_THROW(decoder.logits({}), ShapeError);
  EXPECT_THROW(decoder.logits(std::vector<int32_t>(12, 1)), ShapeError);
  const auto before = decoder.logits(std::vector<int32_t>(9, 1));
  EXPECT_THROW(decoder.logits({1, 1, 1}), ShapeError);
  EXPECT_EQ(decoder->length(), 9) << "a refusal leaves the cache as it was";
  EXPECT_NO_THROW(decoder.logits({1, 1}));
  EXPECT_THROW(decoder.logits({1}), ShapeError);
}

TEST(GptDecoder, RefusesToWorkOnSeveralSequencesOrForBackward) {
  TensorParallel tp(0, 1, false);
  const Gpt::Options good{
      .model = test::tiny_config().model, .vocabulary = 13, .keep = Keep::nothing, .B = 1, .T = 5};
  EXPECT_NO_THROW(GptDecoder(good, tp));
  Gpt::Options several = good;
  several.B = 2;
  EXPECT_THROW(GptDecoder(several, tp), ShapeError);
  Gpt::Options training = good;
  training.keep = Keep::all;
  EXPECT_THROW(GptDecoder(training, tp), ShapeError);
  Gpt::Options longer = good;
  longer.T = 6;
  EXPECT_THROW(GptDecoder(longer, tp), ShapeError);
  TensorParallel two(1, 2, false);  // its logits would be of a part of the vocabulary
  EXPECT_THAT([&] { GptDecoder(good, two); },
              testing::ThrowsMessage<ShapeError>(testing::HasSubstr("tp has 2")));
}

}  // namespace
}  // namespace gradus
