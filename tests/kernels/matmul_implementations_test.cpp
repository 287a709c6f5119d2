#include <gtest/gtest.h>

#include <cmath>
#include <utility>
#include <vector>

#include "core/error.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/matmul_gemm.h"
#include "kernels/cpu/matmul_onednn.h"
#include "kernels/implementation.h"
#include "kernels/matmul.h"
#include "support/allocation_count.h"
#include "support/tensors.h"
#include "support/thread_teams.h"
#include "support/tolerances.h"

namespace gradus {
namespace {

using test::TensorPool;

// A product with its matrices, each as a slice of a wider one when `wider` is not 0.
struct Drawn {
  cpu::Gemm product;
  Tensor a, b, bias, c;
};

struct Case {
  int64_t rows, columns, depth;
  bool a_transposed, b_transposed, accumulate, bias;
};

const Case kCases[] = {
    {7, 5, 3, false, true, false, true},       {64, 48, 32, false, true, false, false},
    {61, 131, 127, false, false, false, true}, {37, 41, 300, true, false, true, false},
    {96, 64, 29, true, false, true, false},    {128, 128, 600, false, true, false, true},
    {7, 1100, 17, false, false, false, false}, {1600, 33, 20, true, false, true, false},
};

/// Columns that a matrix in memory has beside those of the product.
struct Wider {
  int64_t a, b, c;
};

Drawn draw(TensorPool& pool, const Case& c, DType dtype, DType result, const Wider& wider) {
  Drawn d;
  const int64_t a_rows = c.a_transposed ? c.depth : c.rows;
  const int64_t a_columns = c.a_transposed ? c.rows : c.depth;
  const int64_t b_rows = c.b_transposed ? c.columns : c.depth;
  const int64_t b_columns = c.b_transposed ? c.depth : c.columns;
  d.a = pool.normal({a_rows, a_columns + wider.a}, dtype, 1.0, "a");
  d.b = pool.normal({b_rows, b_columns + wider.b}, dtype, 1.0, "b");
  d.c = pool.normal({c.rows, c.columns + wider.c}, result, 1.0, "c");
  d.bias = pool.normal({c.columns}, dtype, 1.0, "bias");
  d.product = {.rows = c.rows,
               .columns = c.columns,
               .depth = c.depth,
               .dtype = dtype,
               .c_dtype = result,
               .a = {.data = d.a.data(), .stride = d.a.size(1), .transposed = c.a_transposed},
               .b = {.data = d.b.data(), .stride = d.b.size(1), .transposed = c.b_transposed},
               .c = d.c.data(),
               .c_stride = d.c.size(1),
               .bias = c.bias ? d.bias.data() : nullptr,
               .accumulate = c.accumulate};
  return d;
}

Drawn draw(TensorPool& pool, const Case& c, DType dtype, DType result, int64_t wider) {
  return draw(pool, c, dtype, result, Wider{wider, wider, wider});
}

// |a| · |b| + |c| + |bias|: what the error of a product is measured against.
double magnitude(const Drawn& d, const std::vector<double>& c_before, int64_t i, int64_t j) {
  const auto at = [](const Tensor& tensor, bool transposed, int64_t row, int64_t column) {
    const int64_t stride = tensor.size(1);
    return std::abs(
        test::get_value(tensor, transposed ? column * stride + row : row * stride + column));
  };
  double sum = d.product.bias != nullptr ? std::abs(test::get_value(d.bias, j)) : 0.0;
  if (d.product.accumulate) {
    sum += std::abs(c_before[static_cast<size_t>(i * d.product.c_stride + j)]);
  }
  for (int64_t k = 0; k < d.product.depth; ++k) {
    sum += at(d.a, d.product.a.transposed, i, k) * at(d.b, d.product.b.transposed, k, j);
  }
  return sum;
}

TEST(MatmulImplementations, OneDnnAgreesWithThePackedProduct) {
  for (const int threads : {1, 2, 3}) {
    Executor x(Device::cpu, threads);
    int served = 0;
    for (const DType dtype : {DType::fp32, DType::bf16}) {
      for (const DType result : {dtype, DType::fp32}) {
        for (const Case& c : kCases) {
          if (c.accumulate && result != DType::fp32) continue;
          for (const int64_t wider : {0, 5}) {
            TensorPool pool;
            const Drawn d = draw(pool, c, dtype, result, wider);
            const auto before = test::values(d.c);
            // oneDNN gets exactly the scratch memory that it asked for.
            const int64_t bytes = cpu::onednn_scratch(x, d.product);
            const Tensor memory = pool.zeros({bytes / 8 + 1}, DType::fp64, "scratch");
            x.bind_scratch(Tensor(memory.data(), DType::u8, Device::cpu, {bytes}));
            const bool done = cpu::onednn_gemm(x, d.product);
            x.bind_scratch(Tensor());
            if (!done) {
              // Nothing was written; contiguous products are served wherever they are preferred.
              EXPECT_EQ(test::values(d.c), before);
              EXPECT_FALSE(wider == 0 && cpu::onednn_is_preferred(dtype));
              continue;
            }
            ++served;
            const auto actual = test::values(d.c);
            for (int64_t e = 0; e < d.c.numel(); ++e) {
              test::set_value(d.c, e, before[static_cast<size_t>(e)]);
            }
            cpu::gemm(x, d.product);
            for (int64_t e = 0; e < d.c.numel(); ++e) {
              const double value = actual[static_cast<size_t>(e)];
              const int64_t i = e / d.product.c_stride;
              const int64_t j = e % d.product.c_stride;
              const double tolerance =
                  j < c.columns ? test::sum_tolerance(c.depth, result) * magnitude(d, before, i, j)
                                : 0.0;  // beside the slice nothing changes
              ASSERT_NEAR(value, test::get_value(d.c, e), tolerance)
                  << to_string(dtype) << " " << c.rows << " " << c.columns << " " << c.depth;
            }
            pool.check_guards();
          }
        }
      }
    }
    EXPECT_GT(served, 0) << "oneDNN served no product at all";
  }
}

// Every product of sizes from `sizes`: both readings of a and b, each matrix and all of them as
// columns of a wider one, plain, with a bias, and added to c.
template <typename Visit>
void for_each_small_product(const std::vector<int64_t>& sizes, Visit&& visit) {
  constexpr Wider kWider[] = {{0, 0, 0}, {7, 0, 0}, {0, 7, 0}, {0, 0, 7}, {7, 7, 7}};
  for (const int64_t rows : sizes) {
    for (const int64_t columns : sizes) {
      for (const int64_t depth : sizes) {
        for (int ways = 0; ways < 4; ++ways) {
          for (const Wider& wider : kWider) {
            for (const auto& [accumulate, bias] :
                 {std::pair{false, false}, {false, true}, {true, false}}) {
              visit(Case{rows, columns, depth, ways % 2 == 1, ways / 2 == 1, accumulate, bias},
                    wider);
            }
          }
        }
      }
    }
  }
}

void poison_beside(const Tensor& matrix, int64_t columns) {
  for (int64_t e = 0; e < matrix.numel(); ++e) {
    if (e % matrix.size(1) >= columns) test::set_value(matrix, e, std::nan(""));
  }
}

// c of plain loops in double, row after row.
std::vector<double> product_by_loops(const Drawn& d) {
  const cpu::Gemm& p = d.product;
  const auto at = [](const Tensor& matrix, bool transposed, int64_t row, int64_t column) {
    return test::get_value(
        matrix, transposed ? column * matrix.size(1) + row : row * matrix.size(1) + column);
  };
  std::vector<double> c;
  for (int64_t i = 0; i < p.rows; ++i) {
    for (int64_t j = 0; j < p.columns; ++j) {
      double sum = p.bias != nullptr ? test::get_value(d.bias, j) : 0.0;
      if (p.accumulate) sum += at(d.c, false, i, j);
      for (int64_t k = 0; k < p.depth; ++k) {
        sum += at(d.a, p.a.transposed, i, k) * at(d.b, p.b.transposed, k, j);
      }
      c.push_back(sum);
    }
  }
  return c;
}

TEST(MatmulImplementations, NothingBesideAMatrixIsReadOrWrittenWhateverItsShapeAndStride) {
  Executor x(Device::cpu, 2);
  for (const DType dtype : {DType::fp32, DType::bf16}) {
    const auto check = [&](const Case& c, const Wider& wider) {
      SCOPED_TRACE(fmt::format("M {} N {} K {} {} transposed {} {} wider {} {} {}", c.rows,
                               c.columns, c.depth, to_string(dtype), c.a_transposed, c.b_transposed,
                               wider.a, wider.b, wider.c));
      TensorPool pool;
      const Drawn d = draw(pool, c, dtype, DType::fp32, wider);
      poison_beside(d.a, d.a.size(1) - wider.a);
      poison_beside(d.b, d.b.size(1) - wider.b);
      poison_beside(d.c, c.columns);
      const std::vector<double> expected = product_by_loops(d);
      if (!cpu::onednn_gemm(x, d.product)) cpu::gemm(x, d.product);
      for (int64_t e = 0; e < d.c.numel(); ++e) {
        const int64_t i = e / d.c.size(1);
        const int64_t j = e % d.c.size(1);
        const double value = test::get_value(d.c, e);
        if (j >= c.columns) {
          ASSERT_TRUE(std::isnan(value)) << "written: (" << i << ", " << j << ")";
        } else {
          // Sums of at most 67 terms, none of them larger than 5².
          ASSERT_NEAR(value, expected[static_cast<size_t>(i * c.columns + j)],
                      test::sum_tolerance(c.depth, DType::fp32) * 67 * 25)
              << "(" << i << ", " << j << ")";
        }
      }
      pool.check_guards();
    };
    for_each_small_product({1, 19}, check);
    // Cut over two threads into columns whose last would be alone.
    for_each_small_product({65}, check);
  }
}

TEST(MatmulImplementations, OneDnnIsGivenNoAxisOfOneElement) {
  Executor x(Device::cpu, 2);
  for_each_small_product({1, 6}, [&](const Case& c, const Wider& wider) {
    if (c.rows > 1 && c.columns > 1 && c.depth > 1) return;
    TensorPool pool;
    const Drawn d = draw(pool, c, DType::fp32, DType::fp32, wider);
    const auto before = test::values(d.c);
    ASSERT_FALSE(cpu::onednn_gemm(x, d.product));
    ASSERT_EQ(test::values(d.c), before);
    ASSERT_EQ(cpu::onednn_scratch(x, d.product), 0);
  });
}

TEST(MatmulImplementations, OneDnnKeepsOnePrimitiveAShapeAndTakesMovedMatrices) {
  Executor x(Device::cpu, 2);
  const Case c{40, 30, 20, false, true, false, true};
  for (int round = 0; round < 3; ++round) {
    TensorPool pool(static_cast<uint64_t>(round));
    const Drawn d = draw(pool, c, DType::fp32, DType::fp32, 0);
    ASSERT_TRUE(cpu::onednn_gemm(x, d.product));
    const Tensor first = pool.copy(d.c, DType::fp32);
    ASSERT_TRUE(cpu::onednn_gemm(x, d.product));
    EXPECT_EQ(test::values(d.c), test::values(first));
    cpu::gemm(x, d.product);
    EXPECT_LE(test::relative_error(first, d.c), test::sum_tolerance(c.depth, DType::fp32));
  }
}

TEST(MatmulImplementations, EveryProductIsWholeAndTheSameWhateverTeamThereIs) {
  for (const DType dtype : {DType::fp64, DType::fp32, DType::bf16}) {
    for (const Case& c : kCases) {
      TensorPool pool;
      const DType result = c.accumulate ? accumulator_of(dtype) : dtype;
      const Drawn d = draw(pool, c, dtype, result, 0);
      const auto before = test::values(d.c);
      const auto product_of = [&](Executor& x, auto&& multiply) {
        for (int64_t e = 0; e < d.c.numel(); ++e) {
          test::set_value(d.c, e, before[static_cast<size_t>(e)]);
        }
        multiply(x, d.product);
        return test::values(d.c);
      };
      for (const int threads : {2, 3}) {
        // oneDNN compiles under one team and runs under others.
        Executor kept(Device::cpu, threads);
        const auto onednn = product_of(kept, cpu::onednn_gemm);
        const auto own = product_of(kept, cpu::gemm);
        test::for_each_team([&] {
          EXPECT_EQ(product_of(kept, cpu::onednn_gemm), onednn);
          EXPECT_EQ(product_of(kept, cpu::gemm), own);
          Executor fresh(Device::cpu, threads);
          EXPECT_EQ(product_of(fresh, cpu::onednn_gemm), onednn);
        });
      }
    }
  }
}

TEST(MatmulImplementations, ProductsThatOneDnnRefusesAreCountedAndDescribed) {
  Executor x(Device::cpu, 2);
  EXPECT_EQ(refused_products(x).count, 0);
  EXPECT_EQ(describe(refused_products(x)), "");
  TensorPool pool;
  const Tensor in = pool.normal({64, 48}, DType::bf16, 1.0, "in");
  const Tensor weight = pool.normal({32, 48}, DType::bf16, 1.0, "weight");
  const Tensor out = pool.zeros({64, 32}, DType::bf16, "out");
  matmul_forward(x, out, in, weight, {});
  EXPECT_EQ(refused_products(x).count, 0);
  const RefusedProducts refused{
      .count = 2, .dtype = DType::bf16, .rows = 64, .columns = 32, .depth = 48};
  EXPECT_EQ(describe(refused),
            "oneDNN did not take 2 matrix products up to now, the first of bf16 64 x 48 x 32: the "
            "packed product computed them in fp32 arithmetic");
  if (!cpu::onednn_is_preferred(DType::bf16)) return;  // then it is asked for none
  const Tensor wider = pool.normal({64, 53}, DType::bf16, 1.0, "wider");
  int64_t expected = 0;
  for (const int64_t rows :
       {7, 33, 64}) {  // strided rows may ask for more scratch, and little is left
    const cpu::Gemm product{.rows = rows,
                            .columns = 32,
                            .depth = 48,
                            .dtype = DType::bf16,
                            .c_dtype = DType::bf16,
                            .a = {.data = wider.data(), .stride = 53},
                            .b = {.data = weight.data(), .stride = 48, .transposed = true},
                            .c = out.data(),
                            .c_stride = 32};
    Executor probe(Device::cpu, 2);
    expected += cpu::onednn_gemm(probe, product) ? 0 : 1;
    matmul_forward(x, out.slice(0, 0, rows), wider.slice(0, 0, rows).slice(1, 0, 48), weight, {});
    EXPECT_EQ(refused_products(x).count, expected);
  }
}

TEST(MatmulImplementations, ProductsWithAnAxisOfOneAreNotCountedAsRefused) {
  Executor x(Device::cpu, 2);
  TensorPool pool;
  for (const DType dtype : {DType::fp32, DType::bf16}) {
    for (const auto& [columns, depth] : {std::pair{1, 48}, std::pair{32, 1}}) {
      const Tensor in = pool.normal({64, depth}, dtype, 1.0, "in");
      const Tensor weight = pool.normal({columns, depth}, dtype, 1.0, "weight");
      const Tensor out = pool.zeros({64, columns}, dtype, "out");
      matmul_forward(x, out, in, weight, {});
      EXPECT_EQ(refused_products(x).count, 0) << columns << " columns, depth " << depth;
    }
  }
}

TEST(MatmulImplementations, OneDnnLeavesFp64ToThePackedProduct) {
  Executor x(Device::cpu, 1);
  TensorPool pool;
  const Drawn d = draw(pool, kCases[0], DType::fp64, DType::fp64, 0);
  const auto before = test::values(d.c);
  EXPECT_FALSE(cpu::onednn_gemm(x, d.product));
  EXPECT_EQ(test::values(d.c), before);
  EXPECT_FALSE(cpu::onednn_is_preferred(DType::fp64));
  EXPECT_EQ(cpu::onednn_scratch(x, d.product), 0);
}

TEST(MatmulImplementations, PackedProductIsBitwiseTheSameOnAnyNumberOfThreads) {
  for (const DType dtype : {DType::fp64, DType::fp32, DType::bf16}) {
    for (const Case& c : kCases) {
      TensorPool pool;
      const DType result = c.accumulate ? accumulator_of(dtype) : dtype;
      const Drawn d = draw(pool, c, dtype, result, 3);
      const auto before = test::values(d.c);
      std::vector<double> first;
      for (const int threads : {1, 2, 3, 7}) {
        Executor x(Device::cpu, threads);
        for (int64_t e = 0; e < d.c.numel(); ++e) {
          test::set_value(d.c, e, before[static_cast<size_t>(e)]);
        }
        cpu::gemm(x, d.product);
        if (threads == 1) first = test::values(d.c);
        ASSERT_EQ(test::values(d.c), first) << threads << " threads, " << to_string(dtype);
      }
      pool.check_guards();
    }
  }
}

TEST(MatmulImplementations, PackedProductNeedsExactlyTheScratchItDeclares) {
  for (const DType dtype : {DType::fp64, DType::fp32, DType::bf16}) {
    for (const Case& c : kCases) {
      Executor x(Device::cpu, 2);
      TensorPool pool;
      const Drawn d = draw(pool, c, dtype, c.accumulate ? accumulator_of(dtype) : dtype, 0);
      const int64_t bytes = cpu::gemm_scratch(d.product);
      ASSERT_GT(bytes, 0);
      const Tensor memory = pool.zeros({bytes / 8}, DType::fp64, "scratch");
      x.bind_scratch(Tensor(memory.data(), DType::u8, Device::cpu, {bytes}));
      cpu::gemm(x, d.product);
      pool.check_guards();
      x.bind_scratch(Tensor(memory.data(), DType::u8, Device::cpu, {bytes - 64}));
      EXPECT_THROW(cpu::gemm(x, d.product), MemoryError);
    }
  }
}

TEST(MatmulImplementations, OneDnnRefusesWhatDoesNotFitIntoTheScratchLeft) {
  int refused = 0;
  for (const DType dtype : {DType::fp32, DType::bf16}) {
    for (const Case& c : kCases) {
      Executor x(Device::cpu, 2);
      TensorPool pool;
      const Drawn d = draw(pool, c, dtype, c.accumulate ? accumulator_of(dtype) : dtype, 0);
      const int64_t bytes = cpu::onednn_scratch(x, d.product);
      if (bytes == 0) continue;
      const auto before = test::values(d.c);
      const Tensor memory = pool.zeros({bytes / 8}, DType::fp64, "scratch");
      x.bind_scratch(Tensor(memory.data(), DType::u8, Device::cpu, {bytes - 64}));
      EXPECT_FALSE(cpu::onednn_gemm(x, d.product));
      EXPECT_EQ(test::values(d.c), before);
      ++refused;
    }
  }
  if (refused == 0) GTEST_SKIP() << "oneDNN asks for no scratch memory on this processor";
}

// Allocations of `calls` products after the first, with bound scratch memory.
template <typename Multiply>
int64_t allocations(Executor& x, const cpu::Gemm& product, int64_t scratch, Multiply&& multiply) {
  TensorPool pool;
  const Tensor memory = pool.zeros({scratch / 8 + 1}, DType::fp64, "scratch");
  x.bind_scratch(Tensor(memory.data(), DType::u8, Device::cpu, {scratch}));
  multiply(x, product);
  const int64_t before = test::allocation_count();
  for (int call = 0; call < 10; ++call) multiply(x, product);
  const int64_t after = test::allocation_count();
  x.bind_scratch(Tensor());
  return after - before;
}

TEST(MatmulImplementations, PackedProductAllocatesNothing) {
  Executor x(Device::cpu, 2);
  for (const DType dtype : {DType::fp64, DType::fp32, DType::bf16}) {
    for (const Case& c : kCases) {
      TensorPool pool;
      const Drawn d = draw(pool, c, dtype, c.accumulate ? accumulator_of(dtype) : dtype, 0);
      EXPECT_EQ(allocations(x, d.product, cpu::gemm_scratch(d.product), cpu::gemm), 0);
    }
  }
}

TEST(MatmulImplementations, OneDnnCompilesAProductOnce) {
  // oneDNN allocates its argument map in each execution, eight small pieces in 2.6.3 and nothing
  // of ours; compiling a primitive again would be hundreds.
  constexpr int kThreads = 2;
  constexpr int64_t kMostPerProduct = 16 * kThreads;
  Executor x(Device::cpu, kThreads);
  for (const Case& c : kCases) {
    TensorPool pool;
    const Drawn d = draw(pool, c, DType::fp32, DType::fp32, 0);
    const int64_t scratch = cpu::onednn_scratch(x, d.product);
    const int64_t before = test::allocation_count();
    const int64_t count = allocations(x, d.product, scratch, cpu::onednn_gemm);
    const int64_t compiling = test::allocation_count() - before - count;
    EXPECT_LE(count, 10 * kMostPerProduct);
    EXPECT_GT(compiling, kMostPerProduct) << "the first call compiles";
  }
}

TEST(MatmulImplementations, EveryDTypeNamesWhatMultipliesIt) {
  for (const DType dtype : {DType::fp64, DType::fp32, DType::bf16}) {
    const std::string name = cpu::matmul_implementation(dtype);
    EXPECT_EQ(name.find("oneDNN") == 0, cpu::onednn_is_preferred(dtype)) << name;
  }
}

}  // namespace
}  // namespace gradus
