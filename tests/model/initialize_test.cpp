#include "model/initialize.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/error.h"
#include "model/gpt_parameters.h"
#include "support/tensors.h"

namespace gradus {
namespace {

ModelConfig model() {
  return {.layers = 2,
          .channels = 12,
          .heads = 4,
          .context = 7,
          .mlp_width = 20,
          .tied_embeddings = false};
}

/// The initial weights of one rank.
class Weights {
 public:
  Weights(const ModelConfig& config, int64_t vocabulary, const Parameters::Options& options,
          uint64_t seed, int threads = 2)
      : x_(Device::cpu, threads),
        parameters_(gpt_parameters(config, vocabulary, options.tp_size), options) {
    auto plan = std::make_unique<MemoryPlan>(Device::cpu);
    parameters_.declare(*plan);
    plan->lay_out();
    arena_ = std::make_unique<Arena>(std::move(plan));
    parameters_.declare(*arena_);
    for (const Parameter& p : parameters_.all()) {
      for (int64_t i = 0; i < p.numel(); ++i) test::set_value(p.value, i, std::nan(""));
      initialize_parameter(x_, p, 0, p.value.reshape({-1}), seed);
    }
  }
  const Parameters& parameters() const { return parameters_; }
  std::vector<double> operator[](const std::string& name) const {
    return test::values(parameters_[name].value);
  }

