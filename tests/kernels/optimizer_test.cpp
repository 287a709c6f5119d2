#include "kernels/optimizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "support/close.h"
#include "support/dropout.h"
#include "support/simd_targets.h"
#include "support/tensors.h"

namespace gradus {
namespace {

using test::TensorPool;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kSizes[] = {1, 3, 7, 17, 131, 1023, 1024, 1025, 40000};

Tensor view(StepState& state) {
  return {&state, DType::u8, Device::cpu, {static_cast<int64_t>(sizeof(StepState))}, "state"};
}

TEST(SumOfSquares, AddsEachChunkInFp64) {
  test::for_each_simd_target([] {
    Executor one(Device::cpu, 1);
    Executor two(Device::cpu, 2);
    for (const DType dtype : {DType::fp64, DType::fp32, DType::bf16}) {
      for (const int64_t n : kSizes) {
        TensorPool pool(static_cast<uint64_t>(n));
        const Tensor in = pool.normal({n}, dtype, 1.0e-3);
        const int64_t chunks = (n + kNormChunk - 1) / kNormChunk;
        const Tensor partials = pool.poisoned({chunks}, DType::fp64, "partials");
        const Tensor again = pool.poisoned({chunks}, DType::fp64);
        const Tensor expected = pool.zeros({chunks}, DType::fp64);
        for (int64_t i = 0; i < n; ++i) {
          const double v = test::get_value(in, i);
          test::set_value(expected, i / kNormChunk,
                          test::get_value(expected, i / kNormChunk) + v * v);
        }
        sum_of_squares(two, partials, in);
        EXPECT_LE(test::relative_error(partials, expected),
                  test::elementwise_tolerance(DType::fp64));
        sum_of_squares(one, again, in);
        EXPECT_EQ(test::values(again), test::values(partials)) << "threads changed the sum";
        pool.check_guards();
      }
    }
  });
}

TEST(SumOfSquares, DoesNotOverflowWhereFp32Would) {
  Executor x(Device::cpu, 1);
  TensorPool pool;
  const Tensor in = pool.poisoned({2}, DType::fp32);
  test::set_all(in, 1.0e30);
  const Tensor partials = pool.poisoned({1}, DType::fp64);
  sum_of_squares(x, partials, in);
  EXPECT_NEAR(test::get_value(partials, 0), 2.0e60, 1.0e54);
}

TEST(SumPartials, AddsInIndexOrder) {
  Executor x(Device::cpu, 2);
  for (const int64_t n : kSizes) {
    TensorPool pool(static_cast<uint64_t>(n));
    const Tensor partials = pool.normal({n}, DType::fp64, 1.0e3);
    const Tensor out = pool.poisoned({1}, DType::fp64);
    sum_partials(x, out, partials);
    double expected = 0.0;
    for (const double partial : test::values(partials)) expected += partial;
    EXPECT_EQ(test::get_value(out, 0), expected) << n << " partials";
    pool.check_guards();
  }
  // Pairwise, or by lanes, this would be 0 or 2.
  TensorPool pool;
  const Tensor partials = pool.zeros({4}, DType::fp64);
  const double terms[] = {1.0e16, 1.0, -1.0e16, 1.0};
  for (int64_t i = 0; i < 4; ++i) test::set_value(partials, i, terms[i]);
  const Tensor out = pool.poisoned({1}, DType::fp64);
  sum_partials(x, out, partials);
  EXPECT_EQ(test::get_value(out, 0), 1.0);
}

TEST(SumPartials, PassesOnWhatIsNotFinite) {
  Executor x(Device::cpu, 1);
  for (const double bad : {kInfinity, std::nan("")}) {
    TensorPool pool;
    const Tensor partials = pool.normal({131}, DType::fp64);
    test::set_value(partials, 77, bad);
    const Tensor out = pool.zeros({1}, DType::fp64);
    sum_partials(x, out, partials);
    EXPECT_EQ(std::isnan(test::get_value(out, 0)), std::isnan(bad));
    EXPECT_FALSE(std::isfinite(test::get_value(out, 0)));
  }
}

StepState decide(StepState state, double sum_of_squares, double loss, double clip_norm,
                 double lr = 0.25) {
  Executor x(Device::cpu, 1);
  TensorPool pool;
  const Tensor partials = pool.poisoned({2}, DType::fp64);
  test::set_value(partials, 0, sum_of_squares * 0.75);
  test::set_value(partials, 1, sum_of_squares * 0.25);
  const Tensor losses = pool.poisoned({1}, DType::fp64);
  test::set_value(losses, 0, loss);
  const Tensor largest = pool.zeros({3}, DType::fp64);
  decide_step(x, view(state), largest, partials, losses, {.clip_norm = clip_norm, .lr = lr});
  return state;
}

TEST(DecideStep, ClipsToTheNorm) {
  const StepState clipped = decide({}, 16.0, 2.5, 1.0);
  EXPECT_EQ(clipped.attempted, 1);
  EXPECT_EQ(clipped.applied, 1);
  EXPECT_EQ(clipped.loss, 2.5);
  EXPECT_EQ(clipped.grad_norm, 4.0);
  EXPECT_EQ(clipped.lr, 0.25f);
  EXPECT_EQ(clipped.clip_scale, 0.25f);
  EXPECT_EQ(clipped.nonfinite, 0);
  EXPECT_EQ(decide({}, 16.0, 2.5, 4.0).clip_scale, 1.0f) << "at the norm";
  EXPECT_EQ(decide({}, 16.0, 2.5, 0.0).clip_scale, 1.0f) << "0 switches clipping off";
  EXPECT_EQ(decide({}, 0.0, 2.5, 1.0).clip_scale, 1.0f) << "no gradient at all";
}

TEST(DecideStep, UndoesTheLossScale) {
  StepState state;
  state.loss_scale = 1024.0f;
  const double scaled = 16.0 * 1024.0 * 1024.0;
  EXPECT_EQ(decide(state, scaled, 2.5, 1.0).grad_norm, 4.0);
  EXPECT_EQ(decide(state, scaled, 2.5, 1.0).clip_scale, 0.25f / 1024.0f);
  EXPECT_EQ(decide(state, scaled, 2.5, 0.0).clip_scale, 1.0f / 1024.0f);
  EXPECT_EQ(decide(state, scaled, 2.5, 0.0).loss, 2.5);
  EXPECT_EQ(decide(state, scaled, 2.5, 0.0).loss_scale, 1024.0f);
}

TEST(DecideStep, CountsNonFiniteSteps) {
  StepState state;
  state = decide(state, 1.0, 1.0, 1.0);
  struct Bad {
    double sum, loss;
  };
  int64_t skipped = 0;
  for (const Bad& bad : {Bad{kInfinity, 1.0},
                         {std::nan(""), 1.0},
                         {1.0, kInfinity},
                         {1.0, -kInfinity},
                         {1.0, std::nan("")}}) {
    state = decide(state, bad.sum, bad.loss, 1.0);
    ++skipped;
    EXPECT_EQ(state.nonfinite, 1);
    EXPECT_EQ(state.attempted, 1 + skipped);
    EXPECT_EQ(state.applied, 1);
    EXPECT_EQ(state.skipped, skipped);
    EXPECT_EQ(state.skipped_in_row, skipped);
  }
  state = decide(state, 1.0, 1.0, 1.0);
  EXPECT_EQ(state.nonfinite, 0);
  EXPECT_EQ(state.attempted, 2 + skipped);
  EXPECT_EQ(state.applied, 2);
  EXPECT_EQ(state.skipped, skipped);
  EXPECT_EQ(state.skipped_in_row, 0);
}

double largest_magnitude(const Tensor& tensor) {
  double largest = 0.0;
  for (const double value : test::values(tensor)) largest = std::max(largest, std::abs(value));
  return largest;
}

TEST(RaiseToLargest, IsExactForEverySizeAndThreads) {
  test::for_each_simd_target([] {
    for (const DType dtype : {DType::fp64, DType::fp32, DType::bf16}) {
      for (const int64_t n : kSizes) {
        for (const int threads : {1, 3}) {
          Executor x(Device::cpu, threads);
          TensorPool pool(static_cast<uint64_t>(n));
          const Tensor in = pool.normal({n}, dtype);
          const Tensor out = pool.zeros({1}, DType::fp64);
          const double expected = largest_magnitude(in);
          raise_to_largest(x, out, in);
          EXPECT_EQ(test::get_value(out, 0), expected);
          test::set_value(out, 0, 1e6);
          raise_to_largest(x, out, in);
          EXPECT_EQ(test::get_value(out, 0), 1e6) << "it is raised, never lowered";
          for (const double bad : {kInfinity, -kInfinity, std::nan("")}) {
            test::set_value(out, 0, 0.0);
            test::set_value(in, n / 2, bad);
            raise_to_largest(x, out, in);
            EXPECT_EQ(test::get_value(out, 0), kInfinity);
          }
          pool.check_guards();
        }
      }
    }
  });
}

constexpr AdamW kOptions{.beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .weight_decay = 0.1};

/// Parameter, master weights and moments of one test.
struct Weights {
  Tensor param, master, m, v, largest;

