#include "kernels/residual.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "support/close.h"
#include "support/dropout.h"
#include "support/precisions.h"
#include "support/simd_targets.h"
#include "support/tensors.h"

namespace gradus {
namespace {

using test::Precision;
using test::TensorPool;

struct Problem {
  Tensor in, bias, residual, dout;
  Tensor out, din, dbias;
  Dropout dropout;

  static Problem draw(TensorPool& pool, const Precision& p, const Shape& shape, bool with_bias,
                      float probability) {
    Problem problem;
    problem.in = pool.normal(shape, p.activation, 1.0, "in");
    problem.residual = pool.normal(shape, p.residual, 1.0, "residual");
    problem.dout = pool.normal(shape, p.residual, 1.0, "dout");
    if (with_bias) {
      problem.bias = pool.normal({shape[2]}, p.activation, 1.0, "bias");
      problem.dbias = pool.normal({shape[2]}, p.accumulator, 1.0, "dbias");
    }
    problem.dropout = test::some_dropout(probability);
    problem.poison(pool, p);
    return problem;
  }

  Problem as(TensorPool& pool, const Precision& p) const {
    Problem copy;
    copy.in = pool.copy(in, p.activation);
    copy.residual = pool.copy(residual, p.residual);
    copy.dout = pool.copy(dout, p.residual);
    if (bias.defined()) {
      copy.bias = pool.copy(bias, p.activation);
      copy.dbias = pool.copy(dbias, p.accumulator);
    }
    copy.dropout = dropout;
    copy.poison(pool, p);
    return copy;
  }

  void poison(TensorPool& pool, const Precision& p) {
    out = pool.poisoned(in.shape(), p.residual, "out");
    din = pool.poisoned(in.shape(), p.activation, "din");
  }

