#include "kernels/matmul.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/error.h"
#include "support/simd_targets.h"
#include "support/tensors.h"
#include "support/tolerances.h"

namespace gradus {
namespace {

using test::sum_tolerance;
using test::TensorPool;

struct Case {
  int64_t rows, in, out;  // M, K, N
};

// Ones, primes, no rows, whole tiles (6 rows, 16 columns), the borders of the blocks of depth (256)
// and of the slabs of columns (1024) and rows (1536), few rows (nothing packed).
const Case kCases[] = {{1, 1, 1},     {1, 7, 5},     {2, 3, 1},    {3, 1, 2},     {4, 64, 48},
                       {5, 13, 17},   {6, 19, 33},   {7, 23, 29},  {8, 16, 16},   {9, 31, 37},
                       {0, 5, 3},     {17, 256, 16}, {13, 257, 9}, {24, 48, 32},  {31, 127, 61},
                       {7, 1031, 13}, {11, 5, 1033}, {300, 8, 16}, {97, 101, 103}};

struct Operands {
  Tensor in, weight, bias, dout;
};

Operands draw(TensorPool& pool, const Case& c, DType dtype) {
  return {pool.normal({c.rows, c.in}, dtype, 1.0, "in"),
          pool.normal({c.out, c.in}, dtype, 1.0, "weight"),
          pool.normal({c.out}, dtype, 1.0, "bias"),
          pool.normal({c.rows, c.out}, dtype, 1.0, "dout")};
}

// Compares actual(i, j) with Σ_k a(i, k) b(k, j) + start(i, j) of plain loops in double, element by
// element, each within `tolerance` of the sum of magnitudes.
template <typename A, typename B, typename Start>
void expect_product(const ConstTensor& actual, int64_t depth, double tolerance, A&& a, B&& b,
                    Start&& start) {
  const int64_t columns = actual.size(-1);
  for (int64_t e = 0; e < actual.numel(); ++e) {
    const int64_t i = e / columns;
    const int64_t j = e % columns;
    double sum = start(i, j);
    double magnitude = std::abs(sum);
    for (int64_t k = 0; k < depth; ++k) {
      const double term = a(i, k) * b(k, j);
      sum += term;
      magnitude += std::abs(term);
    }
    ASSERT_NEAR(test::get_value(actual, e), sum, tolerance * magnitude)
        << actual.name() << " " << to_string(actual.dtype()) << " (" << i << ", " << j << ") of "
        << to_string(actual.shape());
  }
}

auto element(const ConstTensor& tensor) {
  return [values = test::values(tensor), columns = tensor.size(-1)](int64_t i, int64_t j) {
    return values[static_cast<size_t>(i * columns + j)];
  };
}
template <typename F>
auto transposed(F f) {
  return [f](int64_t i, int64_t j) { return f(j, i); };
}
double zero(int64_t, int64_t) { return 0.0; }

// All three products of one case, against loops.
void check_case(Executor& x, const Case& c, DType dtype, DType result) {
  SCOPED_TRACE(fmt::format("M {} K {} N {} {} -> {}", c.rows, c.in, c.out, to_string(dtype),
                           to_string(result)));
  TensorPool pool;
  const DType sums = accumulator_of(dtype);
  const Operands o = draw(pool, c, dtype);
  const auto in = element(o.in);
  const auto weight = element(o.weight);
  const auto dout = element(o.dout);
  const auto bias = element(o.bias);

  const Tensor out = pool.poisoned({c.rows, c.out}, result, "out");
  matmul_forward(x, out, o.in, o.weight, o.bias);
  expect_product(out, c.in, sum_tolerance(c.in, result), in, transposed(weight),
                 [&](int64_t, int64_t j) { return bias(0, j); });
  matmul_forward(x, out, o.in, o.weight, ConstTensor());
  expect_product(out, c.in, sum_tolerance(c.in, result), in, transposed(weight), zero);

  const Tensor din = pool.poisoned({c.rows, c.in}, result, "din");
  matmul_backward_input(x, din, o.dout, o.weight);
  expect_product(din, c.out, sum_tolerance(c.out, result), dout, weight, zero);

  const Tensor dweight = pool.normal({c.out, c.in}, sums, 1.0, "dweight");
  const Tensor dbias = pool.normal({c.out}, sums, 1.0, "dbias");
  const auto dweight_before = element(dweight);
  const auto dbias_before = element(dbias);
  matmul_backward_weight(x, dweight, dbias, o.dout, o.in);
  expect_product(dweight, c.rows, sum_tolerance(c.rows, sums), transposed(dout), in,
                 dweight_before);
  expect_product(
      dbias.reshape({1, c.out}), c.rows, sum_tolerance(c.rows, sums),
      [](int64_t, int64_t) { return 1.0; }, dout, dbias_before);
  // Without a bias nothing but dweight changes, and it is added to once more.
  matmul_backward_weight(x, dweight, Tensor(), o.dout, o.in);
  const auto twice = [&](int64_t i, int64_t j) { return 2.0 * dout(j, i); };
  expect_product(dweight, c.rows, 2.0 * sum_tolerance(c.rows, sums), twice, in, dweight_before);
  pool.check_guards();
}

TEST(Matmul, AgreesWithLoopsOnEveryShapeDTypeAndInstructionSet) {
  for (const int threads : {1, 2, 5}) {
    Executor x(Device::cpu, threads);
    test::for_each_simd_target([&] {
      for (const Case& c : kCases) {
        for (const DType dtype : {DType::fp64, DType::fp32, DType::bf16}) {
          check_case(x, c, dtype, dtype);
          if (testing::Test::HasFatalFailure()) return;
        }
        check_case(x, c, DType::bf16, DType::fp32);
        if (testing::Test::HasFatalFailure()) return;
      }
    });
  }
}

TEST(Matmul, CrossesTheSlabsOfRows) {
  Executor x(Device::cpu, 2);
  for (const DType dtype : {DType::fp32, DType::bf16}) {
    check_case(x, {1543, 29, 21}, dtype, dtype);
    check_case(x, {19, 21, 1543}, dtype, dtype);
  }
}

TEST(Matmul, EveryBatchUpTo17) {
  Executor x(Device::cpu, 2);
  for (int64_t batch = 1; batch <= 17; ++batch) {
    for (const DType dtype : {DType::fp64, DType::fp32, DType::bf16}) {
      TensorPool pool;
      const Tensor in = pool.normal({batch, 3, 10}, dtype);
      const Tensor weight = pool.normal({18, 10}, dtype);
      const Tensor bias = pool.normal({18}, dtype);
      const Tensor out = pool.poisoned({batch, 3, 18}, dtype);
      matmul_forward(x, out, in, weight, bias);
      const auto b = element(bias);
      expect_product(out.reshape({batch * 3, 18}), 10, sum_tolerance(10, dtype),
                     element(in.reshape({batch * 3, 10})), transposed(element(weight)),
                     [&](int64_t, int64_t j) { return b(0, j); });
      pool.check_guards();
    }
  }
}

TEST(Matmul, GradientsAgreeWithCentralDifferences) {
  Executor x(Device::cpu, 2);
  for (const Case& c : {Case{1, 1, 1}, Case{5, 7, 3}, Case{8, 16, 17}, Case{13, 3, 19}}) {
    TensorPool pool;
    const Operands o = draw(pool, c, DType::fp64);
    const Tensor out = pool.poisoned({c.rows, c.out}, DType::fp64, "out");
    const auto loss = [&] {
      matmul_forward(x, out, o.in, o.weight, o.bias);
      return test::weighted_sum(out, o.dout);
    };
    const Tensor din = pool.poisoned({c.rows, c.in}, DType::fp64, "din");
    const Tensor dweight = pool.zeros({c.out, c.in}, DType::fp64, "dweight");
    const Tensor dbias = pool.zeros({c.out}, DType::fp64, "dbias");
    matmul_backward_input(x, din, o.dout, o.weight);
    matmul_backward_weight(x, dweight, dbias, o.dout, o.in);
    test::expect_gradient("matmul in", din, test::central_differences(loss, o.in));
    test::expect_gradient("matmul weight", dweight, test::central_differences(loss, o.weight));
    test::expect_gradient("matmul bias", dbias, test::central_differences(loss, o.bias));
  }
}

TEST(Matmul, ColumnSlicesAreReadAndWrittenInPlace) {
  Executor x(Device::cpu, 2);
  // With every way for an axis to have one element: its stride is then anything.
  for (const Case& c :
       {Case{1, 1, 1}, Case{1, 1, 7}, Case{1, 5, 1}, Case{6, 1, 1}, Case{1, 5, 3}, Case{6, 1, 5},
        Case{6, 9, 1}, Case{40, 33, 1}, Case{40, 33, 48}, Case{10, 300, 17}}) {
    for (const DType dtype : {DType::fp64, DType::fp32, DType::bf16}) {
      SCOPED_TRACE(fmt::format("M {} K {} N {} {}", c.rows, c.in, c.out, to_string(dtype)));
      TensorPool pool;
      const DType sums = accumulator_of(dtype);
      const Operands o = draw(pool, c, dtype);
      // The columns beside the slices hold NaN: read, they spoil the result; written, they vanish.
      const auto slice_of = [&](const Tensor& wide, int64_t columns) {
        return wide.slice(1, 3, columns);
      };
      const Tensor wide_in = pool.poisoned({c.rows, c.in + 7}, dtype, "wide in");
      const Tensor wide_dout = pool.poisoned({c.rows, c.out + 7}, dtype, "wide dout");
      const Tensor wide_out = pool.poisoned({c.rows, c.out + 7}, dtype, "wide out");
      const Tensor wide_din = pool.poisoned({c.rows, c.in + 7}, dtype, "wide din");
      const Tensor in = slice_of(wide_in, c.in);
      const Tensor dout = slice_of(wide_dout, c.out);
      for (int64_t e = 0; e < in.numel(); ++e) test::set_value(in, e, test::get_value(o.in, e));
      for (int64_t e = 0; e < dout.numel(); ++e) {
        test::set_value(dout, e, test::get_value(o.dout, e));
      }

      const Tensor out = pool.poisoned({c.rows, c.out}, dtype);
      const Tensor din = pool.poisoned({c.rows, c.in}, dtype);
      const Tensor dweight = pool.zeros({c.out, c.in}, sums);
      const Tensor dbias = pool.zeros({c.out}, sums);
      matmul_forward(x, out, o.in, o.weight, o.bias);
      matmul_backward_input(x, din, o.dout, o.weight);
      matmul_backward_weight(x, dweight, dbias, o.dout, o.in);

      const Tensor slice_dweight = pool.zeros({c.out, c.in}, sums);
      const Tensor slice_dbias = pool.zeros({c.out}, sums);
      matmul_forward(x, slice_of(wide_out, c.out), in, o.weight, o.bias);
      matmul_backward_input(x, slice_of(wide_din, c.in), dout, o.weight);
      matmul_backward_weight(x, slice_dweight, slice_dbias, dout, in);

      const double tolerance = sum_tolerance(std::max({c.rows, c.in, c.out}), dtype);
      EXPECT_LE(test::relative_error(slice_of(wide_out, c.out), out), tolerance);
      EXPECT_LE(test::relative_error(slice_of(wide_din, c.in), din), tolerance);
      EXPECT_LE(test::relative_error(slice_dweight, dweight), tolerance);
      EXPECT_LE(test::relative_error(slice_dbias, dbias), tolerance);
      for (const Tensor& wide : {wide_out, wide_din}) {
        const auto all = test::values(wide);
        const int64_t columns = wide.size(1);
        for (int64_t e = 0; e < wide.numel(); ++e) {
          const bool inside = e % columns >= 3 && e % columns < columns - 4;
          ASSERT_EQ(std::isnan(all[static_cast<size_t>(e)]), !inside) << wide.name() << " " << e;
        }
      }
      pool.check_guards();
    }
  }
}

// A byte-wise copy at another distance from a page's start, still aligned to 64 bytes.
TEST(Matmul, RepeatsBitwiseWhateverTheAddress) {
  Executor x(Device::cpu, 3);
  for (const Case& c : {Case{5, 70, 90}, Case{67, 300, 45}}) {
    for (const DType dtype : {DType::fp64, DType::fp32, DType::bf16}) {
      const DType sums = accumulator_of(dtype);
      TensorPool pool;
      const Operands o = draw(pool, c, dtype);
      std::vector<std::vector<double>> first;
      for (int run = 0; run < 4; ++run) {
        const auto moved = [&](const Tensor& tensor) {
          const Tensor room = pool.poisoned({tensor.numel() + 64 * run}, tensor.dtype());
          const int64_t bytes = 64 * run;
          const Tensor copy(room.data() + bytes, tensor.dtype(), Device::cpu, tensor.shape());
          std::memcpy(copy.data(), tensor.data(), static_cast<size_t>(tensor.bytes()));
          return copy;
        };
        const Tensor in = moved(o.in);
        const Tensor weight = moved(o.weight);
        const Tensor dout = moved(o.dout);
        const Tensor out = moved(pool.poisoned({c.rows, c.out}, dtype));
        const Tensor din = moved(pool.poisoned({c.rows, c.in}, dtype));
        const Tensor dweight = moved(pool.zeros({c.out, c.in}, sums));
        const Tensor dbias = moved(pool.zeros({c.out}, sums));
        matmul_forward(x, out, in, weight, o.bias);
        matmul_backward_input(x, din, dout, weight);
        matmul_backward_weight(x, dweight, dbias, dout, in);
        const std::vector<std::vector<double>> now = {test::values(out), test::values(din),
                                                      test::values(dweight), test::values(dbias)};
        if (run == 0) first = now;
        ASSERT_EQ(now, first) << "run " << run << " " << to_string(dtype);
      }
    }
  }
}

TEST(Matmul, NeedsNoMoreScratchThanDeclared) {
  for (const Case& c : kCases) {
    for (const DType dtype : {DType::fp64, DType::fp32, DType::bf16}) {
      Executor x(Device::cpu, 2);
      TensorPool pool;
      const Operands o = draw(pool, c, dtype);
      const int64_t bytes = matmul_scratch(x, c.rows, c.in, c.out, dtype);
      const Tensor memory = pool.zeros({(bytes + 7) / 8 + 1}, DType::fp64, "scratch");
      x.bind_scratch(Tensor(memory.data(), DType::u8, Device::cpu, {bytes}));
      const DType sums = accumulator_of(dtype);
      for (const DType result : {dtype, sums}) {
        matmul_forward(x, pool.poisoned({c.rows, c.out}, result), o.in, o.weight, o.bias);
        matmul_backward_input(x, pool.poisoned({c.rows, c.in}, result), o.dout, o.weight);
      }
      matmul_backward_weight(x, pool.zeros({c.out, c.in}, sums), pool.zeros({c.out}, sums), o.dout,
                             o.in);
      pool.check_guards();
    }
  }
}

TEST(Matmul, ForwardOfAnyFewerRowsFitsIntoTheScratchOfMany) {
  // Beyond 512 columns the rows are packed; beyond a block of depth, sums of bf16 are kept.
  struct Weight {
    int64_t in, out;
  };
  for (const Weight& w : {Weight{24, 40}, Weight{700, 33}, Weight{20, 1100}}) {
    for (const DType dtype : {DType::fp64, DType::fp32, DType::bf16}) {
      Executor x(Device::cpu, 2);
      TensorPool pool;
      const Tensor in = pool.normal({70, w.in}, dtype);
      const Tensor weight = pool.normal({w.out, w.in}, dtype);
      const Tensor bias = pool.normal({w.out}, dtype);
      const Tensor full = pool.poisoned({70, w.out}, dtype);
      const Tensor sums = pool.poisoned({70, w.out}, accumulator_of(dtype));
      const int64_t most = matmul_forward_scratch(x, 70, w.in, w.out, dtype);
      const Tensor memory = pool.zeros({(most + 7) / 8 + 1}, DType::fp64, "scratch");
      for (int64_t max_rows = 1; max_rows <= 70; max_rows += max_rows < 10 ? 1 : 12) {
        const int64_t bytes = matmul_forward_scratch(x, max_rows, w.in, w.out, dtype);
        ASSERT_LE(bytes, matmul_scratch(x, 70, w.in, w.out, dtype));
        x.bind_scratch(Tensor(memory.data(), DType::u8, Device::cpu, {bytes}));
        for (int64_t rows = 1; rows <= max_rows; ++rows) {
          for (const Tensor& out : {full, sums}) {
            for (const ConstTensor& b : {ConstTensor(), ConstTensor(bias)}) {
              ASSERT_NO_THROW(
                  matmul_forward(x, out.slice(0, 0, rows), in.slice(0, 0, rows), weight, b))
                  << rows << " rows of at most " << max_rows << ", " << to_string(dtype);
            }
          }
        }
      }
      pool.check_guards();
    }
  }
}

TEST(Matmul, InfinitiesAndNanStayWhereTheyAre) {
  Executor x(Device::cpu, 2);
  TensorPool pool;
  const Tensor in = pool.normal({20, 40}, DType::fp32);
  const Tensor weight = pool.normal({30, 40}, DType::fp32);
  test::set_value(in, 7 * 40 + 39, std::nan(""));
  test::set_value(in, 11 * 40, std::numeric_limits<double>::infinity());
  const Tensor out = pool.poisoned({20, 30}, DType::fp32);
  matmul_forward(x, out, in, weight, ConstTensor());
  for (int64_t e = 0; e < out.numel(); ++e) {
    const double value = test::get_value(out, e);
    EXPECT_EQ(std::isnan(value), e / 30 == 7) << e;
    EXPECT_EQ(std::isinf(value), e / 30 == 11) << e;
  }
}

TEST(Matmul, RefusesWhatDoesNotFit) {
  Executor x(Device::cpu, 1);
  TensorPool pool;
  const Tensor in = pool.normal({4, 6}, DType::fp32, 1.0, "in");
  const Tensor weight = pool.normal({5, 6}, DType::fp32, 1.0, "weight");
  const Tensor bias = pool.normal({5}, DType::fp32, 1.0, "bias");
  const Tensor out = pool.poisoned({4, 5}, DType::fp32, "out");
  const Tensor half = pool.normal({5, 6}, DType::bf16);
  EXPECT_THROW(matmul_forward(x, out, in, weight, pool.normal({6}, DType::fp32)), ShapeError);
  EXPECT_THROW(matmul_forward(x, out, in, weight, pool.normal({5}, DType::bf16)), ShapeError);
  EXPECT_THROW(matmul_forward(x, out, in, half, bias), ShapeError);
  EXPECT_THROW(matmul_forward(x, out, in, Tensor(), bias), ShapeError);
  EXPECT_THROW(matmul_forward(x, Tensor(), in, weight, bias), ShapeError);
  EXPECT_THROW(matmul_forward(x, out, in.transpose(0, 1), weight, bias), ShapeError);
  EXPECT_THROW(matmul_forward(x, out, in, pool.normal({6, 5}, DType::fp32), bias), ShapeError);
  EXPECT_THROW(matmul_forward(x, pool.poisoned({3, 5}, DType::fp32), in, weight, bias), ShapeError);
  EXPECT_THROW(matmul_forward(x, pool.poisoned({4, 5}, DType::bf16), in, weight, bias), ShapeError);
  EXPECT_THROW(matmul_forward(x, out, pool.integers({4, 6}, 0, 1), weight, bias), ShapeError);
  EXPECT_THROW(matmul_backward_input(x, in, out, weight.transpose(0, 1)), ShapeError);
  EXPECT_THROW(matmul_backward_input(x, in, pool.normal({4, 5}, DType::bf16), weight), ShapeError);
  EXPECT_THROW(matmul_backward_weight(x, half, Tensor(), pool.normal({4, 5}, DType::bf16),
                                      pool.normal({4, 6}, DType::bf16)),
               ShapeError);
  EXPECT_THROW(matmul_backward_weight(x, weight, pool.normal({6}, DType::fp32), out, in),
               ShapeError);
  // Leading axes that are not one stride apart.
  const Tensor cube = pool.normal({4, 3, 6}, DType::fp32, 1.0, "cube");
  EXPECT_THROW(
      matmul_forward(x, pool.poisoned({4, 2, 5}, DType::fp32), cube.slice(1, 0, 2), weight, bias),
      ShapeError);
}

}  // namespace
}  // namespace gradus
