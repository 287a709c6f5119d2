#include "kernels/cuda/cross_entropy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "kernels/cuda/device_array.h"

namespace gradus::cuda {
namespace {

using test::DeviceArray;
using test::expect_close;
using test::kPrecisions;
using test::Precisions;
using test::random_numbers;
using test::rounding_of;
using Numbers = std::vector<double>;

/// Targets all over the vocabulary, with one ignored.
Numbers some_targets(int64_t rows, int64_t vocabulary) {
  Numbers targets;
  for (int64_t i = 0; i < rows; ++i) {
    targets.push_back(i % 5 == 3 ? -1.0 : static_cast<double>(i * 7919 % vocabulary));
  }
  return targets;
}

struct Want {
  Numbers max, sum, target, lse, dlogits;
  double loss = 0.0;
};

Want reference(const Numbers& logits, const Numbers& targets, int64_t columns, int64_t vocabulary,
               double scale) {
  Want want;
  want.dlogits.assign(logits.size(), 0.0);
  for (size_t i = 0; i < targets.size(); ++i) {
    const double* row = logits.data() + static_cast<int64_t>(i) * columns;
    const double most = *std::max_element(row, row + vocabulary);
    double sum = 0.0;
    for (int64_t c = 0; c < vocabulary; ++c) sum += std::exp(row[c] - most);
    const auto target = static_cast<int64_t>(targets[i]);
    want.max.push_back(most);
    want.sum.push_back(sum);
    want.lse.push_back(most + std::log(sum));
    want.target.push_back(target < 0 ? 0.0 : row[target]);
    if (target < 0) continue;
    want.loss += want.lse.back() - row[target];
    for (int64_t c = 0; c < vocabulary; ++c) {
      const double p = std::exp(row[c] - want.lse.back());
      want.dlogits[i * static_cast<size_t>(columns) + static_cast<size_t>(c)] =
          scale * (p - (c == target ? 1.0 : 0.0));
    }
  }
  return want;
}

/// The tensors of one classifier.
struct Problem {
  int64_t rows, columns, vocabulary;
  DeviceArray logits, targets, max, sum, target, lse, loss;

  Problem(DType dtype, int64_t n, int64_t v_padded, int64_t v, double deviation, int64_t offset = 0)
      : rows(n),
        columns(v_padded),
        vocabulary(v),
        logits(dtype, random_numbers(n * v_padded, 1, deviation), offset),
        targets(DType::i32, some_targets(n, v)),
        max(DType::fp32, n),
        sum(DType::fp32, n),
        target(DType::fp32, n),
        lse(DType::fp32, n),
        loss(DType::fp64, Numbers{2.5}) {}