  void forward(Executor& x) const { residual_forward(x, out, in, bias, residual, dropout); }
  void backward(Executor& x) const { residual_backward(x, din, dbias, dout, dropout); }
};

const Shape kShapes[] = {{1, 1, 1},  {2, 3, 5},     {3, 1, 16},   {17, 2, 33},
                         {5, 7, 96}, {2, 300, 100}, {1, 3, 1029}, {2, 5, 2048}};

TEST(Residual, GradientsAgreeWithCentralDifferences) {
  Executor x(Device::cpu, 2);
  for (const bool with_bias : {false, true}) {
    for (const float p : {0.0f, 0.4f}) {
      TensorPool pool;
      const Problem problem = Problem::draw(pool, test::kFp64, {2, 3, 7}, with_bias, p);
      const auto loss = [&] {
        problem.forward(x);
        return test::weighted_sum(problem.out, problem.dout);
      };
      const Problem before = problem.as(pool, test::kFp64);
      problem.backward(x);
      test::expect_gradient("residual din", problem.din,
                            test::central_differences(loss, problem.in));
      test::expect_gradient("residual dresidual", problem.dout,
                            test::central_differences(loss, problem.residual));
      if (with_bias) {
        for (int64_t i = 0; i < 7; ++i) {  // what was added
          test::set_value(problem.dbias, i,
                          test::get_value(problem.dbias, i) - test::get_value(before.dbias, i));
        }
        test::expect_gradient("residual dbias", problem.dbias,
                              test::central_differences(loss, problem.bias));
      }
      pool.check_guards();
    }
  }
}

TEST(Residual, AgreesWithFp64OnEveryPrecisionAndInstructionSet) {
  test::for_each_simd_target([] {
    Executor x(Device::cpu, 2);
    Executor one(Device::cpu, 1);
    for (const Precision& precision : test::kPrecisions) {
      SCOPED_TRACE(precision.name);
      for (const Shape& shape : kShapes) {
        SCOPED_TRACE(to_string(shape));
        for (const bool with_bias : {false, true}) {
          for (const float probability : {0.0f, 0.3f}) {
            TensorPool pool(static_cast<uint64_t>(shape.numel()));
            const Problem p = Problem::draw(pool, precision, shape, with_bias, probability);
            const Problem oracle = p.as(pool, test::kFp64);
            oracle.forward(one);
            oracle.backward(one);
            p.forward(x);
            p.backward(x);
            test::expect_close(p.out, oracle.out);
            test::expect_close(p.din, oracle.din);
            if (with_bias) test::expect_close(p.dbias, oracle.dbias);
            pool.check_guards();
          }
        }
      }
    }
  });
}

// Where in + bias = 1 and residual = 0, out is the mask times 1 / (1 - p).
TEST(Residual, DropsExactlyTheElementsThatTheCountersName) {
  Executor x(Device::cpu, 2);
  test::for_each_simd_target([&] {
    for (const Precision& precision : test::kPrecisions) {
      for (const Shape& shape : kShapes) {
        TensorPool pool;
        const Problem p = Problem::draw(pool, precision, shape, false, 0.25f);
        test::set_all(p.in, 1.0);
        test::set_all(p.residual, 0.0);
        test::set_all(p.dout, 1.0);
        p.forward(x);
        p.backward(x);
        const Tensor expected = pool.poisoned(shape, DType::fp64);
        for (int64_t i = 0; i < shape.numel(); ++i) {
          test::set_value(expected, i, test::dropout_factor(p.dropout, shape, i));
        }
        EXPECT_LE(test::relative_error(p.out, expected),
                  test::elementwise_tolerance(p.out.dtype()));
        EXPECT_LE(test::relative_error(p.din, expected),
                  test::elementwise_tolerance(p.din.dtype()));
      }
    }
  });
}

// Five standard deviations of a binomial count.
TEST(Residual, KeepsTheExpectedShare) {
  Executor x(Device::cpu, 2);
  for (const float probability : {0.1f, 0.5f, 0.9f}) {
    TensorPool pool;
    const Shape shape{4, 64, 512};
    const Problem p = Problem::draw(pool, test::kPrecisions[1], shape, false, probability);
    test::set_all(p.in, 1.0);
    test::set_all(p.residual, 0.0);
    p.forward(x);
    int64_t kept = 0;
    for (int64_t i = 0; i < shape.numel(); ++i) kept += test::get_value(p.out, i) != 0.0 ? 1 : 0;
    const auto n = static_cast<double>(shape.numel());
    EXPECT_NEAR(static_cast<double>(kept), n * (1.0 - static_cast<double>(probability)),
                5.0 * std::sqrt(n * static_cast<double>(probability * (1.0f - probability))));
  }
}

TEST(Residual, ThreadsChangeOnlyTheOrderOfColumnSums) {
  Executor one(Device::cpu, 1);
  Executor two(Device::cpu, 2);
  for (const Precision& precision : test::kPrecisions) {
    TensorPool pool;
    const Problem a = Problem::draw(pool, precision, {3, 200, 100}, true, 0.1f);
    const Problem b = a.as(pool, precision);
    const Problem c = a.as(pool, precision);
    a.forward(one);
    a.backward(one);
    for (const Problem& p : {b, c}) {
      p.forward(two);
      p.backward(two);
    }
    EXPECT_EQ(test::values(a.out), test::values(b.out));
    EXPECT_EQ(test::values(a.din), test::values(b.din));
    EXPECT_LE(test::relative_error(b.dbias, a.dbias), test::elementwise_tolerance(b.dbias.dtype()));
    EXPECT_EQ(test::values(b.dbias), test::values(c.dbias));
    // In place on the residual stream.
    residual_forward(two, c.residual, c.in, c.bias, c.residual, c.dropout);
    EXPECT_EQ(test::values(c.residual), test::values(b.out));
  }
}

// Samples and positions of any layout see the masks of the whole.
TEST(Residual, MasksFollowTheGlobalSampleAndPosition) {
  Executor x(Device::cpu, 1);
  TensorPool pool;
  const Problem whole = Problem::draw(pool, test::kPrecisions[1], {3, 4, 20}, true, 0.5f);
  whole.forward(x);
  for (int64_t b = 0; b < 3; ++b) {
    for (int64_t t = 0; t < 4; ++t) {
      const auto part = [&](const Tensor& tensor) {
        return pool.copy(tensor.slice(0, b, 1).slice(1, t, 1), tensor.dtype());
      };
      Dropout dropout = whole.dropout;
      dropout.first_sample += b;
      dropout.first_position += t;
      const Tensor out = pool.poisoned({1, 1, 20}, DType::fp32);
      residual_forward(x, out, part(whole.in), whole.bias, part(whole.residual), dropout);
      EXPECT_EQ(test::values(out), test::values(part(whole.out)));
    }
  }
}

TEST(Residual, TakesExactlyTheScratchItDeclares) {
  Executor x(Device::cpu, 2);
  for (const Precision& precision : test::kPrecisions) {
    TensorPool pool;
    const Problem p = Problem::draw(pool, precision, {2, 3, 37}, true, 0.1f);
    const int64_t bytes = residual_scratch(x, 37, precision.residual);
    const Tensor memory = pool.poisoned({bytes / 8}, DType::fp64, "scratch");
    x.bind_scratch(memory);
    p.backward(x);
    pool.check_guards();
    x.bind_scratch(memory.slice(0, 0, bytes / 8 - 8));
    EXPECT_THROW(p.backward(x), MemoryError);
    x.bind_scratch({});
  }
}

TEST(Residual, RefusesWhatDoesNotFit) {
  Executor x(Device::cpu, 1);
  TensorPool pool;
  const Problem good = Problem::draw(pool, test::kPrecisions[1], {2, 3, 8}, true, 0.1f);
  const auto refused = [&](auto&& spoil) {
    Problem p = good;
    spoil(p);
    EXPECT_THROW(p.forward(x), ShapeError);
    EXPECT_THROW(p.backward(x), ShapeError);
  };
  refused([&](Problem& p) { p.in = p.din = pool.normal({2, 3, 9}, DType::fp32); });
  refused([&](Problem& p) { p.residual = p.dout = pool.normal({2, 3, 8}, DType::bf16); });
  refused([&](Problem& p) { p.in = p.din = pool.normal({2, 3, 8}, DType::fp64); });
  refused([&](Problem& p) { p.bias = p.dbias = pool.normal({7}, DType::fp32); });
  refused([&](Problem& p) { p.bias = p.dbias = pool.normal({8}, DType::bf16); });
  refused([&](Problem& p) { p.dropout.p = 1.0f; });
  refused([&](Problem& p) { p.dropout.p = std::nanf(""); });
  refused([&](Problem& p) {
    p.in = p.din = p.residual = p.dout = p.out = pool.normal({6, 8}, DType::fp32);
  });
}

}  // namespace
}  // namespace gradus