  Weights(TensorPool& pool, DType dtype, int64_t n) {
    const DType kept = accumulator_of(dtype);
    const Tensor weights = pool.normal({n}, kept, 1.0, "weights");
    m = pool.zeros({n}, kept, "m");
    v = pool.zeros({n}, kept, "v");
    largest = pool.zeros({3}, DType::fp64, "largest");
    if (dtype == DType::bf16) master = weights;
    param = dtype == DType::bf16 ? pool.copy(weights, dtype) : weights;
  }
  const Tensor& kept() const { return master.defined() ? master : param; }
};

// Ten steps against the formula, element by element in fp64. Gradients as the state scales them.
TEST(AdamWStep, FollowsTheFormula) {
  test::for_each_simd_target([] {
    Executor x(Device::cpu, 2);
    for (const DType dtype : {DType::fp64, DType::fp32, DType::bf16}) {
      for (const int64_t n : kSizes) {
        TensorPool pool(static_cast<uint64_t>(n));
        const Weights w(pool, dtype, n);
        std::vector<double> weights = test::values(w.kept());
        std::vector<double> m(weights.size());
        std::vector<double> v(weights.size());
        StepState state;
        for (int step = 1; step <= 10; ++step) {
          const Tensor grad = pool.normal({n}, accumulator_of(dtype), 0.1, "grad");
          state.applied = step;
          state.attempted = step + 3;  // skipped steps do not count
          state.lr = 0.01f * static_cast<float>(step);
          state.clip_scale = 0.5f;
          test::set_all(w.largest, 0.0);
          adamw_step(x, w.param, w.master, w.m, w.v, w.largest, grad, view(state), kOptions);
          EXPECT_EQ(test::get_value(w.largest, 0), largest_magnitude(w.kept()));
          EXPECT_EQ(test::get_value(w.largest, 1), largest_magnitude(w.m));
          EXPECT_EQ(test::get_value(w.largest, 2), largest_magnitude(w.v));
          for (size_t i = 0; i < weights.size(); ++i) {
            const double g = 0.5 * test::get_value(grad, static_cast<int64_t>(i));
            m[i] = kOptions.beta1 * m[i] + (1.0 - kOptions.beta1) * g;
            v[i] = kOptions.beta2 * v[i] + (1.0 - kOptions.beta2) * g * g;
            const double m_hat = m[i] / (1.0 - std::pow(kOptions.beta1, step));
            const double v_hat = v[i] / (1.0 - std::pow(kOptions.beta2, step));
            weights[i] -=
                static_cast<double>(state.lr) * (m_hat / (std::sqrt(v_hat) + kOptions.epsilon) +
                                                 kOptions.weight_decay * weights[i]);
          }
        }
        const auto expect = [&](const Tensor& actual, const std::vector<double>& expected,
                                double scale) {
          const Tensor reference = pool.poisoned({n}, DType::fp64);
          for (int64_t i = 0; i < n; ++i) {
            test::set_value(reference, i, expected[static_cast<size_t>(i)]);
          }
          test::expect_close(actual, reference, scale);
        };
        expect(w.kept(), weights, 1.0);
        expect(w.m, m, 0.1);
        expect(w.v, v, 0.0);
        if (w.master.defined()) {
          EXPECT_EQ(test::values(w.param), test::values(pool.copy(w.master, DType::bf16)));
        }
        pool.check_guards();
      }
    }
  });
}

// In fp32, 1 - lr · weight_decay loses most of a small decay; over many steps that shows.
TEST(AdamWStep, KeepsASmallDecay) {
  Executor x(Device::cpu, 1);
  TensorPool pool;
  const Weights w(pool, DType::fp32, 1);
  test::set_value(w.param, 0, 1.0);
  const Tensor grad = pool.zeros({1}, DType::fp32);
  StepState state;
  state.lr = 3.0e-5f;
  for (int step = 1; step <= 4000; ++step) {
    state.applied = step;
    adamw_step(x, w.param, {}, w.m, w.v, w.largest, grad, view(state), kOptions);
  }
  const double decayed = 1.0 - std::exp(4000 * std::log1p(-3.0e-5 * 0.1));
  EXPECT_NEAR((1.0 - test::get_value(w.param, 0)) / decayed, 1.0, 0.02);
}

TEST(AdamWStep, ThreadsChangeNothing) {
  for (const DType dtype : {DType::fp64, DType::fp32, DType::bf16}) {
    std::vector<double> seen;
    for (const int threads : {1, 2, 3}) {
      Executor x(Device::cpu, threads);
      TensorPool pool(7);
      const Weights w(pool, dtype, 40001);
      const Tensor grad = pool.normal({40001}, accumulator_of(dtype));
      StepState state;
      state.applied = 1;
      state.lr = 0.1f;
      adamw_step(x, w.param, w.master, w.m, w.v, w.largest, grad, view(state), kOptions);
      const std::vector<double> weights = test::values(w.kept());
      if (seen.empty()) seen = weights;
      EXPECT_EQ(weights, seen);
    }
  }
}

/// One element before a step, and what the step is made with.
struct Extreme {
  double weight, m, v, gradient;
  double lr = 1e-3, clip_norm = 0.0, weight_decay = 0.1, epsilon = 1e-8;
  int64_t applied = 0;
};

/// Decides the step of `e` and, where it counts as applied, makes it. Returns the fault; whatever
/// it is, weight and moments have to be finite after it.
StepFault attempt(const Extreme& e, DType dtype) {
  Executor x(Device::cpu, 1);
  TensorPool pool;
  constexpr int64_t kElements = 5;
  const DType kept = accumulator_of(dtype);
  const auto all = [&](double value, DType type) {
    const Tensor tensor = pool.zeros({kElements}, type);
    test::set_all(tensor, 0.5 * value);
    test::set_value(tensor, 3, value);  // one element is the largest
    return tensor;
  };
  const Tensor weights = all(e.weight, kept);
  const Tensor m = all(e.m, kept);
  const Tensor v = all(e.v, kept);
  const Tensor grad = pool.zeros({kElements}, kept);
  test::set_value(grad, 3, e.gradient);
  const Tensor param = dtype == DType::bf16 ? pool.zeros({kElements}, dtype) : weights;
  const Tensor partials = pool.zeros({1}, DType::fp64);
  const Tensor loss = pool.zeros({1}, DType::fp64);
  const Tensor largest = pool.zeros({3}, DType::fp64);
  raise_to_largest(x, largest.slice(0, 0, 1), weights);
  raise_to_largest(x, largest.slice(0, 1, 1), m);
  raise_to_largest(x, largest.slice(0, 2, 1), v);
  sum_of_squares(x, partials, grad);
  const AdamW adamw{
      .beta1 = 0.9, .beta2 = 0.95, .epsilon = e.epsilon, .weight_decay = e.weight_decay};
  StepState state;
  state.applied = e.applied;
  decide_step(x, view(state), largest, partials, loss,
              {.clip_norm = e.clip_norm,
               .lr = e.lr,
               .adamw = adamw,
               .range = kept == DType::fp64 ? std::numeric_limits<double>::max()
                                            : std::numeric_limits<float>::max()});
  adamw_step(x, param, dtype == DType::bf16 ? weights : Tensor(), m, v, largest, grad, view(state),
             adamw);
  for (const Tensor& tensor : {param, weights, m, v}) {
    for (const double value : test::values(tensor)) EXPECT_TRUE(std::isfinite(value)) << value;
  }
  return state.fault();
}

TEST(AdamWStep, AnAppliedStepLeavesEverythingFinite) {
  test::for_each_simd_target([] {
    for (const DType dtype : {DType::fp32, DType::bf16}) {
      const auto refused = [&](const Extreme& e) {
        EXPECT_EQ(attempt(e, dtype), StepFault::overflow);
      };
      const auto applied = [&](const Extreme& e) { EXPECT_EQ(attempt(e, dtype), StepFault::none); };
      applied({.weight = 1, .m = 0, .v = 0, .gradient = 1e19});
      refused({.weight = 1, .m = 0, .v = 0, .gradient = 1.9e19});  // g² is past 3.4e38
      refused({.weight = 1, .m = 0, .v = 0, .gradient = 3e38});
      applied({.weight = 1, .m = 0, .v = 0, .gradient = 3e38, .clip_norm = 1.0});
      refused({.weight = 1, .m = 0, .v = 0, .gradient = 3e38, .clip_norm = 1e25});
      refused({.weight = 1, .m = 0, .v = 3.3e38, .gradient = 1e19});
      refused({.weight = 1, .m = 3.3e38, .v = 1, .gradient = 1});  // m̂ = m / 0.1
      refused({.weight = 3.4e38, .m = 0, .v = 0, .gradient = 1, .weight_decay = 0});
      refused({.weight = 3.39e38, .m = 0, .v = 0, .gradient = -1, .lr = 1e30, .weight_decay = 0});
      refused({.weight = 2e37, .m = 0, .v = 0, .gradient = 1, .lr = 1000, .weight_decay = 1e10});
      applied({.weight = 2e24, .m = 0, .v = 0, .gradient = 1, .lr = 1000, .weight_decay = 1e10});
      refused({.weight = 0, .m = 0, .v = 0, .gradient = 1, .lr = 1000, .weight_decay = 1e36});
      // v underflows to 0 where m does not.
      refused({.weight = 1, .m = 1e12, .v = 0, .gradient = 0, .epsilon = 1e-30, .applied = 100});
      applied({.weight = 1, .m = 1e-20, .v = 0, .gradient = 1e-25, .applied = 100});
    }
    EXPECT_EQ(attempt({.weight = 1, .m = 0, .v = 0, .gradient = 1.9e19}, DType::fp64),
              StepFault::none);
    EXPECT_EQ(attempt({.weight = 1, .m = 0, .v = 0, .gradient = 1e154}, DType::fp64),
              StepFault::overflow);
  });
}

// Every magnitude that a weight, a moment, a gradient and a setting can have, against each other.
TEST(AdamWStep, NoCombinationOfMagnitudesMakesAnAppliedStepNonFinite) {
  constexpr double kMagnitudes[] = {0.0,  1e-30,  1e-10, 1.0,    1e10,
                                    1e18, 1.3e19, 1e30,  1.6e38, 3.3e38};
  int64_t applied = 0;
  int64_t refused = 0;
  for (const double weight : kMagnitudes) {
    for (const double m : kMagnitudes) {
      for (const double gradient : kMagnitudes) {
        for (const double v : {0.0, 1.0, 1.6e38}) {
          for (const double lr : {1e-30, 1e-3, 1000.0}) {
            const Extreme e{.weight = weight, .m = -m, .v = v, .gradient = -gradient, .lr = lr};
            ++(attempt(e, DType::bf16) == StepFault::none ? applied : refused);
          }
        }
      }
    }
  }
  EXPECT_GT(applied, 1000);
  EXPECT_GT(refused, 1000);
}

TEST(AdamWStep, MomentsThatDecayIntoDenormalsBecomeZeroOnEveryThread) {
  test::for_each_simd_target([] {
    constexpr int64_t kElements = 40001;
    for (const int threads : {1, 3}) {
      Executor x(Device::cpu, threads);
      TensorPool pool;
      const Weights w(pool, DType::fp32, kElements);
      test::set_all(w.m, std::numeric_limits<float>::min());
      test::set_all(w.v, std::numeric_limits<float>::denorm_min());
      StepState state;
      state.applied = 50;
      state.lr = 0.1f;
      adamw_step(x, w.param, w.master, w.m, w.v, w.largest, pool.zeros({kElements}, DType::fp32),
                 view(state), kOptions);
      EXPECT_EQ(test::values(w.m), std::vector<double>(kElements, 0.0));
      EXPECT_EQ(test::values(w.v), std::vector<double>(kElements, 0.0));
    }
  });
}

TEST(AdamWStep, ANonFiniteStepChangesNothing) {
  Executor x(Device::cpu, 2);
  for (const DType dtype : {DType::fp64, DType::fp32, DType::bf16}) {
    TensorPool pool;
    const Weights w(pool, dtype, 100);
    const Tensor grad = pool.poisoned({100}, accumulator_of(dtype));
    StepState state;
    state.applied = 1;
    state.lr = 0.1f;
    state.nonfinite = 1;
    const auto before = test::values(w.param);
    const auto kept = test::values(w.kept());
    adamw_step(x, w.param, w.master, w.m, w.v, w.largest, grad, view(state), kOptions);
    EXPECT_EQ(test::values(w.param), before);
    EXPECT_EQ(test::values(w.kept()), kept);
    EXPECT_EQ(test::values(w.m), std::vector<double>(100, 0.0));
    EXPECT_EQ(test::values(w.v), std::vector<double>(100, 0.0));
  }
}

TEST(Optimizer, RefusesWhatDoesNotFit) {
  Executor x(Device::cpu, 1);
  TensorPool pool;
  StepState state;
  state.applied = 1;
  const auto fp32 = [&](int64_t n) { return pool.normal({n}, DType::fp32); };
  const Tensor a = fp32(8);
  const Tensor largest = pool.zeros({3}, DType::fp64);
  const auto refused = [&](const Tensor& param, const Tensor& master, const Tensor& m,
                           const Tensor& grad, const Tensor& step) {
    EXPECT_THROW(adamw_step(x, param, master, m, m, largest, grad, step, kOptions), ShapeError);
  };
  const Tensor half = pool.normal({8}, DType::bf16);
  const Tensor wide = pool.normal({8}, DType::fp64);
  refused(half, {}, a, a, view(state));  // bf16 without master weights
  refused(a, a, a, a, view(state));      // fp32 with
  refused(wide, a, wide, wide, view(state));
  refused(half, wide, wide, wide, view(state));
  refused(a, {}, a, half, view(state));
  refused(a, {}, wide, a, view(state));
  refused(a, {}, fp32(7), a, view(state));
  refused(a, {}, a, fp32(9), view(state));
  refused(half, fp32(7), a, a, view(state));
  refused(a, {}, a, a, view(state).slice(0, 0, 8));
  refused(a, {}, a, a, a);

  const Tensor one = pool.zeros({1}, DType::fp64);
  EXPECT_THROW(sum_of_squares(x, pool.zeros({2}, DType::fp64), a), ShapeError);
  EXPECT_THROW(sum_of_squares(x, fp32(1), a), ShapeError);
  EXPECT_THROW(sum_partials(x, fp32(1), one), ShapeError);
  EXPECT_THROW(sum_partials(x, one, a), ShapeError);
  EXPECT_THROW(sum_partials(x, pool.zeros({2}, DType::fp64), one), ShapeError);
  EXPECT_THROW(sum_partials(x, one, {}), ShapeError);
  const Tensor three = pool.zeros({3}, DType::fp64);
  EXPECT_THROW(decide_step(x, a, three, one, one, {}), ShapeError);
  EXPECT_THROW(decide_step(x, view(state), three, fp32(1), one, {}), ShapeError);
  EXPECT_THROW(decide_step(x, view(state), three, one, three, {}), ShapeError);
  EXPECT_THROW(decide_step(x, view(state), one, one, one, {}), ShapeError);
  EXPECT_THROW(decide_step(x, view(state), fp32(3), one, one, {}), ShapeError);
  EXPECT_THROW(raise_to_largest(x, three, a), ShapeError);
  EXPECT_THROW(raise_to_largest(x, fp32(1), a), ShapeError);
  EXPECT_THROW(raise_to_largest(x, one, {}), ShapeError);
}

}  // namespace
}  // namespace gradus
