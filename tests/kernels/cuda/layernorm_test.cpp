#include "kernels/cuda/layernorm.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <optional>

#include "core/error.h"
#include "kernels/cuda/device_array.h"
#include "kernels/cuda/residual.h"

namespace gradus::cuda {
namespace {

using test::DeviceArray;
using test::expect_close;
using test::kept;
using test::kPrecisions;
using test::Precisions;
using test::random_numbers;
using test::rounding_of;

using Numbers = std::vector<double>;

/// N, C, and elements by which every tensor is moved off its boundary.
constexpr int64_t kShapes[][3] = {{1, 1, 0},    {3, 7, 0},    {37, 33, 0},  {5, 768, 0},
                                  {37, 96, 0},  {5, 768, 1},  {3, 1600, 0}, {9, 2048, 0},
                                  {2, 5000, 0}, {3, 5001, 0}, {1, 9216, 0}, {301, 8, 0},
                                  {3, 4096, 0}, {2, 8192, 0}};

struct Problem {
  Precisions precisions;
  int64_t rows;
  int64_t channels;
  bool with_bias;
  DeviceArray in, weight, bias, dout, out, mean, rstd, din, dweight, dbias, scratch;

  Problem(const Precisions& p, int64_t n, int64_t c, int64_t offset, bool bias_too)
      : precisions(p),
        rows(n),
        channels(c),
        with_bias(bias_too),
        in(p.residual, random_numbers(n * c, 1, 2.0, 0.5), offset),
        weight(p.activation, random_numbers(c, 2, 0.5, 1.0), offset),
        bias(p.activation, random_numbers(c, 3), offset),
        dout(p.activation, random_numbers(n * c, 4), offset),
        out(p.activation, n * c, offset),
        mean(DType::fp32, n),
        rstd(DType::fp32, n),
        din(p.residual, random_numbers(n * c, 5), offset),
        dweight(DType::fp32, random_numbers(c, 6)),
        dbias(DType::fp32, random_numbers(c, 7)),
        scratch(DType::u8, layernorm_backward_scratch(n, c)) {}

  LayernormForward forward(const RowPlan& plan = {}) const {
    return {.out = out.data(),
            .mean = mean.data<float>(),
            .rstd = rstd.data<float>(),
            .in = in.data(),
            .weight = weight.data(),
            .bias = with_bias ? bias.data() : nullptr,
            .rows = rows,
            .channels = channels,
            .residual_dtype = precisions.residual,
            .activation_dtype = precisions.activation,
            .plan = plan};
  }
  LayernormBackward backward(const RowPlan& plan = {}) const {
    return {.din = din.data(),
            .dweight = dweight.data<float>(),
            .dbias = with_bias ? dbias.data<float>() : nullptr,
            .dout = dout.data(),
            .in = in.data(),
            .weight = weight.data(),
            .mean = mean.data<float>(),
            .rstd = rstd.data<float>(),
            .rows = rows,
            .channels = channels,
            .residual_dtype = precisions.residual,
            .activation_dtype = precisions.activation,
            .scratch = scratch.data(),
            .plan = plan};
  }
};

/// What forward and backward give in fp64 for what the device's tensors hold.
struct Reference {
  Numbers out, mean, rstd, din, dweight, dbias;

