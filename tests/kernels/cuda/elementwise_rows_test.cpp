// GELU, residual addition and column sums: what goes down strips of columns.

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>

#include "kernels/cuda/column_sums.h"
#include "kernels/cuda/device_array.h"
#include "kernels/cuda/gelu.h"
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

constexpr DType kDTypes[] = {DType::fp32, DType::bf16, DType::fp16};
/// N, C, and elements by which tensors are moved off their boundary.
constexpr int64_t kShapes[][3] = {{1, 1, 0},    {3, 7, 0},    {37, 33, 0}, {5, 768, 0}, {37, 96, 0},
                                  {37, 768, 3}, {7, 3072, 0}, {301, 8, 0}, {2, 5000, 0}};

double gelu(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
double gelu_derivative(double x) {
  const double k = std::sqrt(2 / M_PI);
  const double t = std::tanh(k * (x + 0.044715 * x * x * x));
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * k * (1 + 3 * 0.044715 * x * x);
}

std::string trace(DType dtype, int64_t rows, int64_t columns, int64_t offset) {
  return std::string(to_string(dtype)) + " " + std::to_string(rows) + "x" +
         std::to_string(columns) + (offset > 0 ? " misaligned" : "");
}

TEST(CudaGelu, AgreesWithFp64) {
  for (const DType dtype : kDTypes) {
    for (const auto& [rows, columns, offset] : kShapes) {
      for (const bool with_bias : {false, true}) {
        SCOPED_TRACE(trace(dtype, rows, columns, offset) + (with_bias ? ", bias" : ""));
        const int64_t count = rows * columns;
        const DeviceArray in(dtype, random_numbers(count, 1, 2.5), offset);
        const DeviceArray bias(dtype, random_numbers(columns, 2), offset);
        const DeviceArray dout(dtype, random_numbers(count, 3), offset);
        const DeviceArray out(dtype, count, offset);
        const Numbers shift = with_bias ? bias.download() : Numbers(bias.download().size(), 0.0);
        const Numbers x = in.download();
        const Numbers up = dout.download();
        Numbers want(x.size());
        Numbers want_din(x.size());
        Numbers want_dbias = random_numbers(columns, 4);
        for (size_t i = 0; i < x.size(); ++i) {
          const size_t c = i % shift.size();
          want[i] = gelu(x[i] + shift[c]);
          want_din[i] = up[i] * gelu_derivative(x[i] + shift[c]);
          want_dbias[c] += want_din[i];
        }
        gelu_forward({.out = out.data(),
                      .in = in.data(),
                      .bias = with_bias ? bias.data() : nullptr,
                      .rows = rows,
                      .columns = columns,
                      .dtype = dtype},
                     nullptr);
        expect_close(out.download(), want, rounding_of(dtype), "out");

        for (const bool with_sums : {false, true}) {
          for (const int strips : {0, 1, 3}) {
            const DeviceArray din(dtype, count, offset);
            const DeviceArray dbias(DType::fp32, random_numbers(columns, 4));
            const DeviceArray scratch(DType::u8, column_sums_scratch(rows, columns));
            gelu_backward({.din = din.data(),
                           .dbias = with_sums ? dbias.data<float>() : nullptr,
                           .dout = dout.data(),
                           .in = in.data(),
                           .bias = with_bias ? bias.data() : nullptr,
                           .rows = rows,
                           .columns = columns,
                           .dtype = dtype,
                           .scratch = scratch.data(),
                           .strips = strips},
                          nullptr);
            expect_close(din.download(), want_din, rounding_of(dtype), "din");
            expect_close(dbias.download(), with_sums ? want_dbias : random_numbers(columns, 4),
                         1e-5, "dbias", 0.5);
          }
        }
      }
    }
  }
}

/// NaN and -inf give NaN, +inf gives +inf; the derivative is 0 and 1 at the infinities, NaN at NaN.
TEST(CudaGelu, KeepsWhatIsNotFinite) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  const Numbers values{kNan, -kInfinity, kInfinity, 1e30, -1e30, -12.0, 12.0, 0.0};
  for (const DType dtype : {DType::fp32, DType::bf16}) {
    const DeviceArray in(dtype, values);
    const DeviceArray ones(dtype, Numbers(8, 1.0));
    const DeviceArray out(dtype, 8);
    gelu_forward({.out = out.data(), .in = in.data(), .rows = 1, .columns = 8, .dtype = dtype},
                 nullptr);
    Numbers got = out.download();
    EXPECT_TRUE(std::isnan(got[0]));
    EXPECT_TRUE(std::isnan(got[1]));
    EXPECT_EQ(got[2], kInfinity);
    EXPECT_NEAR(got[3] / 1e30, 1.0, 1e-2);
    EXPECT_EQ(got[4], 0.0);
    EXPECT_NEAR(got[5], 0.0, 1e-20);
    EXPECT_EQ(got[6], 12.0);
    EXPECT_EQ(got[7], 0.0);
    gelu_backward({.din = out.data(),
                   .dout = ones.data(),
                   .in = in.data(),
                   .rows = 1,
                   .columns = 8,
                   .dtype = dtype},
                  nullptr);
    got = out.download();
    EXPECT_TRUE(std::isnan(got[0]));
    EXPECT_NEAR(got[1], 0.0, 1e-20);
    EXPECT_EQ(got[2], 1.0);
    EXPECT_EQ(got[3], 1.0);
    EXPECT_NEAR(got[4], 0.0, 1e-20);
    EXPECT_NEAR(got[5], 0.0, 1e-20);
    EXPECT_EQ(got[6], 1.0);
    EXPECT_EQ(got[7], 0.5);
  }
}

