#include "kernels/layernorm.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "core/error.h"
#include "support/close.h"
#include "support/precisions.h"
#include "support/simd_targets.h"
#include "support/tensors.h"

namespace gradus {
namespace {

using test::Precision;
using test::TensorPool;

/// The tensors of one layernorm, gradients started from non-zero values.
struct Problem {
  Tensor in, weight, bias, dout;
  Tensor out, mean, rstd;
  Tensor din, dweight, dbias;

  static Problem draw(TensorPool& pool, const Precision& p, int64_t rows, int64_t channels,
                      bool with_bias) {
    Problem problem;
    problem.in = pool.normal({rows, channels}, p.residual, 2.0, "in");
    problem.weight = pool.normal({channels}, p.activation, 1.0, "weight");
    if (with_bias) problem.bias = pool.normal({channels}, p.activation, 1.0, "bias");
    problem.dout = pool.normal({rows, channels}, p.activation, 1.0, "dout");
    problem.din = pool.normal({rows, channels}, p.residual, 1.0, "din");
    problem.dweight = pool.normal({channels}, p.accumulator, 1.0, "dweight");
    if (with_bias) problem.dbias = pool.normal({channels}, p.accumulator, 1.0, "dbias");
    problem.poison(pool, p);
    return problem;
  }

  /// The same numbers in other dtypes.
  Problem as(TensorPool& pool, const Precision& p) const {
    Problem copy;
    copy.in = pool.copy(in, p.residual);
    copy.weight = pool.copy(weight, p.activation);
    if (bias.defined()) copy.bias = pool.copy(bias, p.activation);
    copy.dout = pool.copy(dout, p.activation);
    copy.din = pool.copy(din, p.residual);
    copy.dweight = pool.copy(dweight, p.accumulator);
    if (bias.defined()) copy.dbias = pool.copy(dbias, p.accumulator);
    copy.poison(pool, p);
    return copy;
  }

  void poison(TensorPool& pool, const Precision& p) {
    out = pool.poisoned(in.shape(), p.activation, "out");
    mean = pool.poisoned({in.size(0)}, p.accumulator, "mean");
    rstd = pool.poisoned({in.size(0)}, p.accumulator, "rstd");
  }

