// Loss, gradients and a training curve against PyTorch's, from the same weights. The files are made
// by tests/golden/make_goldens.py; tests/golden/manifest.json says what each tensor is.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"
#include "kernels/elementwise.h"
#include "support/tensors.h"
#include "support/tiny_model.h"

namespace gradus {
namespace {

using test::get_value;
using test::TinyModel;

constexpr const char* kModelFile = "tests/golden/gpt2_tiny.safetensors";
constexpr const char* kCurveFile = "tests/golden/adamw_curve.safetensors";

Config golden_config(PrecisionPreset precision) {
  Config config;
  config.model = {.layers = 2, .channels = 21, .heads = 3, .context = 13, .vocab_size = 61};
  config.train.micro_batch = 3;
  config.train.global_batch = 3;
  config.train.precision = precision;
  config.optim = {.lr = 5e-2,
                  .min_lr = 5e-3,
                  .warmup_steps = 5,
                  .weight_decay = 0.1,
                  .beta1 = 0.9,
                  .beta2 = 0.95,
                  .eps = 1e-8,
                  .clip_norm = 1.0};
  return config;
}

/// The golden weights, in the master weights and, rounded, in the parameters.
void load_weights(TinyModel& tiny, const SafetensorsFile& file, bool round_master = false) {
  for (const Parameter& parameter : tiny.model.parameters().all()) {
    const ConstTensor golden = file.tensor(parameter.spec.name);
    const Tensor master = parameter.logical(tiny.model.optimizer().master(parameter));
    for (int64_t i = 0; i < golden.numel(); ++i) {
      const double w = get_value(golden, i);
      test::set_value(master, i,
                      round_master ? static_cast<float>(bf16(static_cast<float>(w))) : w);
    }
  }
  tiny.model.optimizer().publish_master(tiny.x);
}

/// Batch `index` of golden tokens and targets: (B, T), or (n, B, T).
void load_batch(TinyModel& tiny, const ConstTensor& tokens, const ConstTensor& targets,
                int64_t index = 0) {
  const int64_t n = tiny.model.tokens().numel();
  std::copy_n(tokens.as<int32_t>() + index * n, n, tiny.model.tokens().as<int32_t>());
  std::copy_n(targets.as<int32_t>() + index * n, n, tiny.model.targets().as<int32_t>());
}

double loss_and_gradients(TinyModel& tiny) {
  Executor& x = tiny.x;
  const double count = static_cast<double>(tiny.target_count());
  tiny.model.optimizer().zero_gradients(x);
  fill(x, tiny.model.loss(), 0.0);
  tiny.model.gpt().forward_backward(x,
                                    {.tokens = tiny.model.tokens(),
                                     .targets = tiny.model.targets(),
                                     .loss_sum = tiny.model.loss(),
                                     .gradient_scale = 1.0 / count},
                                    tiny.hooks);
  return *tiny.model.loss().as<double>() / count;
}

struct GoldenCase {
  PrecisionPreset precision;
  const char* loss;
  const char* gradient_prefix;
  double tolerance;  ///< of each tensor's largest magnitude
};

class Golden : public testing::TestWithParam<GoldenCase> {};

TEST_P(Golden, LossAndEveryGradient) {
  const GoldenCase& c = GetParam();
  const SafetensorsFile file = SafetensorsFile::open(kModelFile);
  TinyModel tiny(golden_config(c.precision));
  load_weights(tiny, file);
  load_batch(tiny, file.tensor("tokens"), file.tensor("targets"));
  const double loss = loss_and_gradients(tiny);
  const double expected = get_value(file.tensor(c.loss), 0);
  std::printf("loss %.9f, PyTorch %.9f\n", loss, expected);
  EXPECT_NEAR(loss, expected, c.tolerance * expected);
  for (const Parameter& parameter : tiny.model.parameters().all()) {
    const std::string& name = parameter.spec.name;
    const Tensor ours = parameter.logical(parameter.grad);
    const ConstTensor golden = file.tensor(c.gradient_prefix + name);
    if (name.ends_with("attention.k.bias")) {  // zero by mathematics
      for (int64_t i = 0; i < ours.numel(); ++i) EXPECT_NEAR(get_value(ours, i), 0.0, 1e-7) << name;
      continue;
    }
    const double error = test::relative_error(ours, golden);
    std::printf("%-34s %.1e\n", name.c_str(), error);
    EXPECT_LE(error, c.tolerance) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Precisions, Golden,
    testing::Values(GoldenCase{PrecisionPreset::fp64, "loss_fp64", "grad64.", 1e-12},
                    GoldenCase{PrecisionPreset::fp32, "loss_fp32", "grad.", 1e-5}),
    [](const auto& parameter) { return std::string(to_string(parameter.param.precision)); });

/// Largest and root-mean-square error of bf16 training's loss and gradients against fp64 from the
/// same rounded weights, over all golden batches, beside those of PyTorch's autocast.
TEST(GoldenBf16, IsNoFurtherFromFp64ThanTwicePyTorch) {
  const SafetensorsFile file = SafetensorsFile::open(kModelFile);
  const ConstTensor tokens = file.tensor("bf16.tokens");
  const ConstTensor targets = file.tensor("bf16.targets");
  TinyModel half(golden_config(PrecisionPreset::bf16));
  TinyModel exact(golden_config(PrecisionPreset::fp64));
  load_weights(half, file, true);
  load_weights(exact, file, true);

  struct Error {
    double largest = 0.0;
    double squares = 0.0;
    int64_t count = 0;
    void add(double difference) {
      largest = std::max(largest, std::abs(difference));
      squares += difference * difference;
      count += 1;
    }
    double rms() const { return std::sqrt(squares / static_cast<double>(count)); }
  };
  Error loss_error;
  const auto& parameters = half.model.parameters().all();
  std::vector<Error> errors(parameters.size());
  for (int64_t batch = 0; batch < tokens.size(0); ++batch) {
    for (TinyModel* tiny : {&half, &exact}) load_batch(*tiny, tokens, targets, batch);
    loss_error.add(loss_and_gradients(half) - loss_and_gradients(exact));
    for (size_t p = 0; p < parameters.size(); ++p) {
      const Parameter& reference = exact.model.parameters().all()[p];
      for (int64_t i = 0; i < parameters[p].spec.shape.numel(); ++i) {
        errors[p].add(get_value(parameters[p].grad, i) - get_value(reference.grad, i));
      }
    }
  }
  const auto check = [&](const std::string& name, const Error& error) {
    const ConstTensor torch = file.tensor("bf16.error." + name);
    std::printf("%-34s rms %.2e, PyTorch %.2e, ratio %.2f (largest: %.2f)\n", name.c_str(),
                error.rms(), get_value(torch, 1), error.rms() / get_value(torch, 1),
                error.largest / get_value(torch, 0));
    EXPECT_LE(error.rms(), 2.0 * get_value(torch, 1)) << name;
  };
  check("loss", loss_error);
  for (size_t p = 0; p < parameters.size(); ++p) check(parameters[p].spec.name, errors[p]);
}

/// Twenty AdamW steps stay inside the band that one-ulp changes of the weights open around
/// PyTorch's fp64 curve.
TEST(GoldenCurve, TwentyAdamwSteps) {
  const SafetensorsFile model = SafetensorsFile::open(kModelFile);
  const SafetensorsFile curve = SafetensorsFile::open(kCurveFile);
  TinyModel tiny(golden_config(PrecisionPreset::fp32));
  load_weights(tiny, model);
  const ConstTensor lr = curve.tensor("lr");
  for (int64_t step = 0; step < lr.numel(); ++step) {
    load_batch(tiny, curve.tensor("tokens"), curve.tensor("targets"), step);
    const StepState state = tiny.stepper.run(step * 3, get_value(lr, step));
    const double expected = get_value(curve.tensor("loss_fp64"), step);
    const double band = get_value(curve.tensor("loss_band"), step);
    std::printf("step %2d  loss %.7f  PyTorch fp64 %.7f  fp32 %.7f  off by %.2f of the band\n",
                static_cast<int>(step), state.loss, expected,
                get_value(curve.tensor("loss_fp32"), step), std::abs(state.loss - expected) / band);
    EXPECT_LE(std::abs(state.loss - expected), band) << "step " << step;
    EXPECT_LE(std::abs(state.grad_norm - get_value(curve.tensor("grad_norm_fp64"), step)),
              get_value(curve.tensor("grad_norm_band"), step))
        << "step " << step;
  }
}

}  // namespace
}  // namespace gradus