TEST(CudaGelu, InPlace) {
  const DeviceArray in(DType::bf16, random_numbers(37 * 96, 1, 2.0));
  const DeviceArray out(DType::bf16, 37 * 96);
  GeluForward a{
      .out = out.data(), .in = in.data(), .rows = 37, .columns = 96, .dtype = DType::bf16};
  gelu_forward(a, nullptr);
  a.out = in.data();
  gelu_forward(a, nullptr);
  EXPECT_EQ(in.download(), out.download());
}

TEST(CudaResidual, AgreesWithFp64) {
  for (const Precisions& p : kPrecisions) {
    for (const auto& [rows, channels, offset] : kShapes) {
      for (const double p_drop : {0.0, 0.25}) {
        SCOPED_TRACE(to_text(p) + trace(p.activation, rows, channels, offset));
        const int64_t count = rows * channels;
        const int64_t positions = 5;
        const Dropout dropout{
            .p = p_drop, .key = 0xfedcba987654321u, .first_sample = 2, .first_position = 7};
        const DeviceArray residual(p.residual, random_numbers(count, 1), offset);
        const DeviceArray in(p.activation, random_numbers(count, 2), offset);
        const DeviceArray bias(p.activation, random_numbers(channels, 3), offset);
        const DeviceArray out(p.residual, count, offset);
        Numbers want = residual.download();
        Numbers want_din = residual.download();
        Numbers want_dbias = random_numbers(channels, 4);
        const Numbers branch = in.download();
        const Numbers shift = bias.download();
        for (int64_t i = 0; i < count; ++i) {
          const auto place = static_cast<size_t>(i);
          const auto c = static_cast<size_t>(i % channels);
          const double factor =
              kept(dropout, i / channels, positions, i % channels) ? dropout.scale() : 0.0;
          want[place] += (branch[place] + shift[c]) * factor;
          want_din[place] *= factor;
          want_dbias[c] += want_din[place];
        }
        residual_forward({.out = out.data(),
                          .in = in.data(),
                          .bias = bias.data(),
                          .residual = residual.data(),
                          .rows = rows,
                          .channels = channels,
                          .positions = positions,
                          .dropout = dropout,
                          .residual_dtype = p.residual,
                          .activation_dtype = p.activation},
                         nullptr);
        expect_close(out.download(), want, rounding_of(p.residual), "out", 0.2);
        const DeviceArray din(p.activation, count, offset);
        const DeviceArray dbias(DType::fp32, random_numbers(channels, 4));
        const DeviceArray scratch(DType::u8, column_sums_scratch(rows, channels));
        residual_backward({.din = din.data(),
                           .dbias = dbias.data<float>(),
                           .dout = residual.data(),
                           .rows = rows,
                           .channels = channels,
                           .positions = positions,
                           .dropout = dropout,
                           .residual_dtype = p.residual,
                           .activation_dtype = p.activation,
                           .scratch = scratch.data()},
                          nullptr);
        expect_close(din.download(), want_din, rounding_of(p.activation), "din");
        expect_close(dbias.download(), want_dbias, 1e-5, "dbias", 0.5);
      }
    }
  }
}

/// Columns of a wider matrix: its stride and not theirs goes from row to row.
TEST(CudaColumnSums, OfSlicesOfWiderMatrices) {
  constexpr int64_t kSlices[][4] = {// rows, columns, stride, first column
                                    {37, 96, 288, 96},  {37, 33, 100, 5},  {5, 768, 2304, 1536},
                                    {301, 8, 8, 0},     {1, 1, 1, 0},      {64, 40, 41, 1},
                                    {129, 264, 520, 8}, {7, 5000, 5000, 0}};
  for (const DType dtype : kDTypes) {
    for (const auto& [rows, columns, stride, first] : kSlices) {
      for (const int strips : {0, 1, 4, 1000}) {
        SCOPED_TRACE(trace(dtype, rows, columns, first));
        const DeviceArray in(dtype, random_numbers(rows * stride, 1, 1.0, 0.3));
        const DeviceArray total(DType::fp32, random_numbers(columns, 2));
        const DeviceArray scratch(DType::u8, column_sums_scratch(rows, columns));
        Numbers want = random_numbers(columns, 2);
        const Numbers values = in.download();
        for (int64_t i = 0; i < rows * columns; ++i) {
          const int64_t place = i / columns * stride + first + i % columns;
          want[static_cast<size_t>(i % columns)] += values[static_cast<size_t>(place)];
        }
        column_sums({.total = total.data<float>(),
                     .in = in.data<char>() + first * size_of(dtype),
                     .dtype = dtype,
                     .rows = rows,
                     .columns = columns,
                     .stride = stride,
                     .scratch = scratch.data(),
                     .strips = strips},
                    nullptr);
        expect_close(total.download(), want, 1e-5, "total", 0.5);
      }
    }
  }
}

}  // namespace
}  // namespace gradus::cuda
