#include "kernels/gelu.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "support/simd_targets.h"
#include "support/tensors.h"
#include "support/tolerances.h"

namespace gradus {
namespace {

using test::TensorPool;

constexpr int64_t kSizes[] = {1, 3, 7, 16, 17, 131, 1000, 20011};
constexpr DType kDTypes[] = {DType::fp64, DType::fp32, DType::bf16};
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The formula as written, by the library's exponential in long double.
long double sigmoid_of_twice_u(long double x) {
  const long double u = std::sqrt(2.0L / std::acos(-1.0L)) * (x + 0.044715L * x * x * x);
  return 1.0L / (1.0L + std::exp(-2.0L * u));
}
double gelu_reference(double x) {
  return static_cast<double>(static_cast<long double>(x) * sigmoid_of_twice_u(x));
}
double derivative_reference(double value) {
  const long double x = value;
  const long double s = sigmoid_of_twice_u(x);
  const long double slope = std::sqrt(2.0L / std::acos(-1.0L)) * (1.0L + 3 * 0.044715L * x * x);
  return static_cast<double>(s + x * s * (1.0L - s) * 2.0L * slope);
}

TEST(Gelu, GradientAgreesWithCentralDifferences) {
  Executor x(Device::cpu, 1);
  TensorPool pool;
  const Tensor in = pool.normal({3, 17}, DType::fp64, 2.0);
  const Tensor dout = pool.normal({3, 17}, DType::fp64);
  const Tensor out = pool.poisoned({3, 17}, DType::fp64);
  const Tensor din = pool.poisoned({3, 17}, DType::fp64);
  gelu_backward(x, din, dout, in);
  test::expect_gradient("gelu din", din,
                        test::central_differences(
                            [&] {
                              gelu_forward(x, out, in);
                              return test::weighted_sum(out, dout);
                            },
                            in));
  pool.check_guards();
}

// Each element on its own: |error| <= bound · |gelu(x)|. Rounding t = -2 log2(e) u to a relative
// unit makes a relative error of |2u| units in 2^t, and 1 - s of that in the result.
TEST(Gelu, IsAccurateElementByElement) {
  test::for_each_simd_target([] {
    Executor x(Device::cpu, 1);
    for (const DType dtype : {DType::fp64, DType::fp32}) {
      const double unit = dtype == DType::fp64 ? 0x1p-53 : 0x1p-24;
      constexpr int64_t kPoints = 4001;
      TensorPool pool;
      const Tensor in = pool.poisoned({kPoints}, dtype);
      for (int64_t i = 0; i < kPoints; ++i) {
        test::set_value(in, i, -8.0 + 16.0 * static_cast<double>(i) / (kPoints - 1));
      }
      const Tensor out = pool.poisoned({kPoints}, dtype);
      gelu_forward(x, out, in);
      double worst = 0.0;
      for (int64_t i = 0; i < kPoints; ++i) {
        const double v = test::get_value(in, i);
        const double expected = gelu_reference(v);
        const double twice_u =
            1.5957691216057308 * (std::abs(v) + 0.044715 * std::pow(std::abs(v), 3));
        const double tail = v < 0.0 ? 1.0 : std::exp(-twice_u);
        const double bound = unit * (4.0 + 4.0 * twice_u * tail) * std::abs(expected);
        const double error = std::abs(test::get_value(out, i) - expected);
        ASSERT_LE(error, bound) << "gelu(" << v << ") in " << to_string(dtype);
        worst = std::max(worst, bound == 0.0 ? 0.0 : error / bound);
      }
      EXPECT_GT(worst, 0.05) << "the bound is too loose to mean anything";
    }
  });
}

TEST(Gelu, AgreesWithTheFormulaOnEverySizeAndDType) {
  test::for_each_simd_target([] {
    Executor x(Device::cpu, 2);
    for (const DType dtype : kDTypes) {
      for (const int64_t n : kSizes) {
        TensorPool pool(static_cast<uint64_t>(n));
        const Tensor in = pool.normal({n}, dtype, 3.0);
        const Tensor dout = pool.normal({n}, dtype);
        const Tensor out = pool.poisoned({n}, dtype);
        const Tensor din = pool.poisoned({n}, dtype);
        gelu_forward(x, out, in);
        gelu_backward(x, din, dout, in);
        const Tensor expected_out = pool.poisoned({n}, DType::fp64);
        const Tensor expected_din = pool.poisoned({n}, DType::fp64);
        for (int64_t i = 0; i < n; ++i) {
          const double v = test::get_value(in, i);
          test::set_value(expected_out, i, gelu_reference(v));
          test::set_value(expected_din, i, test::get_value(dout, i) * derivative_reference(v));
        }
        EXPECT_LE(test::relative_error(out, expected_out), test::elementwise_tolerance(dtype));
        EXPECT_LE(test::relative_error(din, expected_din), test::elementwise_tolerance(dtype));
        // In place, and on one thread: the same bits.
        Executor one(Device::cpu, 1);
        const Tensor again = pool.copy(dout, dtype);
        gelu_backward(one, again, again, in);
        EXPECT_EQ(test::values(again), test::values(din));
        gelu_forward(one, again, in);
        EXPECT_EQ(test::values(again), test::values(out));
        pool.check_guards();
      }
    }
  });
}

TEST(Gelu, Extremes) {
  test::for_each_simd_target([] {
    Executor x(Device::cpu, 1);
    for (const DType dtype : kDTypes) {
      TensorPool pool;
      const auto at = [&](double value, bool backward) {
        const Tensor in = pool.poisoned({1}, dtype);
        const Tensor out = pool.poisoned({1}, dtype);
        const Tensor one = pool.poisoned({1}, dtype);
        test::set_value(in, 0, value);
        test::set_value(one, 0, 1.0);
        if (backward) {
          gelu_backward(x, out, one, in);
        } else {
          gelu_forward(x, out, in);
        }
        return test::get_value(out, 0);
      };
      for (const double large : {30.0, 1.0e4, 1.0e15, 1.0e30}) {
        const Tensor rounded = pool.poisoned({1}, dtype);
        test::set_value(rounded, 0, large);
        EXPECT_EQ(at(large, false), test::get_value(rounded, 0));
        EXPECT_EQ(at(-large, false), 0.0) << large;
        EXPECT_EQ(at(large, true), 1.0) << large;
        EXPECT_NEAR(at(-large, true), 0.0, 1e-30) << large;
      }
      EXPECT_EQ(at(0.0, false), 0.0);
      EXPECT_EQ(at(0.0, true), 0.5);
      EXPECT_EQ(at(kInfinity, false), kInfinity);
      EXPECT_TRUE(std::isnan(at(-kInfinity, false)));
      EXPECT_EQ(at(kInfinity, true), 1.0);
      EXPECT_NEAR(at(-kInfinity, true), 0.0, 1e-30);
      EXPECT_TRUE(std::isnan(at(std::nan(""), false)));
      EXPECT_TRUE(std::isnan(at(std::nan(""), true)));
    }
  });
}

TEST(Gelu, RefusesWhatDoesNotFit) {
  Executor x(Device::cpu, 1);
  TensorPool pool;
  const Tensor a = pool.normal({4, 4}, DType::fp32);
  EXPECT_THROW(gelu_forward(x, a, pool.normal({16}, DType::fp32)), ShapeError);
  EXPECT_THROW(gelu_forward(x, a, pool.normal({4, 4}, DType::bf16)), ShapeError);
  EXPECT_THROW(gelu_forward(x, a, a.transpose(0, 1)), ShapeError);
  EXPECT_THROW(gelu_forward(x, a, {}), ShapeError);
  EXPECT_THROW(gelu_backward(x, a, pool.normal({4, 4}, DType::bf16), a), ShapeError);
  EXPECT_THROW(gelu_backward(x, a, a, pool.normal({4, 5}, DType::fp32)), ShapeError);
  const Tensor tokens = pool.integers({4}, 0, 1);
  EXPECT_THROW(gelu_forward(x, tokens, tokens), ShapeError);
}

}  // namespace
}  // namespace gradus
