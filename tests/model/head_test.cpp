#include "model/head.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "core/arena.h"
#include "kernels/cross_entropy.h"
#include "support/tensors.h"
#include "support/tolerances.h"

namespace gradus {
namespace {

using test::TensorPool;

constexpr int64_t kB = 3;
constexpr int64_t kT = 7;
constexpr int64_t kRows = kB * kT;

Sizes sizes() {
  return {.B = kB, .T = kT, .C = 10, .V = 19, .V_padded = 24, .T_part = kT, .V_tp = 24};
}

/// A head with memory, whose chunks have `rows` rows.
struct Head {
  Head(const Precision& precision, int64_t rows, const std::vector<int32_t>& ids)
      : pool(42), s(sizes()) {
    auto plan = std::make_unique<MemoryPlan>(Device::cpu);
    acts.declare(*plan, s, precision, tp, true);
    plan->lay_out();
    arena = std::make_unique<Arena>(std::move(plan));
    acts.declare(*arena, s, precision, tp, true);
    for (Tensor* t : {&acts.logits, &acts.dlogits, &acts.row_max, &acts.row_sum, &acts.target_logit,
                      &acts.lse}) {
      *t = t->slice(0, 0, rows);
    }
    const DType act = precision.activation;
    in = pool.normal({kB, kT, s.C}, precision.residual, 1.0, "in");
    w = {pool.normal({s.C}, act, 1.0, "ln_w"), pool.normal({s.C}, act, 1.0, "ln_b"),
         pool.normal({s.V_tp, s.C}, act, 1.0, "weight")};
    dw = {pool.zeros({s.C}, precision.gradient), pool.zeros({s.C}, precision.gradient),
          pool.zeros({s.V_tp, s.C}, precision.gradient)};
    dresidual = pool.poisoned({kB, kT, s.C}, precision.residual, "dresidual");
    loss = pool.zeros({1}, DType::fp64, "loss");
    targets = pool.poisoned({kB, kT}, DType::i32, "targets");
    std::ranges::copy(ids, targets.as<int32_t>());
  }

  void forward() { head_forward(x, loss, acts, w, in, targets, s, tp); }
  void forward_backward(double scale) {
    head_forward_backward(x, loss, dresidual, dw, acts, w, in, targets, scale, s, tp);
  }