 private:
  Executor x_;
  Parameters parameters_;
  std::unique_ptr<Arena> arena_;
};

TEST(Initialize, EveryTpStartsFromTheSameWeights) {
  for (const Precision& precision : {precision::kFp64, precision::kFp32}) {
    const Weights whole(model(), 13, {.precision = precision}, 5);
    for (const int64_t tp : {2, 4}) {
      for (int64_t rank = 0; rank < tp; ++rank) {
        const Weights part(model(), 13, {.precision = precision, .tp_rank = rank, .tp_size = tp},
                           5);
        for (const Parameter& p : part.parameters().all()) {
          const Tensor mine = p.logical(p.value);
          Tensor expected = whole.parameters()[p.spec.name].value;
          if (p.spec.cut != TpCut::none && mine.numel() > 0) {
            const int axis = p.spec.cut == TpCut::rows ? 0 : 1;
            expected = expected.slice(axis, p.row_begin, mine.size(axis));
          }
          if (mine.numel() == 0) continue;
          EXPECT_EQ(test::values(mine), test::values(expected))
              << p.spec.name << ", rank " << rank << " of " << tp;
        }
      }
    }
  }
}

TEST(Initialize, PaddingRowsAreZero) {
  for (const int64_t tp : {1, 2, 4}) {
    int64_t padded = 0;
    for (int64_t rank = 0; rank < tp; ++rank) {
      const Weights weights(model(), 13, {.tp_rank = rank, .tp_size = tp}, 5);
      for (const char* name : {"embedding.token.weight", "head.weight"}) {
        const Parameter& p = weights.parameters()[name];
        for (int64_t i = p.logical(p.value).numel(); i < p.numel(); ++i, ++padded) {
          ASSERT_EQ(test::get_value(p.value, i), 0.0) << name;
        }
      }
    }
    EXPECT_EQ(padded, 2 * 12 * (padded_vocabulary(13, tp) - 13));
  }
}

TEST(Initialize, LayernormsAreOneAndBiasesZero) {
  const Weights weights(model(), 13, {}, 5);
  for (const Parameter& p : weights.parameters().all()) {
    if (p.spec.shape.rank() == 2) continue;
    const double expected = p.spec.name.ends_with(".weight") ? 1.0 : 0.0;
    EXPECT_EQ(weights[p.spec.name], std::vector<double>(static_cast<size_t>(p.numel()), expected))
        << p.spec.name;
  }
}

double mean(const std::vector<double>& v) {
  double sum = 0.0;
  for (const double value : v) sum += value;
  return sum / static_cast<double>(v.size());
}

double std_dev(const std::vector<double>& v) {
  const double m = mean(v);
  double sum = 0.0;
  for (const double value : v) sum += (value - m) * (value - m);
  return std::sqrt(sum / static_cast<double>(v.size()));
}

/// Within 5 standard errors: σ/√n of a mean, σ/√(2n) of a standard deviation.
TEST(Initialize, MatricesAreNormalOfGpt2sDeviations) {
  const ModelConfig config{
      .layers = 3, .channels = 96, .heads = 4, .context = 64, .tied_embeddings = false};
  const Weights weights(config, 400, {.precision = precision::kFp64}, 1337);
  int residual = 0;
  for (const Parameter& p : weights.parameters().all()) {
    const std::string& name = p.spec.name;
    if (p.spec.shape.rank() != 2) continue;
    const bool onto_stream =
        name.ends_with("attention.out.weight") || name.ends_with("mlp.down.weight");
    residual += onto_stream ? 1 : 0;
    const double sigma = onto_stream ? 0.02 / std::sqrt(2.0 * 3.0) : 0.02;
    const auto values = test::values(p.logical(p.value));
    const auto n = static_cast<double>(values.size());
    EXPECT_NEAR(mean(values), 0.0, 5.0 * sigma / std::sqrt(n)) << name;
    EXPECT_NEAR(std_dev(values), sigma, 5.0 * sigma / std::sqrt(2.0 * n)) << name;

    // Kolmogorov and Smirnov's distance from the normal distribution: √n · D exceeds 1.95 once in
    // a thousand. One seed, so that it does so always or never.
    auto sorted = values;
    std::ranges::sort(sorted);
    double distance = 0.0;
    for (size_t i = 0; i < sorted.size(); ++i) {
      const double expected = 0.5 * std::erfc(-sorted[i] / sigma / std::sqrt(2.0));
      distance = std::max({distance, std::abs(expected - static_cast<double>(i) / n),
                           std::abs(expected - static_cast<double>(i + 1) / n)});
    }
    EXPECT_LT(std::sqrt(n) * distance, 1.95) << name;

    // Neighbours in a row or a pair of Box and Muller are independent.
    double product = 0.0;
    for (size_t i = 0; i + 1 < values.size(); ++i) product += values[i] * values[i + 1];
    EXPECT_NEAR(product / n / sigma / sigma, 0.0, 5.0 / std::sqrt(n)) << name;
  }
  EXPECT_EQ(residual, 2 * 3);
}

TEST(Initialize, SeedsAndNamesAreIndependent) {
  const ModelConfig config{.layers = 2, .channels = 64, .heads = 4, .context = 64};
  const Weights one(config, 400, {.precision = precision::kFp64}, 1);
  const Weights two(config, 400, {.precision = precision::kFp64}, 2);
  const auto expect_unrelated = [](const std::vector<double>& a, const std::vector<double>& b,
                                   const std::string& what) {
    const size_t n = std::min(a.size(), b.size());
    double product = 0.0;
    for (size_t i = 0; i < n; ++i) product += a[i] * b[i];
    const double correlation = product / static_cast<double>(n) / std_dev(a) / std_dev(b);
    EXPECT_LT(std::abs(correlation), 5.0 / std::sqrt(static_cast<double>(n))) << what;
  };
  const std::string q = "block.0.attention.q.weight";
  for (const char* name : {"block.0.attention.k.weight", "block.1.attention.q.weight",
                           "embedding.position.weight", "block.1.mlp.down.weight"}) {
    expect_unrelated(one[q], one[name], name);
    expect_unrelated(one[name], two[name], name);
  }
  EXPECT_EQ(one[q], Weights(config, 400, {.precision = precision::kFp64}, 1)[q]);
  EXPECT_EQ(one[q], Weights(config, 400, {.precision = precision::kFp64}, 1, 7)[q]) << "threads";
}

TEST(Initialize, Fp32IsFp64Rounded) {
  const Weights exact(model(), 13, {.precision = precision::kFp64}, 5);
  const Weights single(model(), 13, {}, 5);
  for (const Parameter& p : exact.parameters().all()) {
    auto rounded = test::values(p.value);
    for (double& value : rounded) value = static_cast<float>(value);
    EXPECT_EQ(single[p.spec.name], rounded) << p.spec.name;
  }
}

TEST(Initialize, APartHasTheValuesOfTheWhole) {
  Executor x(Device::cpu, 2);
  const Weights whole(model(), 13, {.tp_rank = 1, .tp_size = 2}, 5);
  test::TensorPool pool;
  for (const Parameter& p : whole.parameters().all()) {
    const auto all = test::values(p.value);
    for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, p.numel()},
                                       {p.numel() / 3, p.numel() / 2},
                                       {p.numel() - 1, 1},
                                       {p.numel(), 0}}) {
      const Tensor part = pool.zeros({count}, DType::fp32);
      initialize_parameter(x, p, first, part, 5);
      EXPECT_EQ(test::values(part), std::vector(all.begin() + first, all.begin() + first + count))
          << p.spec.name << " from " << first;
    }
  }
}

