#include "optim/optimizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "optimizer_problem.h"
#include "support/tensors.h"
#include "support/tolerances.h"

namespace gradus {
namespace {

using Problem = test::OptimizerProblem;
using Bytes = Problem::Bytes;
using test::kPaddedRows;

struct Case {
  const char* name;
  Precision precision;
};
class OptimizerIn : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Precisions, OptimizerIn,
                         testing::Values(Case{"fp64", precision::kFp64},
                                         Case{"fp32", precision::kFp32},
                                         Case{"bf16", precision::kBf16}),
                         [](const auto& c) { return std::string(c.param.name); });

/// Σ g² over the logical elements, tied ones once.
double direct_norm(const Parameters& parameters) {
  double sum = 0.0;
  for (const Parameter& p : parameters.all()) {
    const Tensor g = p.logical(p.grad);
    for (int64_t i = 0; i < g.numel(); ++i) sum += std::pow(test::get_value(g, i), 2);
  }
  return std::sqrt(sum);
}

TEST_P(OptimizerIn, GlobalNormIsThatOfTheLogicalGradients) {
  Problem problem(GetParam().precision);
  for (const double magnitude : {1e-6, 0.1, 1e4}) {
    problem.draw_gradients(3, magnitude);
    const double expected = direct_norm(problem.parameters());
    // Sums of some thousand squares in fp64, in another order.
    EXPECT_NEAR(problem.step(1e-3).grad_norm, expected, 1e-12 * expected);
  }
}

TEST_P(OptimizerIn, NormCountsEachParameterAloneAndATiedOneOnce) {
  Problem problem(GetParam().precision);
  for (const Parameter& p : problem.parameters().all()) {
    problem.optimizer().zero_gradients(problem.x());
    const Tensor g = p.logical(p.grad);
    test::set_value(g, 0, 3.0);
    test::set_value(g, g.numel() - 1, 4.0);
    EXPECT_EQ(problem.step(0.0).grad_norm, 5.0) << p.spec.name;
  }
  EXPECT_EQ(problem.parameters()["head"].grad.data(), problem.parameters()["token"].grad.data());
}

/// With zero gradients and moments AdamW only decays: w (1 - lr · weight_decay).
TEST_P(OptimizerIn, DecaysMatricesAndNothingElse) {
  Problem problem(GetParam().precision, {.weight_decay = 0.5});
  std::map<std::string, std::vector<double>> before;
  for (const Parameter& p : problem.parameters().all()) {
    before[p.spec.name] = test::values(problem.optimizer().master(p));
  }
  problem.optimizer().zero_gradients(problem.x());
  problem.step(0.25);
  const double tolerance =
      test::elementwise_tolerance(GetParam().precision.master);  // one product, one difference
  for (const Parameter& p : problem.parameters().all()) {
    const auto after = test::values(problem.optimizer().master(p));
    const double factor = p.spec.shape.rank() == 2 ? 1.0 - 0.25 * 0.5 : 1.0;
    for (size_t i = 0; i < after.size(); ++i) {
      const double expected = factor * before[p.spec.name][i];
      if (factor == 1.0) {
        ASSERT_EQ(after[i], expected) << p.spec.name;
      } else {
        ASSERT_NEAR(after[i], expected, tolerance * std::abs(expected)) << p.spec.name;
      }
    }
  }
}

/// AdamW by its definition (arXiv:1711.05101, algorithm 2) in fp64, element by element.
TEST_P(OptimizerIn, FollowsAdamWOverSeveralClippedSteps) {
  const OptimConfig config{
      .weight_decay = 0.1, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .clip_norm = 1.0};
  Problem problem(GetParam().precision, config);
  struct Reference {
    std::vector<double> w, m, v;
  };
  std::map<std::string, Reference> reference;
  for (const Parameter& p : problem.parameters().all()) {
    const auto w = test::values(problem.optimizer().master(p));
    reference[p.spec.name] = {w, std::vector<double>(w.size()), std::vector<double>(w.size())};
  }
  for (int step = 1; step <= 6; ++step) {
    const double lr = 0.01 * step;
    problem.draw_gradients(static_cast<uint64_t>(step), step % 2 == 0 ? 1e-3 : 1.0);
    const double norm = direct_norm(problem.parameters());
    ASSERT_EQ(norm > 1.0, step % 2 == 1) << "the test wants both sides of clipping";
    const double scale = std::min(1.0, 1.0 / norm);
    for (const Parameter& p : problem.parameters().all()) {
      Reference& r = reference[p.spec.name];
      for (size_t i = 0; i < r.w.size(); ++i) {
        const double g = scale * test::get_value(p.grad, static_cast<int64_t>(i));
        r.m[i] = config.beta1 * r.m[i] + (1 - config.beta1) * g;
        r.v[i] = config.beta2 * r.v[i] + (1 - config.beta2) * g * g;
        const double m = r.m[i] / (1 - std::pow(config.beta1, step));
        const double v = r.v[i] / (1 - std::pow(config.beta2, step));
        const double decay = p.spec.shape.rank() == 2 ? config.weight_decay : 0.0;
        r.w[i] -= lr * (m / (std::sqrt(v) + config.eps) + decay * r.w[i]);
      }
    }
    problem.step(lr);
  }
  // Six steps of about ten roundings each, of numbers near 1; clip_scale and lr are floats.
  const double tolerance = GetParam().precision.master == DType::fp64 ? 1e-7 : 1e-5;
  for (const Parameter& p : problem.parameters().all()) {
    const auto w = test::values(problem.optimizer().master(p));
    const auto m = test::values(problem.optimizer().first_moment(p));
    const auto v = test::values(problem.optimizer().second_moment(p));
    const Reference& r = reference[p.spec.name];
    for (size_t i = 0; i < w.size(); ++i) {
      ASSERT_NEAR(w[i], r.w[i], tolerance) << p.spec.name << "[" << i << "]";
      ASSERT_NEAR(m[i], r.m[i], tolerance) << p.spec.name << "[" << i << "]";
      ASSERT_NEAR(v[i], r.v[i], tolerance) << p.spec.name << "[" << i << "]";
    }
  }
}

TEST(Optimizer, Bf16WeightsAreTheMasterWeightsRounded) {
  Problem problem(precision::kBf16);
  const auto check = [&] {
    for (const Parameter& p : problem.parameters().all()) {
      const Tensor master = problem.optimizer().master(p);
      EXPECT_EQ(master.dtype(), DType::fp32);
      EXPECT_NE(master.data(), p.value.data());
      for (int64_t i = 0; i < p.numel(); ++i) {
        ASSERT_EQ(p.value.as<bf16>()[i].bits, bf16(master.as<float>()[i]).bits) << p.spec.name;
      }
    }
  };
  check();
  for (uint64_t step = 0; step < 4; ++step) {
    problem.draw_gradients(step);
    problem.step(1e-3);
    check();
  }
}

/// An update below half a unit of bf16 is not lost: it gathers in the master weights.
TEST(Optimizer, MasterWeightsKeepUpdatesThatBf16CannotShow) {
  Problem problem(precision::kBf16, {.weight_decay = 0.0});
  const Parameter& p = problem.parameters()["up"];
  const Tensor master = problem.optimizer().master(p);
  test::set_value(master, 0, 1.0);
  problem.optimizer().publish_master(problem.x());
  float last = 1.0f;
  for (int step = 0; step < 100; ++step) {
    problem.optimizer().zero_gradients(problem.x());
    test::set_value(p.grad, 0, 1.0);
    problem.step(1e-4);
    EXPECT_LT(master.as<float>()[0], last);
    last = master.as<float>()[0];
  }
  EXPECT_NEAR(last, 0.99, 1e-5);
  EXPECT_EQ(test::get_value(p.value, 0), static_cast<float>(bf16(last)));
}

TEST(Optimizer, Fp32AndFp64WeightsAreTheirOwnMaster) {
  for (const Precision& precision : {precision::kFp32, precision::kFp64}) {
    Problem problem(precision);
    for (const Parameter& p : problem.parameters().all()) {
      EXPECT_EQ(problem.optimizer().master(p).data(), p.value.data());
    }
    for (const auto& [name, tensor] : problem.tensors()) {
      EXPECT_FALSE(name.ends_with(".master")) << name;
    }
  }
}

TEST_P(OptimizerIn, PaddingStaysZeroOverManySteps) {
  Problem problem(GetParam().precision, {.weight_decay = 0.3, .clip_norm = 0.5});
  for (uint64_t step = 0; step < 50; ++step) {
    problem.draw_gradients(step);
    problem.step(0.05);
  }
  int64_t checked = 0;
  for (const Bucket& bucket : problem.parameters().buckets()) {
    std::vector<bool> logical(static_cast<size_t>(bucket.numel), false);
    for (const size_t index : bucket.parameters) {
      const Parameter& p = problem.parameters().all()[index];
      for (int64_t i = 0; i < p.spec.shape.numel(); ++i) {
        logical[static_cast<size_t>(p.offset + i)] = true;
      }
    }
    for (const char* kind : {".weights", ".master", ".adam_m", ".adam_v"}) {
      const auto found = problem.tensors().find(bucket.name + kind);
      if (found == problem.tensors().end()) continue;
      for (int64_t i = 0; i < bucket.numel; ++i) {
        const double value = test::get_value(found->second, i);
        if (logical[static_cast<size_t>(i)]) continue;
        ASSERT_EQ(value, 0.0) << found->first << "[" << i << "]";
        ASSERT_FALSE(std::signbit(value)) << found->first << "[" << i << "]";
        ++checked;
      }
    }
  }
  EXPECT_GT(checked, 3 * (kPaddedRows - 13) * 11) << "rows of padding and gaps between parameters";
}

TEST_P(OptimizerIn, ANonFiniteStepLeavesEveryByteAndIsCounted) {
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  Problem problem(GetParam().precision);
  problem.draw_gradients(0);
  problem.step(1e-2);
  const Bytes before = problem.bytes();
  int64_t skipped = 0;
  const auto expect_skipped = [&](const StepState& state, const std::string& what) {
    ++skipped;
    EXPECT_EQ(state.nonfinite, 1) << what;
    EXPECT_EQ(state.applied, 1) << what;
    EXPECT_EQ(state.attempted, 1 + skipped) << what;
    EXPECT_EQ(state.skipped, skipped) << what;
    EXPECT_EQ(state.skipped_in_row, skipped) << what;
    EXPECT_EQ(problem.bytes(), before) << what;
  };
  for (const double bad : {kNaN, kInfinity, -kInfinity}) {
    for (const Parameter& p : problem.parameters().all()) {
      problem.draw_gradients(1);
      const Tensor g = p.logical(p.grad);
      test::set_value(g, g.numel() - 1, bad);
      expect_skipped(problem.step(1e-2), p.spec.name);
    }
    problem.draw_gradients(1);
    expect_skipped(problem.step(1e-2, bad), "loss");
  }
  problem.draw_gradients(1);
  const StepState good = problem.step(1e-2);
  EXPECT_EQ(good.nonfinite, 0);
  EXPECT_EQ(good.applied, 2);
  EXPECT_EQ(good.skipped_in_row, 0);
  EXPECT_EQ(good.skipped, skipped);
  EXPECT_NE(problem.bytes(), before);

  // As if the bad steps had never been: bias correction counts applied steps.
  Problem twin(GetParam().precision);
  for (const uint64_t number : {0, 1}) {
    twin.draw_gradients(number);
    twin.step(1e-2);
  }
  EXPECT_EQ(problem.bytes(), twin.bytes());
}

TEST_P(OptimizerIn, GoesOnFromSavedStateBitForBit) {
  Problem first(GetParam().precision);
  for (uint64_t step = 0; step < 3; ++step) {
    first.draw_gradients(step);
    first.step(1e-2, step == 1 ? std::numeric_limits<double>::infinity() : 1.0);
  }
  // What a checkpoint holds: logical parts of master weights and moments, and the state.
  Problem second(GetParam().precision);
  second.draw_gradients(9);
  second.step(1.0);
  second.optimizer().reset(second.x());
  for (size_t i = 0; i < first.parameters().all().size(); ++i) {
    const Parameter& from = first.parameters().all()[i];
    const Parameter& to = second.parameters().all()[i];
    for (const auto view :
         {&Optimizer::master, &Optimizer::first_moment, &Optimizer::second_moment}) {
      const Tensor source = from.logical((first.optimizer().*view)(from));
      const Tensor target = to.logical((second.optimizer().*view)(to));
      std::memcpy(target.data(), source.data(), static_cast<size_t>(source.bytes()));
    }
  }
  second.optimizer().publish_master(second.x());
  second.optimizer().set_state(first.optimizer().state());
  EXPECT_EQ(second.bytes(), first.bytes());
  EXPECT_EQ(second.optimizer().state().applied, 2);
  EXPECT_EQ(second.optimizer().state().skipped, 1);
  for (uint64_t step = 3; step < 6; ++step) {
    for (Problem* problem : {&first, &second}) {
      problem->draw_gradients(step);
      problem->step(1e-2);
    }
  }
  EXPECT_EQ(second.bytes(), first.bytes());
}

TEST(Optimizer, StateIsReadBackAsItWasSet) {
  Problem problem(precision::kFp32);
  const StepState set{.attempted = 9,
                      .applied = 7,
                      .loss = 1.25,
                      .grad_norm = 3.5,
                      .lr = 0.5f,
                      .clip_scale = 0.25f,
                      .loss_scale = 1.0f,
                      .nonfinite = 1,
                      .skipped_in_row = 2,
                      .skipped = 2};
  problem.optimizer().set_state(set);
  const StepState got = problem.optimizer().state();
  EXPECT_EQ(got.attempted, 9);
  EXPECT_EQ(got.applied, 7);
  EXPECT_EQ(got.loss, 1.25);
  EXPECT_EQ(got.grad_norm, 3.5);
  EXPECT_EQ(got.lr, 0.5f);
  EXPECT_EQ(got.clip_scale, 0.25f);
  EXPECT_EQ(got.nonfinite, 1);
  EXPECT_EQ(got.skipped_in_row, 2);
  EXPECT_EQ(got.skipped, 2);
  problem.draw_gradients(0);
  EXPECT_EQ(problem.step(1e-3).attempted, 10);
}

TEST_P(OptimizerIn, ClipsToTheNormAndOnlyAboveIt) {
  const auto scale = [&](double clip_norm, double norm) {
    Problem problem(GetParam().precision, {.clip_norm = clip_norm});
    problem.optimizer().zero_gradients(problem.x());
    test::set_value(problem.parameters()["up"].grad, 5, norm);
    const StepState state = problem.step(0.0);
    EXPECT_EQ(state.grad_norm, norm) << "the norm is that before clipping";
    return state.clip_scale;
  };
  EXPECT_EQ(scale(1.0, 4.0), 0.25f);
  EXPECT_EQ(scale(1.0, 0.5), 1.0f);
  EXPECT_EQ(scale(1.0, 1.0), 1.0f);
  EXPECT_EQ(scale(0.0, 1024.0), 1.0f) << "0: no clipping";
  EXPECT_EQ(scale(2.0, 0.0), 1.0f);
}

/// Clipping is a factor on gradients: a clipped step is that of gradients already clipped.
TEST_P(OptimizerIn, AClippedStepIsThatOfSmallerGradients) {
  Problem clipped(GetParam().precision, {.clip_norm = 0.125});
  Problem scaled(GetParam().precision, {.clip_norm = 0.0});
  for (Problem* problem : {&clipped, &scaled}) {
    problem->optimizer().zero_gradients(problem->x());
    const bool small = problem == &scaled;
    // Powers of two, so that the product with the factor is exact.
    test::set_value(problem->parameters()["ln"].grad, 2, small ? 0.125 : 8.0);
    problem->step(1e-2);
  }
  EXPECT_EQ(clipped.bytes(), scaled.bytes());
}

TEST(Optimizer, StepReportsItsLossAndRate) {
  Problem problem(precision::kFp32);
  problem.draw_gradients(0);
  const StepState state = problem.step(0.03125, 2.75);
  EXPECT_EQ(state.loss, 2.75);
  EXPECT_EQ(state.lr, 0.03125f);
}

TEST_P(OptimizerIn, ResetForgetsMomentsAndCounts) {
  Problem problem(GetParam().precision);
  problem.draw_gradients(0);
  problem.step(1e-2);
  problem.optimizer().reset(problem.x());
  EXPECT_EQ(problem.optimizer().state().attempted, 0);
  for (const auto& [name, tensor] : problem.tensors()) {
    if (!Problem::is_optimizer_state(name)) continue;
    for (int64_t i = 0; i < tensor.numel(); ++i) {
      ASSERT_EQ(test::get_value(tensor, i), 0.0) << name;
    }
  }
}

}  // namespace
}  // namespace gradus