  TensorPool pool;
  Executor x{Device::cpu, 2};
  TensorParallel tp{0, 1, false};
  Sizes s;
  HeadActs acts;
  std::unique_ptr<Arena> arena;
  Tensor in, dresidual, loss, targets;
  HeadParams w, dw;
};

/// Every third row ignored, and the first and last ids among the others.
std::vector<int32_t> some_targets() {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < kRows; ++i) {
    ids.push_back(i % 3 == 2 ? kIgnoredTarget : static_cast<int32_t>(i * 18 / (kRows - 1)));
  }
  return ids;
}

TEST(Head, ChunkHasEnoughRowsAndNoMoreLogitsThanItsBound) {
  Sizes s{.B = 12, .T = 1024, .V_tp = 50304};
  EXPECT_EQ(head_chunk_rows(s), 333);  // floor(2^24 / 50304)
  s.V_tp = 128;
  EXPECT_EQ(head_chunk_rows(s), 12 * 1024) << "all rows at once";
  s.V_tp = int64_t{1} << 20;
  EXPECT_EQ(head_chunk_rows(s), 64) << "few rows would starve the products";
  s.B = 1;
  s.T = 5;
  EXPECT_EQ(head_chunk_rows(s), 5);
}

/// The definition in fp64, from what the head was given.
struct Expected {
  double loss = 0.0;
  std::vector<double> dresidual, dweight, dln_w, dln_b;
};

Expected definition(const Head& h, double scale) {
  const int64_t C = h.s.C;
  const int64_t V = h.s.V;
  const auto in = test::values(h.in);
  const auto g = test::values(h.w.ln_w);
  const auto b = test::values(h.w.ln_b);
  const auto w = test::values(h.w.weight);
  const auto at = [](const std::vector<double>& v, int64_t i) { return v[static_cast<size_t>(i)]; };
  Expected e{.dresidual = std::vector<double>(in.size()),
             .dweight = std::vector<double>(w.size()),
             .dln_w = std::vector<double>(g.size()),
             .dln_b = std::vector<double>(b.size())};
  for (int64_t row = 0; row < kRows; ++row) {
    const int32_t target = h.targets.as<int32_t>()[row];
    if (target == kIgnoredTarget) continue;
    double mean = 0.0;
    double variance = 0.0;
    for (int64_t c = 0; c < C; ++c) mean += at(in, row * C + c) / static_cast<double>(C);
    for (int64_t c = 0; c < C; ++c) {
      variance += std::pow(at(in, row * C + c) - mean, 2) / static_cast<double>(C);
    }
    const double rstd = 1.0 / std::sqrt(variance + 1e-5);
    std::vector<double> hat(static_cast<size_t>(C)), ln(hat), dln(hat), logits, p;
    for (int64_t c = 0; c < C; ++c) {
      hat[static_cast<size_t>(c)] = (at(in, row * C + c) - mean) * rstd;
      ln[static_cast<size_t>(c)] = at(hat, c) * at(g, c) + at(b, c);
    }
    double sum = 0.0;
    for (int64_t v = 0; v < V; ++v) {
      double logit = 0.0;
      for (int64_t c = 0; c < C; ++c) logit += at(ln, c) * at(w, v * C + c);
      logits.push_back(logit);
    }
    const double largest = *std::ranges::max_element(logits);
    for (const double logit : logits) sum += std::exp(logit - largest);
    e.loss += largest + std::log(sum) - at(logits, target);
    for (int64_t v = 0; v < V; ++v) {
      const double dlogit =
          scale * (std::exp(at(logits, v) - largest) / sum - (v == target ? 1.0 : 0.0));
      for (int64_t c = 0; c < C; ++c) {
        dln[static_cast<size_t>(c)] += dlogit * at(w, v * C + c);
        e.dweight[static_cast<size_t>(v * C + c)] += dlogit * at(ln, c);
      }
    }
    double mean_d = 0.0;
    double mean_dh = 0.0;
    for (int64_t c = 0; c < C; ++c) {
      mean_d += at(dln, c) * at(g, c) / static_cast<double>(C);
      mean_dh += at(dln, c) * at(g, c) * at(hat, c) / static_cast<double>(C);
      e.dln_w[static_cast<size_t>(c)] += at(dln, c) * at(hat, c);
      e.dln_b[static_cast<size_t>(c)] += at(dln, c);
    }
    for (int64_t c = 0; c < C; ++c) {
      e.dresidual[static_cast<size_t>(row * C + c)] =
          rstd * (at(dln, c) * at(g, c) - mean_d - at(hat, c) * mean_dh);
    }
  }
  return e;
}

void expect_near(const Tensor& actual, const std::vector<double>& expected, double tolerance,
                 const char* name) {
  const auto values = test::values(actual);
  ASSERT_EQ(values.size(), expected.size()) << name;
  double largest = 0.0;
  for (const double v : expected) largest = std::max(largest, std::abs(v));
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_NEAR(values[i], expected[i], tolerance * largest) << name << "[" << i << "]";
  }
}

struct Case {
  const char* name;
  Precision precision;
  /// Of the tensor's largest magnitude. fp64: sums of some dozen terms in another order. fp32: the
  /// same, through three products. bf16: three roundings of 2^-9 on the way (layernorm, logits'
  /// gradient, layernorm's gradient), whose errors add up over the vocabulary.
  double tolerance;
};
class HeadIn : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Precisions, HeadIn,
                         testing::Values(Case{"fp64", precision::kFp64, 1e-12},
                                         Case{"fp32", precision::kFp32, 1e-5},
                                         Case{"bf16", precision::kBf16, 3e-2}),
                         [](const auto& c) { return std::string(c.param.name); });

