#include "kernels/cross_entropy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/error.h"
#include "support/simd_targets.h"
#include "support/tensors.h"

namespace gradus {
namespace {

using test::TensorPool;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Loss, lse and gradient of a vocabulary cut in parts as tensor-parallel ranks hold it; the
// reductions over the ranks are done by hand.
struct Result {
  double loss = 0.0;
  std::vector<double> lse;
  std::vector<double> dlogits;  // (N, padded vocabulary)
};

// parts: columns of each rank, which add up to the columns of logits.
Result run(Executor& x, const Tensor& logits, const Tensor& targets,
           const std::vector<int64_t>& parts, int64_t vocabulary, double scale, DType dlogits_dtype,
           bool in_place = false) {
  TensorPool pool;
  const int64_t rows = logits.size(0);
  const int64_t columns = logits.size(1);
  const DType dtype = logits.dtype();
  const auto n = static_cast<size_t>(rows);
  std::vector<double> max(n, -kInfinity), sum(n, 0.0), at_target(n, 0.0);
  std::vector<Tensor> part_logits;
  int64_t first = 0;
  for (const int64_t width : parts) {
    const Tensor part = pool.copy(logits.slice(1, first, width), dtype);
    const Tensor row_max = pool.poisoned({rows}, dtype, "row_max");
    const Tensor row_sum = pool.poisoned({rows}, dtype, "row_sum");
    const Tensor target_logit = pool.poisoned({rows}, dtype, "target_logit");
    cross_entropy_statistics(x, row_max, row_sum, target_logit, part, targets, first, vocabulary);
    for (int64_t i = 0; i < rows; ++i) {
      const auto r = static_cast<size_t>(i);
      const double m = test::get_value(row_max, i);
      const double s = test::get_value(row_sum, i);
      if (first >= vocabulary) {
        EXPECT_EQ(m, -kInfinity);
        EXPECT_EQ(s, 0.0);
      }
      const double both = std::max(max[r], m);
      sum[r] = (sum[r] > 0 ? sum[r] * std::exp(max[r] - both) : 0.0) +
               (s > 0 ? s * std::exp(m - both) : s);
      max[r] = both;
      at_target[r] += test::get_value(target_logit, i);
    }
    part_logits.push_back(part);
    first += width;
  }
  const auto tensor_of = [&](const std::vector<double>& values) {
    const Tensor tensor = pool.poisoned({rows}, dtype);
    for (int64_t i = 0; i < rows; ++i) test::set_value(tensor, i, values[static_cast<size_t>(i)]);
    return tensor;
  };
  const Tensor loss = pool.zeros({1}, DType::fp64, "loss");
  test::set_value(loss, 0, 3.0);  // it is added to
  const Tensor lse = pool.poisoned({rows}, dtype, "lse");
  cross_entropy_forward(x, loss, lse, tensor_of(max), tensor_of(sum), tensor_of(at_target),
                        targets);
  Result result;
  result.loss = test::get_value(loss, 0) - 3.0;
  result.lse = test::values(lse);
  result.dlogits.resize(static_cast<size_t>(rows * columns));
  first = 0;
  for (size_t p = 0; p < parts.size(); ++p) {
    const Tensor dlogits =
        in_place ? part_logits[p] : pool.poisoned({rows, parts[p]}, dlogits_dtype, "dlogits");
    cross_entropy_backward(x, dlogits, part_logits[p], lse, targets, first, vocabulary, scale);
    for (int64_t e = 0; e < dlogits.numel(); ++e) {
      const int64_t column = first + e % parts[p];
      result.dlogits[static_cast<size_t>(e / parts[p] * columns + column)] =
          test::get_value(dlogits, e);
    }
    first += parts[p];
  }
  pool.check_guards();
  return result;
}

Result reference(const Tensor& logits, const Tensor& targets, int64_t vocabulary, double scale) {
  Result result;
  const int64_t columns = logits.size(1);
  for (int64_t i = 0; i < logits.size(0); ++i) {
    const auto logit = [&](int64_t j) { return test::get_value(logits, i * columns + j); };
    const auto target = static_cast<int64_t>(test::get_value(targets, i));
    double max = -kInfinity;
    for (int64_t j = 0; j < vocabulary; ++j) max = std::max(max, logit(j));
    double sum = 0.0;
    for (int64_t j = 0; j < vocabulary; ++j) sum += std::exp(logit(j) - max);
    const double lse = max + std::log(sum);
    result.lse.push_back(lse);
    if (target != kIgnoredTarget) result.loss += lse - logit(target);
    for (int64_t j = 0; j < columns; ++j) {
      const bool counts = target != kIgnoredTarget && j < vocabulary;
      const double p = counts ? std::exp(logit(j) - lse) : 0.0;
      result.dlogits.push_back(scale * (p - (counts && j == target ? 1.0 : 0.0)));
    }
  }
  return result;
}

// Targets of every kind: first, last, ignored, random.
Tensor draw_targets(TensorPool& pool, int64_t rows, int64_t vocabulary) {
  const Tensor targets = pool.integers({rows}, 0, static_cast<int32_t>(vocabulary - 1), "targets");
  if (rows > 2) test::set_value(targets, 2, static_cast<double>(kIgnoredTarget));
  if (rows > 3) test::set_value(targets, 3, static_cast<double>(vocabulary - 1));
  if (rows > 4) test::set_value(targets, 4, 0.0);
  return targets;
}

struct Case {
  int64_t rows, columns, vocabulary;
  std::vector<int64_t> parts;
};

// One column, primes, nothing that a vector divides, several blocks of 1024, padding inside a part
// and a whole part of padding; one, two and three unequal parts.
const Case kCases[] = {
    {1, 1, 1, {1}},          {3, 2, 1, {1, 1}},         {5, 7, 7, {7}},
    {7, 7, 7, {3, 4}},       {6, 16, 13, {5, 3, 8}},    {9, 97, 97, {13, 1, 83}},
    {0, 5, 5, {5}},          {17, 1024, 1000, {1024}},  {4, 2600, 2500, {2600}},
    {5, 1033, 1031, {1033}}, {8, 40, 17, {17, 12, 11}}, {11, 3100, 3001, {1025, 75, 2000}},
};

void expect_close(const Result& actual, const Result& expected, double loss_tolerance,
                  double lse_tolerance, double gradient_tolerance) {
  EXPECT_NEAR(actual.loss, expected.loss, loss_tolerance * std::max(1.0, std::abs(expected.loss)));
  ASSERT_EQ(actual.lse.size(), expected.lse.size());
  for (size_t i = 0; i < expected.lse.size(); ++i) {
    ASSERT_NEAR(actual.lse[i], expected.lse[i],
                lse_tolerance * std::max(1.0, std::abs(expected.lse[i])))
        << "row " << i;
  }
  ASSERT_EQ(actual.dlogits.size(), expected.dlogits.size());
  for (size_t i = 0; i < expected.dlogits.size(); ++i) {
    ASSERT_NEAR(actual.dlogits[i], expected.dlogits[i],
                gradient_tolerance * std::abs(expected.dlogits[i]) + gradient_tolerance * 1e-6)
        << "element " << i;
  }
}

TEST(CrossEntropy, AgreesWithLoopsWholeAndCut) {
  for (const int threads : {1, 3}) {
    Executor x(Device::cpu, threads);
    test::for_each_simd_target([&] {
      for (const Case& c : kCases) {
        SCOPED_TRACE(fmt::format("N {} columns {} vocabulary {} parts {}", c.rows, c.columns,
                                 c.vocabulary, c.parts.size()));
        TensorPool pool;
        const Tensor exact = pool.normal({c.rows, c.columns}, DType::fp64, 3.0, "logits");
        const Tensor single = pool.copy(exact, DType::fp32);
        const Tensor targets = draw_targets(pool, c.rows, c.vocabulary);
        const double scale = 0.37;
        const Result from_double = reference(exact, targets, c.vocabulary, scale);
        const Result from_single = reference(single, targets, c.vocabulary, scale);
        const std::vector<int64_t> whole = {c.columns};
        for (const auto& parts : {whole, c.parts}) {
          // fp64: exp within an ulp or two, sums of at most 3001 terms.
          expect_close(run(x, exact, targets, parts, c.vocabulary, scale, DType::fp64), from_double,
                       1e-13, 1e-14, 1e-12);
          // fp32: statistics and lse are rounded to 2^-24 of |lse| <= 16, which a probability
          // multiplies by itself.
          expect_close(run(x, single, targets, parts, c.vocabulary, scale, DType::fp32),
                       from_single, 1e-6, 1e-6, 1e-5);
          expect_close(run(x, single, targets, parts, c.vocabulary, scale, DType::bf16),
                       from_single, 1e-6, 1e-6, 0x1p-8);
          const Result apart = run(x, single, targets, parts, c.vocabulary, scale, DType::fp32);
          const Result in_place =
              run(x, single, targets, parts, c.vocabulary, scale, DType::fp32, true);
          EXPECT_EQ(in_place.dlogits, apart.dlogits);
        }
      }
    });
  }
}

TEST(CrossEntropy, GradientAgreesWithCentralDifferences) {
  Executor x(Device::cpu, 2);
  for (const Case& c :
       {Case{5, 7, 7, {7}}, Case{6, 16, 13, {5, 3, 8}}, Case{3, 37, 31, {20, 17}}}) {
    TensorPool pool;
    const Tensor logits = pool.normal({c.rows, c.columns}, DType::fp64, 1.0, "logits");
    const Tensor targets = draw_targets(pool, c.rows, c.vocabulary);
    const auto loss = [&] {
      return 0.25 * run(x, logits, targets, c.parts, c.vocabulary, 0.25, DType::fp64).loss;
    };
    const Result result = run(x, logits, targets, c.parts, c.vocabulary, 0.25, DType::fp64);
    const Tensor analytic = pool.poisoned({c.rows, c.columns}, DType::fp64);
    for (int64_t e = 0; e < analytic.numel(); ++e) {
      test::set_value(analytic, e, result.dlogits[static_cast<size_t>(e)]);
    }
    test::expect_gradient("cross_entropy logits", analytic,
                          test::central_differences(loss, logits));
  }
}

TEST(CrossEntropy, PaddingAndIgnoredRowsGetNothing) {
  Executor x(Device::cpu, 2);
  for (const DType dtype : {DType::fp64, DType::fp32}) {
    TensorPool pool;
    // Padded columns hold what must never be read: NaN and numbers that would win.
    const Tensor logits = pool.normal({6, 21}, dtype);
    for (int64_t i = 0; i < 6; ++i) {
      for (int64_t j = 17; j < 21; ++j) {
        test::set_value(logits, i * 21 + j, j % 2 == 0 ? std::nan("") : 1e30);
      }
    }
    const Tensor targets = pool.integers({6}, 0, 16, "targets");
    test::set_value(targets, 1, kIgnoredTarget);
    test::set_value(targets, 5, kIgnoredTarget);
    const Result result = run(x, logits, targets, {9, 12}, 17, 2.0, dtype);
    EXPECT_TRUE(std::isfinite(result.loss));
    for (int64_t i = 0; i < 6; ++i) {
      double sum = 0.0;
      for (int64_t j = 0; j < 21; ++j) {
        const double g = result.dlogits[static_cast<size_t>(i * 21 + j)];
        sum += g;
        if (j >= 17 || i == 1 || i == 5) {
          EXPECT_EQ(g, 0.0) << i << ", " << j;
        }
      }
      // Probabilities add up to one, so a row's gradient adds up to zero.
      EXPECT_NEAR(sum, 0.0, dtype == DType::fp64 ? 1e-14 : 1e-6);
    }
    for (int64_t i = 0; i < 6; ++i) test::set_value(targets, i, kIgnoredTarget);
    const Result nothing = run(x, logits, targets, {21}, 17, 2.0, dtype);
    EXPECT_EQ(nothing.loss, 0.0);
    EXPECT_EQ(nothing.dlogits, std::vector<double>(6 * 21, 0.0));
  }
}

TEST(CrossEntropy, LargeLogitsDoNotOverflow) {
  Executor x(Device::cpu, 1);
  for (const DType dtype : {DType::fp64, DType::fp32}) {
    TensorPool pool;
    const Tensor logits = pool.poisoned({3, 5}, dtype);
    const double values[] = {1e30,       0,     -1e30, 5,          5,      //
                             -1e30,      -1e30, -1e30, -1e30,      -1e30,  //
                             -kInfinity, 88,    89,    -kInfinity, 90};
    for (int64_t e = 0; e < 15; ++e) test::set_value(logits, e, values[e]);
    const Tensor targets = pool.integers({3}, 0, 0);
    test::set_value(targets, 2, 4.0);
    const Result result = run(x, logits, targets, {2, 3}, 5, 1.0, dtype);
    const double eps = dtype == DType::fp64 ? 1e-14 : 1e-5;
    // log 5 of the second row is far below the last digit of its lse.
    EXPECT_NEAR(result.loss, std::log(5.0) + std::log(1 + std::exp(-1.0) + std::exp(-2.0)),
                dtype == DType::fp64 ? 1e-10 : 1e-5);
    EXPECT_EQ(result.dlogits[0], 0.0);
    EXPECT_NEAR(result.dlogits[14], std::exp(90 - result.lse[2]) - 1, eps);
    EXPECT_EQ(result.dlogits[10], 0.0);
    EXPECT_EQ(result.dlogits[13], 0.0);
  }
}

TEST(CrossEntropy, LossOfTheRightTokenKeepsItsDigits) {
  // p -> 1: p - 1 from rounded p would be 0 or off by 100%.
  Executor x(Device::cpu, 1);
  TensorPool pool;
  const Tensor logits = pool.zeros({1, 2}, DType::fp64);
  test::set_value(logits, 0, 30.0);
  const Tensor targets = pool.integers({1}, 0, 0);
  const Result result = run(x, logits, targets, {2}, 2, 1.0, DType::fp64);
  EXPECT_NEAR(result.dlogits[0] / -std::exp(-30.0), 1.0, 0.05);
}

TEST(CrossEntropy, NanAndMissingTokensReachTheLoss) {
  Executor x(Device::cpu, 1);
  for (const DType dtype : {DType::fp64, DType::fp32}) {
    for (const int64_t columns : {3, 16, 29, 1500}) {
      for (const int64_t bad : {int64_t{0}, columns / 2, columns - 1}) {
        TensorPool pool;
        const Tensor logits = pool.normal({2, columns}, dtype);
        const Tensor targets = pool.integers({2}, 0, 0);
        for (const double value : {std::nan(""), kInfinity}) {
          test::set_value(logits, columns + bad, value);
          const Result result = run(x, logits, targets, {columns}, columns, 1.0, dtype);
          EXPECT_TRUE(std::isnan(result.loss)) << columns << " " << bad << " " << value;
          EXPECT_TRUE(std::isnan(result.dlogits[static_cast<size_t>(columns + bad)]));
          EXPECT_TRUE(std::isfinite(result.dlogits[static_cast<size_t>(bad)]));
        }
      }
    }
    TensorPool pool;
    const Tensor logits = pool.normal({2, 8}, dtype);
    for (const double token : {7.0, 8.0, -2.0}) {
      const Tensor targets = pool.integers({2}, 0, 0);
      test::set_value(targets, 1, token);
      EXPECT_TRUE(std::isnan(run(x, logits, targets, {8}, 7, 1.0, dtype).loss)) << token;
    }
  }
}

TEST(CrossEntropy, RepeatsBitwiseOnAnyNumberOfThreads) {
  TensorPool pool;
  const Tensor logits = pool.normal({37, 1300}, DType::fp32, 2.0);
  const Tensor targets = draw_targets(pool, 37, 1290);
  Executor one(Device::cpu, 1);
  const Result first = run(one, logits, targets, {1300}, 1290, 1.0 / 37, DType::fp32);
  for (const int threads : {1, 2, 5}) {
    Executor x(Device::cpu, threads);
    const Result again = run(x, logits, targets, {1300}, 1290, 1.0 / 37, DType::fp32);
    EXPECT_EQ(again.loss, first.loss);
    EXPECT_EQ(again.lse, first.lse);
    EXPECT_EQ(again.dlogits, first.dlogits);
  }
}

TEST(CrossEntropy, RefusesWhatDoesNotFit) {
  Executor x(Device::cpu, 1);
  TensorPool pool;
  const Tensor logits = pool.normal({4, 6}, DType::fp32, 1.0, "logits");
  const Tensor targets = pool.integers({4}, 0, 5, "targets");
  const Tensor row = pool.normal({4}, DType::fp32, 1.0, "row");
  const Tensor wide = pool.normal({4}, DType::fp64, 1.0, "wide");
  const Tensor loss = pool.zeros({1}, DType::fp64, "loss");
  const Tensor half = pool.normal({4, 6}, DType::bf16);
  EXPECT_THROW(cross_entropy_statistics(x, row, row, row, half, targets, 0, 6), ShapeError);
  EXPECT_THROW(cross_entropy_statistics(x, row, row, row, logits, row, 0, 6), ShapeError);
  EXPECT_THROW(cross_entropy_statistics(x, row, row, wide, logits, targets, 0, 6), ShapeError);
  EXPECT_THROW(cross_entropy_statistics(x, row, row, row, logits, targets, -1, 6), ShapeError);
  EXPECT_THROW(cross_entropy_statistics(x, row, row, row, logits, targets, 0, 0), ShapeError);
  EXPECT_THROW(cross_entropy_statistics(x, row, row, row, logits.transpose(0, 1), targets, 0, 6),
               ShapeError);
  EXPECT_THROW(cross_entropy_forward(x, row, row, row, row, row, targets), ShapeError);
  EXPECT_THROW(cross_entropy_forward(x, loss, row, wide, row, row, targets), ShapeError);
  EXPECT_THROW(cross_entropy_forward(x, loss, row, row, row, Tensor(), targets), ShapeError);
  EXPECT_THROW(cross_entropy_backward(x, logits, logits, wide, targets, 0, 6, 1.0), ShapeError);
  EXPECT_THROW(
      cross_entropy_backward(x, pool.normal({4, 6}, DType::fp64), logits, row, targets, 0, 6, 1.0),
      ShapeError);
  const Tensor alias(logits.data(), DType::bf16, Device::cpu, {4, 6}, "alias");
  EXPECT_THROW(cross_entropy_backward(x, alias, logits, row, targets, 0, 6, 1.0), ShapeError);
}

}  // namespace
}  // namespace gradus