  LogitRows in() const {
    return {.logits = logits.data(),
            .dtype = logits.dtype(),
            .targets = targets.data<int32_t>(),
            .rows = rows,
            .columns = columns,
            .first_column = 0,
            .vocabulary = vocabulary};
  }
  RowStatistics statistics() const {
    return {max.data<float>(), sum.data<float>(), target.data<float>()};
  }
  void forward() const {
    cross_entropy_forward(loss.data<double>(), lse.data<float>(), statistics(),
                          targets.data<int32_t>(), rows, nullptr);
  }
  void expect_statistics(const Want& want) const {
    expect_close(max.download(), want.max, 0.0, "row_max");
    expect_close(sum.download(), want.sum, 3e-6, "row_sum");
    expect_close(target.download(), want.target, 0.0, "target_logit");
    expect_close(lse.download(), want.lse, 1e-6, "lse", 1.0);
    expect_close(loss.download(), {2.5 + want.loss}, 1e-6, "loss");
  }
};

constexpr int64_t kShapes[][3] = {  // N, V_tp, vocabulary
    {1, 1, 1},       {3, 7, 7},       {37, 33, 30},     {5, 1024, 1000},
    {3, 5000, 4999}, {2, 8192, 8192}, {2, 40000, 39001}};

TEST(CudaCrossEntropy, AgreesWithFp64) {
  constexpr double kScale = 0.125;
  for (const Precisions& p : kPrecisions) {
    for (const auto& [rows, columns, vocabulary] : kShapes) {
      for (const double deviation : {1.0, 8.0}) {
        for (const int64_t offset : {0, 1}) {
          if (offset > 0 && columns > 8192) continue;
          SCOPED_TRACE(to_text(p) + " " + std::to_string(rows) + "x" + std::to_string(columns));
          const Problem a(p.residual, rows, columns, vocabulary, deviation, offset);
          const Want want =
              reference(a.logits.download(), a.targets.download(), columns, vocabulary, kScale);
          cross_entropy_statistics(a.in(), a.statistics(), nullptr);
          a.forward();
          a.expect_statistics(want);
          const DeviceArray dlogits(p.activation, rows * columns, offset);
          cross_entropy_backward(dlogits.data(), p.activation, a.in(), a.lse.data<float>(), kScale,
                                 nullptr);
          const double bound = std::max(rounding_of(p.activation), 1e-5);
          expect_close(dlogits.download(), want.dlogits, bound, "dlogits", 0.01);
          if (p.residual == p.activation) {
            cross_entropy_backward(a.logits.data(), p.activation, a.in(), a.lse.data<float>(),
                                   kScale, nullptr);
            EXPECT_EQ(a.logits.download(), dlogits.download()) << "in place";
          }
        }
      }
    }
  }
}

TEST(CudaCrossEntropy, FusedAgreesWithFp64) {
  constexpr double kScale = 0.125;
  const FusedPlan plans[] = {{},
                             {256, false, 0},
                             {1024, false, 0},
                             {512, false, 16 << 10},
                             {512, true, 0},
                             {512, true, 4 << 10},
                             {1024, true, 100 << 10},
                             {.threads = 1024, .blocks = 1},
                             {.threads = 256, .blocks = 132}};
  for (const Precisions& p : kPrecisions) {
    for (const auto& [rows, columns, vocabulary] :
         {std::array<int64_t, 3>{5, 1024, 1000}, {2, 40000, 39001}, {3, 8, 3}}) {
      for (const FusedPlan& plan : plans) {
        SCOPED_TRACE(to_text(p) + " " + std::to_string(rows) + "x" + std::to_string(columns) +
                     ", " + std::to_string(plan.threads) + " threads, " +
                     std::to_string(plan.shared_bytes) + " bytes");
        const Problem a(p.residual, rows, columns, vocabulary, 4.0);
        const Want want =
            reference(a.logits.download(), a.targets.download(), columns, vocabulary, kScale);
        const bool in_place = p.residual == p.activation;
        const DeviceArray apart(p.activation, in_place ? 1 : rows * columns);
        const DeviceArray& dlogits = in_place ? a.logits : apart;
        cross_entropy_fused(dlogits.data(), p.activation, a.in(), a.statistics(), kScale, nullptr,
                            plan);
        a.forward();
        a.expect_statistics(want);
        const double bound = std::max(rounding_of(p.activation), 1e-5);
        expect_close(dlogits.download(), want.dlogits, bound, "dlogits", 0.01);
      }
    }
  }
}

/// A vocabulary cut over ranks, one of which has nothing but padding: joined as the ranks would.
TEST(CudaCrossEntropy, CutOverRanks) {
  constexpr int64_t kRows = 7;
  constexpr int64_t kColumns = 120;
  constexpr int64_t kVocabulary = 75;
  constexpr int64_t kRanks = 3;
  constexpr int64_t kPart = kColumns / kRanks;
  constexpr double kScale = 0.5;
  const Problem whole(DType::fp32, kRows, kColumns, kVocabulary, 3.0);
  const Numbers logits = whole.logits.download();
  const Want want = reference(logits, whole.targets.download(), kColumns, kVocabulary, kScale);
  Numbers sums(kRows, 0.0);
  Numbers targets(kRows, 0.0);
  Numbers got(logits.size());
  for (const bool gradient : {false, true}) {
    for (int64_t rank = 0; rank < kRanks; ++rank) {
      Numbers mine;
      for (int64_t row = 0; row < kRows; ++row) {
        const auto first = logits.begin() + row * kColumns + rank * kPart;
        mine.insert(mine.end(), first, first + kPart);
      }
      const Problem part(DType::fp32, kRows, kPart, kVocabulary, 1.0);
      const DeviceArray my_logits(DType::fp32, mine);
      LogitRows in = part.in();
      in.logits = my_logits.data();
      in.targets = whole.targets.data<int32_t>();
      in.first_column = rank * kPart;
      if (!gradient) {
        cross_entropy_statistics(in, part.statistics(), nullptr);
        if (rank == 2) {
          EXPECT_EQ(part.max.download()[0], -std::numeric_limits<double>::infinity());
          EXPECT_EQ(part.sum.download()[0], 0.0);
        }
        const DeviceArray whole_max(DType::fp32, want.max);
        cross_entropy_rescale(part.sum.data<float>(), part.max.data<float>(),
                              whole_max.data<float>(), kRows, nullptr);
        const Numbers sum = part.sum.download();
        const Numbers target = part.target.download();
        for (size_t i = 0; i < sums.size(); ++i) {
          sums[i] += sum[i];
          targets[i] += target[i];
        }
      } else {
        const DeviceArray lse(DType::fp32, want.lse);
        const DeviceArray dlogits(DType::fp32, kRows * kPart);
        cross_entropy_backward(dlogits.data(), DType::fp32, in, lse.data<float>(), kScale, nullptr);
        const Numbers values = dlogits.download();
        for (int64_t i = 0; i < kRows * kPart; ++i) {
          got[static_cast<size_t>(i / kPart * kColumns + rank * kPart + i % kPart)] =
              values[static_cast<size_t>(i)];
        }
      }
    }
  }
  expect_close(sums, want.sum, 3e-6, "sums");
  expect_close(targets, want.target, 1e-7, "targets");
  expect_close(got, want.dlogits, 1e-5, "dlogits", 0.01);
}

/// NaN among the logits, and a target that is no token, reach the loss; -inf is a probability of 0.
TEST(CudaCrossEntropy, WhatIsNotFinite) {
  for (const int64_t offset : {0, 1}) {
    Problem a(DType::fp32, 3, 64, 64, 1.0, offset);
    Numbers logits = a.logits.download();
    for (size_t c = 0; c < 40; ++c) logits[c] = -std::numeric_limits<double>::infinity();
    logits[64 + 11] = std::numeric_limits<double>::quiet_NaN();
    a.logits.upload(logits);
    a.targets.upload({50.0, 2.0, 64.0});
    cross_entropy_statistics(a.in(), a.statistics(), nullptr);
    const Numbers sum = a.sum.download();
    EXPECT_TRUE(std::isfinite(sum[0]));
    EXPECT_TRUE(std::isnan(sum[1]));
    EXPECT_TRUE(std::isnan(a.target.download()[2]));
    a.forward();
    EXPECT_TRUE(std::isnan(a.loss.download()[0]));
  }
}

/// Where the target's probability is near 1 its gradient keeps its digits.
TEST(CudaCrossEntropy, GradientOfASureModel) {
  Problem a(DType::fp32, 1, 64, 64, 1.0);
  Numbers logits(64, -14.0);
  logits[9] = 0.0;
  a.logits.upload(logits);
  a.targets.upload({9.0});
  const DeviceArray dlogits(DType::fp32, 64);
  // -expm1(-lse), lse = log(1 + 63 e^-14).
  const double lse = std::log1p(63 * std::exp(-14.0));
  const DeviceArray exact(DType::fp32, Numbers{lse});
  cross_entropy_backward(dlogits.data(), DType::fp32, a.in(), exact.data<float>(), 1.0, nullptr);
  EXPECT_NEAR(dlogits.download()[9] / std::expm1(-lse), 1.0, 1e-5);
}

TEST(CudaCrossEntropy, RefusesRowsThatVectorsDoNotFit) {
  const Problem a(DType::bf16, 3, 33, 33, 1.0);
  EXPECT_THROW(
      cross_entropy_fused(a.logits.data(), DType::bf16, a.in(), a.statistics(), 1.0, nullptr),
      ShapeError);
}

}  // namespace
}  // namespace gradus::cuda