TEST_P(HeadIn, EveryNumberOfChunksGivesTheDefinition) {
  constexpr double kScale = 0.25;
  for (const int64_t rows : {kRows, int64_t{20}, int64_t{7}, int64_t{2}, int64_t{1}}) {
    SCOPED_TRACE(testing::Message() << "chunks of " << rows << " rows");
    Head head(GetParam().precision, rows, some_targets());
    const Expected expected = definition(head, kScale);
    head.forward_backward(kScale);
    const double tolerance = GetParam().tolerance;
    EXPECT_NEAR(*head.loss.as<double>(), expected.loss, tolerance * expected.loss);
    expect_near(head.dresidual, expected.dresidual, tolerance, "dresidual");
    expect_near(head.dw.weight, expected.dweight, tolerance, "dweight");
    expect_near(head.dw.ln_w, expected.dln_w, tolerance, "dln_w");
    expect_near(head.dw.ln_b, expected.dln_b, tolerance, "dln_b");
    head.pool.check_guards();
  }
}

TEST_P(HeadIn, ForwardAloneHasTheSameLoss) {
  for (const int64_t rows : {kRows, int64_t{5}}) {
    Head forward(GetParam().precision, rows, some_targets());
    Head both(GetParam().precision, rows, some_targets());
    forward.forward();
    both.forward_backward(1.0);
    EXPECT_EQ(*forward.loss.as<double>(), *both.loss.as<double>());
    EXPECT_TRUE(std::isnan(test::get_value(forward.dresidual, 0))) << "forward writes no gradient";
  }
}

TEST_P(HeadIn, IgnoredRowsAndPaddingGetExactlyNoGradient) {
  Head head(GetParam().precision, 4, some_targets());
  head.forward_backward(1.0);
  for (int64_t row = 0; row < kRows; ++row) {
    const Tensor gradient = head.dresidual.reshape({kRows, -1}).slice(0, row, 1);
    bool zero = true;
    for (const double g : test::values(gradient)) zero = zero && g == 0.0;
    EXPECT_EQ(zero, head.targets.as<int32_t>()[row] == kIgnoredTarget) << row;
  }
  for (const double g : test::values(head.dw.weight.slice(0, head.s.V, 5))) EXPECT_EQ(g, 0.0);
}

TEST_P(HeadIn, ABatchOfIgnoredTargetsAddsNothing) {
  Head head(GetParam().precision, 8, std::vector<int32_t>(kRows, kIgnoredTarget));
  test::set_value(head.loss, 0, 1.5);
  head.forward_backward(1.0);
  EXPECT_EQ(*head.loss.as<double>(), 1.5);
  for (const Tensor& t : {head.dresidual, head.dw.weight, head.dw.ln_w, head.dw.ln_b}) {
    for (const double g : test::values(t)) ASSERT_EQ(g, 0.0) << t.name();
  }
}

TEST_P(HeadIn, LossAndWeightGradientsAreAddedToWhatIsThere) {
  Head once(GetParam().precision, 6, some_targets());
  Head twice(GetParam().precision, 6, some_targets());
  once.forward_backward(1.0);
  twice.forward_backward(1.0);
  const double loss = *twice.loss.as<double>();
  twice.forward_backward(1.0);
  EXPECT_NEAR(*twice.loss.as<double>(), 2.0 * loss, 1e-12 * loss);
  EXPECT_EQ(test::values(twice.dresidual), test::values(once.dresidual)) << "= and not +=";
  auto doubled = test::values(once.dw.weight);
  for (double& g : doubled) g *= 2.0;
  expect_near(twice.dw.weight, doubled, 1e-6, "dweight");
}

}  // namespace
}  // namespace gradus