TEST(Initialize, RefusesATensorOfAnotherForm) {
  Executor x(Device::cpu, 1);
  const Weights weights(model(), 13, {}, 5);
  const Parameter& p = weights.parameters()["block.0.mlp.up.weight"];
  test::TensorPool pool;
  const Tensor large = pool.zeros({20 * 12 + 1}, DType::fp32);
  EXPECT_THROW(initialize_parameter(x, p, 0, large, 1), ShapeError);
  const Tensor whole = pool.zeros({20 * 12}, DType::fp32);
  EXPECT_THROW(initialize_parameter(x, p, 1, whole, 1), ShapeError);
  EXPECT_THROW(initialize_parameter(x, p, -1, whole, 1), ShapeError);
  const Tensor box = pool.zeros({20, 12}, DType::fp32);
  EXPECT_THROW(initialize_parameter(x, p, 0, box, 1), ShapeError);
  const Tensor rounded = pool.zeros({20 * 12}, DType::bf16);
  EXPECT_THROW(initialize_parameter(x, p, 0, rounded, 1), ShapeError);
}

TEST(GptParameters, Gpt2HasItsPublishedNumberOfParameters) {
  const ModelConfig gpt2{.layers = 12, .channels = 768, .heads = 12, .context = 1024};
  for (const int64_t tp : {1, 2, 4}) {
    const Parameters parameters(gpt_parameters(gpt2, 50257, tp), {.tp_size = tp});
    EXPECT_EQ(parameters.logical_numel(), 124439808);
    EXPECT_EQ(&parameters["head.weight"], &parameters["embedding.token.weight"]);
  }
  ModelConfig untied = gpt2;
  untied.tied_embeddings = false;
  EXPECT_EQ(Parameters(gpt_parameters(untied, 50257, 1), {}).logical_numel(),
            124439808 + 50257 * 768);
}

TEST(GptParameters, DecaysMatricesOnlyAndHasNoBiasUnlessAsked) {
  ModelConfig config = model();
  for (const bool bias : {true, false}) {
    config.bias = bias;
    const auto table = gpt_parameters(config, 13, 2);
    int biases = 0;
    for (const ParamSpec& spec : table) {
      EXPECT_EQ(spec.decay, spec.shape.rank() == 2) << spec.name;
      biases += spec.name.ends_with(".bias") ? 1 : 0;
    }
    // Two layernorms, q, k, v, out, up and down a block, and the final layernorm.
    EXPECT_EQ(biases, bias ? 2 * 8 + 1 : 0);
  }
}

TEST(GptParameters, PaddingGivesEveryRankTheSameWholeRows) {
  EXPECT_EQ(padded_vocabulary(13, 1), 16);
  EXPECT_EQ(padded_vocabulary(16, 1), 16);
  EXPECT_EQ(padded_vocabulary(17, 2), 32);
  EXPECT_EQ(padded_vocabulary(50257, 8), 50304);
}

}  // namespace
}  // namespace gradus