  Reference(const Problem& p, const Numbers& in) {
    const Numbers weight = p.weight.download();
    const Numbers bias = p.with_bias ? p.bias.download() : Numbers(weight.size(), 0.0);
    const Numbers dout = p.dout.download();
    din = p.din.download();
    dweight = p.dweight.download();
    dbias = p.dbias.download();
    const size_t c = weight.size();
    const auto count = static_cast<double>(c);
    for (size_t start = 0; start < in.size(); start += c) {
      double m = 0.0;
      double squares = 0.0;
      for (size_t i = 0; i < c; ++i) m += in[start + i] / count;
      for (size_t i = 0; i < c; ++i) squares += std::pow(in[start + i] - m, 2);
      const double r = 1.0 / std::sqrt(squares / count + 1e-5);
      mean.push_back(m);
      rstd.push_back(r);
      double g_mean = 0.0;
      double gx_mean = 0.0;
      for (size_t i = 0; i < c; ++i) {
        const double x = (in[start + i] - m) * r;
        const double g = dout[start + i] * weight[i];
        out.push_back(x * weight[i] + bias[i]);
        g_mean += g / count;
        gx_mean += g * x / count;
        dweight[i] += dout[start + i] * x;
        if (p.with_bias) dbias[i] += dout[start + i];
      }
      for (size_t i = 0; i < c; ++i) {
        const double x = (in[start + i] - m) * r;
        din[start + i] += r * (dout[start + i] * weight[i] - g_mean - x * gx_mean);
      }
    }
  }
};

void expect_forward(const Problem& p, const Reference& want) {
  expect_close(p.mean.download(), want.mean, 3e-6, "mean", 1.0);
  expect_close(p.rstd.download(), want.rstd, 3e-6, "rstd");
  expect_close(p.out.download(), want.out, 2 * rounding_of(p.precisions.activation), "out");
}

void expect_backward(const Problem& p, const Reference& want) {
  // Of one channel all gradients of the input are 0 by mathematics; rstd multiplies what is left.
  const double floor = p.channels == 1 ? 100.0 : 0.1;
  expect_close(p.din.download(), want.din, 2 * rounding_of(p.precisions.residual), "din", floor);
  expect_close(p.dweight.download(), want.dweight, 1e-5, "dweight", 0.5);
  expect_close(p.dbias.download(), want.dbias, 1e-5, "dbias", 0.5);
}

TEST(CudaLayernorm, AgreesWithFp64) {
  for (const Precisions& precisions : kPrecisions) {
    for (const auto& [rows, channels, offset] : kShapes) {
      for (const bool with_bias : {true, false}) {
        SCOPED_TRACE(to_text(precisions) + " " + std::to_string(rows) + "x" +
                     std::to_string(channels) + (offset > 0 ? " misaligned" : ""));
        const Problem p(precisions, rows, channels, offset, with_bias);
        const Reference want(p, p.in.download());
        layernorm_forward(p.forward(), nullptr);
        expect_forward(p, want);
        layernorm_backward(p.backward(), nullptr);
        expect_backward(p, want);
      }
    }
  }
}

/// Every layout of rows over warps gives the right sums, and each the same bits each time.
TEST(CudaLayernorm, EveryPlanAgreesWithFp64) {
  constexpr RowPlan kPlans[] = {{1, 1, 0}, {1, 4, 3}, {2, 1, 0}, {2, 3, 2}, {3, 2, 1},
                                {4, 2, 0}, {7, 1, 2}, {8, 2, 0}, {16, 1, 3}};
  for (const Precisions& precisions : {kPrecisions[0], kPrecisions[1], kPrecisions[3]}) {
    for (const int64_t channels : {264, 768, 1600}) {
      for (RowPlan plan : kPlans) {
        for (const bool ahead : {false, true}) {
          plan.ahead = ahead;
          SCOPED_TRACE(to_text(precisions) + " " + std::to_string(channels) + ", warps " +
                       std::to_string(plan.warps_per_row) + ", rows " +
                       std::to_string(plan.rows_per_block) + (ahead ? ", ahead" : ""));
          const Problem p(precisions, 37, channels, 0, true);
          const Reference want(p, p.in.download());
          layernorm_forward(p.forward(plan), nullptr);
          expect_forward(p, want);
          const Numbers din = p.din.download();
          layernorm_backward(p.backward(plan), nullptr);
          expect_backward(p, want);
        }
      }
    }
  }
}

TEST(CudaLayernorm, BackwardGivesTheSameBitsAgain) {
  const Problem p(kPrecisions[3], 133, 768, 0, true);
  layernorm_forward(p.forward(), nullptr);
  std::optional<std::array<Numbers, 3>> first;
  for (int run = 0; run < 3; ++run) {
    Problem again(kPrecisions[3], 133, 768, 0, true);
    layernorm_forward(again.forward(), nullptr);
    layernorm_backward(again.backward(), nullptr);
    std::array<Numbers, 3> got{again.din.download(), again.dweight.download(),
                               again.dbias.download()};
    if (first.has_value()) {
      EXPECT_EQ(got, *first);
    }
    first = std::move(got);
  }
}

/// A large mean must not cancel, nor a constant row divide by zero, nor an overflow look healthy.
TEST(CudaLayernorm, StatisticsOfExtremeRows) {
  constexpr int64_t kChannels = 768;
  for (const int64_t offset : {0, 1}) {
    Problem p(kPrecisions[0], 4, kChannels, offset, true);
    Numbers in(4 * kChannels);
    for (size_t c = 0; c < kChannels; ++c) {
      in[c] = 1e4 + (c % 2 == 0 ? 0.5 : -0.5);
      in[kChannels + c] = 3.0;
      in[2 * kChannels + c] = c % 2 == 0 ? 3e38 : -3e38;
      in[3 * kChannels + c] = c == 5 ? std::numeric_limits<double>::quiet_NaN() : 1.0;
    }
    p.in.upload(in);
    layernorm_forward(p.forward(), nullptr);
    const Numbers rstd = p.rstd.download();
    EXPECT_NEAR(rstd[0], 2.0, 1e-4);
    EXPECT_NEAR(rstd[1], 1.0 / std::sqrt(1e-5), 1e-2);
    EXPECT_TRUE(std::isnan(rstd[2]));
    EXPECT_TRUE(std::isnan(rstd[3]));
    const Numbers out = p.out.download();
    EXPECT_TRUE(std::isnan(out[2 * kChannels]));
    EXPECT_TRUE(std::isnan(out[4 * kChannels - 1]));
  }
}

/// The fused pair against fp64, with the mask of core/rng.h, and against the kernels it replaces.
TEST(CudaResidualLayernorm, AgreesWithFp64) {
  for (const Precisions& precisions : kPrecisions) {
    for (const auto& [rows, channels, offset] : kShapes) {
      for (const double p_drop : {0.0, 0.25}) {
        SCOPED_TRACE(to_text(precisions) + " " + std::to_string(rows) + "x" +
                     std::to_string(channels) + (offset > 0 ? " misaligned" : ""));
        const int64_t count = rows * channels;
        const int64_t positions = 4;
        const Dropout dropout{
            .p = p_drop, .key = 0x123456789abcdefu, .first_sample = 5, .first_position = 3};
        const Problem p(precisions, rows, channels, offset, true);
        const DeviceArray residual(precisions.residual, random_numbers(count, 11), offset);
        const DeviceArray branch(precisions.activation, random_numbers(count, 12), offset);
        const DeviceArray branch_bias(precisions.activation, random_numbers(channels, 13), offset);

        Numbers want_stream = residual.download();
        {
          const Numbers added = branch.download();
          const Numbers shift = branch_bias.download();
          for (int64_t i = 0; i < count; ++i) {
            if (!kept(dropout, i / channels, positions, i % channels)) continue;
            const auto place = static_cast<size_t>(i);
            want_stream[place] +=
                (added[place] + shift[place % static_cast<size_t>(channels)]) * dropout.scale();
          }
        }
        residual_layernorm_forward({.stream = p.in.data(),
                                    .branch = branch.data(),
                                    .bias = branch_bias.data(),
                                    .residual = residual.data(),
                                    .dropout = dropout,
                                    .positions = positions},
                                   p.forward(), nullptr);
        const Numbers stream = p.in.download();
        expect_close(stream, want_stream, 2 * rounding_of(precisions.residual), "stream", 0.2);
        const Reference want(p, stream);
        expect_forward(p, want);

        // The gradient of the branch: from the stream's as it is stored.
        const DeviceArray dbranch(precisions.activation, count, offset);
        const DeviceArray dbranch_bias(DType::fp32, random_numbers(channels, 14));
        Numbers want_sums = dbranch_bias.download();
        residual_layernorm_backward({.dbranch = dbranch.data(),
                                     .dbias = dbranch_bias.data<float>(),
                                     .dropout = dropout,
                                     .positions = positions},
                                    p.backward(), nullptr);
        expect_backward(p, want);
        Numbers want_branch = p.din.download();
        for (int64_t i = 0; i < count; ++i) {
          double& value = want_branch[static_cast<size_t>(i)];
          value =
              kept(dropout, i / channels, positions, i % channels) ? value * dropout.scale() : 0;
          want_sums[static_cast<size_t>(i % channels)] += value;
        }
        expect_close(dbranch.download(), want_branch, rounding_of(precisions.activation),
                     "dbranch");
        expect_close(dbranch_bias.download(), want_sums, 1e-5, "the branch's dbias", 0.5);
      }
    }
  }
}

TEST(CudaLayernorm, NoRowsAndWrongShapes) {
  const Problem p(kPrecisions[0], 1, 8, 0, true);
  LayernormForward none = p.forward();
  none.rows = 0;
  layernorm_forward(none, nullptr);
  EXPECT_TRUE(std::isnan(p.out.download()[0]));
  LayernormForward wrong = p.forward();
  wrong.channels = 0;
  EXPECT_THROW(layernorm_forward(wrong, nullptr), ShapeError);
  wrong = p.forward();
  wrong.residual_dtype = DType::bf16;
  EXPECT_THROW(layernorm_forward(wrong, nullptr), ShapeError);
}

}  // namespace
}  // namespace gradus::cuda