  void forward(Executor& x) const { layernorm_forward(x, out, mean, rstd, in, weight, bias); }
  void backward(Executor& x) const {
    layernorm_backward(x, din, dweight, dbias, dout, in, weight, mean, rstd);
  }
};

constexpr int64_t kSizes[][2] = {{1, 1},  {1, 5},   {2, 7},    {3, 16},    {5, 31},   {17, 33},
                                 {7, 96}, {1, 768}, {13, 131}, {700, 100}, {300, 769}};

TEST(Layernorm, GradientsAgreeWithCentralDifferences) {
  Executor x(Device::cpu, 2);
  for (const bool with_bias : {false, true}) {
    for (const auto& [rows, channels] : {std::array<int64_t, 2>{3, 7}, {2, 17}, {4, 1}}) {
      TensorPool pool;
      const Problem p = Problem::draw(pool, test::kFp64, rows, channels, with_bias);
      const auto loss = [&] {
        p.forward(x);
        return test::weighted_sum(p.out, p.dout);
      };
      // What backward adds to gradients that are not zero.
      const auto before = p.as(pool, test::kFp64);
      loss();
      p.backward(x);
      const auto expect_added = [&](const char* name, const Tensor& after, const Tensor& start,
                                    const Tensor& at) {
        for (int64_t i = 0; i < after.numel(); ++i) {
          test::set_value(after, i, test::get_value(after, i) - test::get_value(start, i));
        }
        test::expect_gradient(name, after, test::central_differences(loss, at));
      };
      expect_added("layernorm din", p.din, before.din, p.in);
      expect_added("layernorm dweight", p.dweight, before.dweight, p.weight);
      if (with_bias) expect_added("layernorm dbias", p.dbias, before.dbias, p.bias);
      pool.check_guards();
    }
  }
}

TEST(Layernorm, AgreesWithFp64OnEveryPrecisionAndInstructionSet) {
  test::for_each_simd_target([] {
    Executor x(Device::cpu, 2);
    for (const Precision& precision : test::kPrecisions) {
      SCOPED_TRACE(precision.name);
      for (const auto& [rows, channels] : kSizes) {
        SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(channels));
        for (const bool with_bias : {false, true}) {
          TensorPool pool(static_cast<uint64_t>(rows * 1000 + channels));
          const Problem p = Problem::draw(pool, precision, rows, channels, with_bias);
          const Problem oracle = p.as(pool, test::kFp64);
          Executor one(Device::cpu, 1);
          oracle.forward(one);
          oracle.backward(one);
          p.forward(x);
          p.backward(x);
          test::expect_close(p.out, oracle.out);
          test::expect_close(p.mean, oracle.mean);
          test::expect_close(p.rstd, oracle.rstd);
          test::expect_close(p.din, oracle.din);
          test::expect_close(p.dweight, oracle.dweight);
          if (with_bias) test::expect_close(p.dbias, oracle.dbias);
          pool.check_guards();
        }
      }
    }
  });
}

TEST(Layernorm, ConstantRowsGiveTheBias) {
  Executor x(Device::cpu, 1);
  for (const Precision& precision : test::kPrecisions) {
    for (const double value : {0.0, 0.1, -3.0e4}) {
      TensorPool pool;
      const Problem p = Problem::draw(pool, precision, 2, 100, true);
      for (int64_t i = 0; i < p.in.numel(); ++i) test::set_value(p.in, i, value);
      p.forward(x);
      EXPECT_LE(test::relative_error(p.out.slice(0, 0, 1).reshape({100}), p.bias),
                test::elementwise_tolerance(p.out.dtype()))
          << precision.name << " " << value;
      EXPECT_NEAR(test::get_value(p.rstd, 0), 1.0 / std::sqrt(kLayernormEpsilon), 1e-4);
    }
  }
}

// E[x²] - E[x]² would have nothing left of the variance here: 1 beside 10^8 in fp32.
TEST(Layernorm, KeepsTheVarianceOfRowsWithAHugeMean) {
  Executor x(Device::cpu, 1);
  TensorPool pool;
  const Problem p = Problem::draw(pool, test::kPrecisions[1], 4, 1000, true);
  for (int64_t i = 0; i < p.in.numel(); ++i) {
    test::set_value(p.in, i, 1.0e4 + test::get_value(p.in, i));
  }
  const Problem oracle = p.as(pool, test::kFp64);
  p.forward(x);
  oracle.forward(x);
  // The inputs are the same rounded ones, so only the arithmetic differs.
  EXPECT_LE(test::relative_error(p.out, oracle.out), test::elementwise_tolerance(DType::fp32));
  EXPECT_LE(test::relative_error(p.rstd, oracle.rstd), test::elementwise_tolerance(DType::fp32));
  EXPECT_LE(test::relative_error(p.mean, oracle.mean), test::elementwise_tolerance(DType::fp32));
}

// With rstd = 1 / √∞ = 0 such a row would be the bias, as of a healthy model.
TEST(Layernorm, AVarianceThatOverflowsShows) {
  Executor x(Device::cpu, 1);
  for (const Precision& precision : test::kPrecisions) {
    TensorPool pool;
    const Problem p = Problem::draw(pool, precision, 3, 40, true);
    const double huge = p.in.dtype() == DType::fp64 ? 1e200 : 1e20;
    test::set_value(p.in, 40 + 17, huge);
    p.forward(x);
    for (int64_t i = 0; i < p.out.numel(); ++i) {
      EXPECT_EQ(std::isnan(test::get_value(p.out, i)), i / 40 == 1) << i;
    }
    EXPECT_TRUE(std::isnan(test::get_value(p.rstd, 1)));
  }
}

TEST(Layernorm, NanStaysInItsRow) {
  Executor x(Device::cpu, 1);
  for (const Precision& precision : test::kPrecisions) {
    TensorPool pool;
    const Problem p = Problem::draw(pool, precision, 3, 40, true);
    test::set_value(p.in, 40 + 17, std::nan(""));
    p.forward(x);
    for (int64_t i = 0; i < p.out.numel(); ++i) {
      EXPECT_EQ(std::isnan(test::get_value(p.out, i)), i / 40 == 1) << i;
    }
  }
}

TEST(Layernorm, ThreadsChangeOnlyTheOrderOfColumnSums) {
  Executor one(Device::cpu, 1);
  Executor two(Device::cpu, 2);
  for (const Precision& precision : test::kPrecisions) {
    TensorPool pool;
    const Problem a = Problem::draw(pool, precision, 700, 100, true);
    const Problem b = a.as(pool, precision);
    const Problem c = a.as(pool, precision);
    a.forward(one);
    a.backward(one);
    for (const Problem& p : {b, c}) {
      p.forward(two);
      p.backward(two);
    }
    EXPECT_EQ(test::values(a.out), test::values(b.out));
    EXPECT_EQ(test::values(a.mean), test::values(b.mean));
    EXPECT_EQ(test::values(a.rstd), test::values(b.rstd));
    EXPECT_EQ(test::values(a.din), test::values(b.din));
    EXPECT_LE(test::relative_error(b.dweight, a.dweight),
              test::elementwise_tolerance(b.dweight.dtype()));
    EXPECT_LE(test::relative_error(b.dbias, a.dbias), test::elementwise_tolerance(b.dbias.dtype()));
    // Bitwise the same from run to run.
    EXPECT_EQ(test::values(b.dweight), test::values(c.dweight));
    EXPECT_EQ(test::values(b.dbias), test::values(c.dbias));
  }
}

TEST(Layernorm, TakesExactlyTheScratchItDeclares) {
  Executor x(Device::cpu, 2);
  for (const Precision& precision : test::kPrecisions) {
    TensorPool pool;
    const Problem p = Problem::draw(pool, precision, 5, 37, true);
    p.forward(x);
    const int64_t bytes = layernorm_scratch(x, 37, precision.residual);
    const Tensor memory = pool.poisoned({bytes / 8}, DType::fp64, "scratch");
    x.bind_scratch(memory);
    p.backward(x);
    pool.check_guards();
    x.bind_scratch(memory.slice(0, 0, bytes / 8 - 8));
    EXPECT_THROW(p.backward(x), MemoryError);
    x.bind_scratch({});
  }
}

TEST(Layernorm, NoRowsIsNothingToDo) {
  Executor x(Device::cpu, 2);
  TensorPool pool;
  const Problem p = Problem::draw(pool, test::kPrecisions[1], 0, 8, true);
  const auto dweight = test::values(p.dweight);
  p.forward(x);
  p.backward(x);
  EXPECT_EQ(test::values(p.dweight), dweight);
}

TEST(Layernorm, RefusesWhatDoesNotFit) {
  Executor x(Device::cpu, 1);
  TensorPool pool;
  const Problem good = Problem::draw(pool, test::kPrecisions[1], 4, 8, true);
  const auto refused = [&](auto&& spoil) {
    Problem p = good;
    spoil(p);
    EXPECT_THROW(p.forward(x), ShapeError);
    EXPECT_THROW(p.backward(x), ShapeError);
  };
  refused([&](Problem& p) { p.in = pool.normal({4, 9}, DType::fp32); });
  refused([&](Problem& p) { p.in = pool.normal({4, 8}, DType::fp64); });
  refused([&](Problem& p) { p.in = pool.normal({8, 4}, DType::fp32).transpose(0, 1); });
  refused([&](Problem& p) { p.weight = pool.normal({8}, DType::bf16); });
  refused([&](Problem& p) { p.weight = Tensor(); });
  refused([&](Problem& p) { p.mean = pool.normal({3}, DType::fp32); });
  refused([&](Problem& p) { p.rstd = pool.normal({4}, DType::bf16); });
  refused([&](Problem& p) {
    p.out = pool.normal({4, 7}, DType::fp32);
    p.dout = p.out;
  });
  refused([&](Problem& p) {
    p.bias = pool.normal({7}, DType::fp32);
    p.dbias = p.bias;
  });
  Problem p = good;
  p.din = pool.normal({4, 8}, DType::bf16);
  EXPECT_THROW(p.backward(x), ShapeError);
  p = good;
  p.dweight = pool.normal({8}, DType::bf16);
  EXPECT_THROW(p.backward(x), ShapeError);
}

}  // namespace
}  // namespace gradus
