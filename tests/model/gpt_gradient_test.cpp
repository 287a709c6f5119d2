// Every gradient of whole tiny models against central differences in fp64, over the settings that
// change the computation or what is kept of it.

#include <gtest/gtest.h>

#include <string>

#include "kernels/elementwise.h"
#include "support/tensors.h"
#include "support/tiny_model.h"

namespace gradus {
namespace {

using test::TinyModel;

struct Case {
  const char* name;
  bool bias = true;
  bool tied = true;
  AttentionKind attention = AttentionKind::flash;
  Recompute recompute = Recompute::none;
  double dropout = 0.0;
  int64_t micro_batches = 1;
};

std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.name; }

class GptGradient : public testing::TestWithParam<Case> {};

/// Mean loss of the batch and its gradients.
class Problem {
 public:
  explicit Problem(const Config& config) : tiny_(config) {
    // Larger weights than a model starts from, so that no gradient drowns in rounding.
    std::mt19937_64 rng(test::test_seed());
    std::normal_distribution<double> draw(0.0, 0.3);
    for (const Parameter& parameter : tiny_.model.parameters().all()) {
      const Tensor w = parameter.logical(parameter.value);
      for (int64_t i = 0; i < w.numel(); ++i) {
        test::set_value(w, i, test::get_value(w, i) + draw(rng));
      }
    }
  }

  const Parameters& parameters() const { return tiny_.model.parameters(); }

  double loss() {
    double sum = 0.0;
    Executor& x = tiny_.x;
    for (int64_t m = 0; m < tiny_.model.micro_batches(); ++m) {
      fill(x, tiny_.model.loss(), 0.0);
      tiny_.model.gpt().forward(x, micro_batch(m), tiny_.hooks);
      sum += *tiny_.model.loss().as<double>();
    }
    return sum / static_cast<double>(tiny_.target_count());
  }

  void gradients() {
    Executor& x = tiny_.x;
    tiny_.model.optimizer().zero_gradients(x);
    for (int64_t m = 0; m < tiny_.model.micro_batches(); ++m) {
      tiny_.model.gpt().forward_backward(x, micro_batch(m), tiny_.hooks);
    }
  }

 private:
  MicroBatch micro_batch(int64_t m) const {
    const int64_t B = tiny_.model.gpt().sizes().B;
    return {.tokens = tiny_.model.tokens().slice(0, m * B, B),
            .targets = tiny_.model.targets().slice(0, m * B, B),
            .loss_sum = tiny_.model.loss(),
            .gradient_scale = 1.0 / static_cast<double>(tiny_.target_count()),
            .dropout = {.p = tiny_.config.model.dropout, .seed = 5, .first_sample = 40 + m * B}};
  }

  TinyModel tiny_;
};

TEST_P(GptGradient, EveryParameterAgreesWithCentralDifferences) {
  const Case& c = GetParam();
  Config config = test::tiny_config();
  config.model.bias = c.bias;
  config.model.tied_embeddings = c.tied;
  config.model.attention = c.attention;
  config.model.dropout = c.dropout;
  config.train.recompute = c.recompute;
  config.train.global_batch = config.train.micro_batch * c.micro_batches;
  Problem problem(config);
  problem.gradients();
  for (const Parameter& parameter : problem.parameters().all()) {
    const Tensor gradient = parameter.logical(parameter.grad);
    const auto numeric = test::central_differences([&] { return problem.loss(); },
                                                   parameter.logical(parameter.value));
    test::expect_gradient(parameter.spec.name, gradient, numeric);
    // Padding rows of the vocabulary get no gradient.
    for (int64_t i = gradient.numel(); i < parameter.grad.numel(); ++i) {
      ASSERT_EQ(test::get_value(parameter.grad, i), 0.0) << parameter.spec.name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Settings, GptGradient,
    testing::Values(
        Case{.name = "flash_tied_bias"}, Case{.name = "no_bias", .bias = false},
        Case{.name = "untied", .tied = false},
        Case{.name = "plain", .attention = AttentionKind::plain},
        Case{.name = "untied_plain_no_bias",
             .bias = false,
             .tied = false,
             .attention = AttentionKind::plain},
        Case{.name = "dropout", .dropout = 0.3},
        Case{.name = "dropout_plain", .attention = AttentionKind::plain, .dropout = 0.3},
        Case{.name = "selective", .recompute = Recompute::selective},
        Case{.name = "full", .recompute = Recompute::full},
        Case{.name = "selective_dropout", .recompute = Recompute::selective, .dropout = 0.2},
        Case{.name = "full_dropout", .recompute = Recompute::full, .dropout = 0.2},
        Case{.name = "accumulation", .micro_batches = 3},
        Case{.name = "accumulation_full_dropout",
             .recompute = Recompute::full,
             .dropout = 0.2,
             .micro_batches = 2}),
    [](const auto& parameter) { return std::string(parameter.param.name); });

}  // namespace
}  // namespace gradus
