#include "kernels/embedding.h"

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

struct Sizes {
  int64_t batch, positions, channels, rows;  // rows of the token table
};
constexpr Sizes kSizes[] = {{1, 1, 1, 1},    {2, 3, 5, 4},    {17, 1, 16, 3},  {3, 7, 33, 11},
                            {2, 90, 131, 7}, {1, 5, 1029, 3}, {4, 40, 100, 65}};

// The rank holds rows [kFirstRow, kFirstRow + rows) of the vocabulary; tokens lie outside too.
constexpr int32_t kFirstRow = 5;

Tensor draw_tokens(TensorPool& pool, const Sizes& s) {
  return pool.integers({s.batch, s.positions}, kFirstRow - 2,
                       kFirstRow + static_cast<int32_t>(s.rows) + 1, "tokens");
}

TEST(TokenEmbedding, GathersRowsAndZeroesTheOthers) {
  test::for_each_simd_target([] {
    Executor x(Device::cpu, 2);
    for (const Precision& precision : test::kPrecisions) {
      for (const Sizes& s : kSizes) {
        TensorPool pool(static_cast<uint64_t>(s.channels));
        const Tensor tokens = draw_tokens(pool, s);
        const Tensor weight = pool.normal({s.rows, s.channels}, precision.activation);
        const Tensor out =
            pool.poisoned({s.batch, s.positions, s.channels}, precision.residual, "out");
        token_embedding_forward(x, out, tokens, weight, kFirstRow);
        for (int64_t i = 0; i < out.numel(); ++i) {
          const auto row =
              static_cast<int64_t>(test::get_value(tokens, i / s.channels)) - kFirstRow;
          const bool here = row >= 0 && row < s.rows;
          const double expected =
              here ? test::get_value(weight, row * s.channels + i % s.channels) : 0.0;
          ASSERT_EQ(test::get_value(out, i), expected) << precision.name << " " << i;
        }
        pool.check_guards();
      }
    }
  });
}

TEST(TokenEmbedding, GradientAgreesWithCentralDifferences) {
  Executor x(Device::cpu, 2);
  TensorPool pool;
  const Tensor tokens = draw_tokens(pool, {3, 4, 5, 4});
  const Tensor weight = pool.normal({4, 5}, DType::fp64);
  const Tensor out = pool.poisoned({3, 4, 5}, DType::fp64);
  const Tensor dout = pool.normal({3, 4, 5}, DType::fp64);
  const Tensor dweight = pool.zeros({4, 5}, DType::fp64);
  token_embedding_backward(x, dweight, dout, tokens, kFirstRow);
  test::expect_gradient("token embedding dweight", dweight,
                        test::central_differences(
                            [&] {
                              token_embedding_forward(x, out, tokens, weight, kFirstRow);
                              return test::weighted_sum(out, dout);
                            },
                            weight));
}

// Sums are made in index order whatever the threads and the instruction set: bitwise what a loop
// gives.
TEST(TokenEmbedding, BackwardAddsInIndexOrder) {
  test::for_each_simd_target([] {
    for (const int threads : {1, 2, 3}) {
      Executor x(Device::cpu, threads);
      for (const Precision& precision : test::kPrecisions) {
        for (const Sizes& s : kSizes) {
          TensorPool pool(static_cast<uint64_t>(s.channels));
          const Tensor tokens = draw_tokens(pool, s);
          const Tensor dout =
              pool.normal({s.batch, s.positions, s.channels}, precision.residual, 1.0, "dout");
          const Tensor dweight =
              pool.normal({s.rows, s.channels}, precision.accumulator, 1.0, "dweight");
          const Tensor expected = pool.copy(dweight, precision.accumulator);
          for (int64_t i = 0; i < dout.numel(); ++i) {
            const auto row =
                static_cast<int64_t>(test::get_value(tokens, i / s.channels)) - kFirstRow;
            if (row < 0 || row >= s.rows) continue;
            const int64_t at = row * s.channels + i % s.channels;
            const double sum = test::get_value(expected, at) + test::get_value(dout, i);
            test::set_value(expected, at, sum);  // rounds to the accumulator's dtype
          }
          token_embedding_backward(x, dweight, dout, tokens, kFirstRow);
          ASSERT_EQ(test::values(dweight), test::values(expected)) << precision.name;
          pool.check_guards();
        }
      }
    }
  });
}

constexpr int64_t kContext = 100;
constexpr int64_t kFirstPosition = 9;

TEST(PositionEmbedding, GradientsAgreeWithCentralDifferences) {
  Executor x(Device::cpu, 2);
  for (const float p : {0.0f, 0.4f}) {
    TensorPool pool;
    const Dropout dropout = test::some_dropout(p);
    const Tensor in = pool.normal({3, 4, 5}, DType::fp64);
    const Tensor weight = pool.normal({kContext, 5}, DType::fp64);
    const Tensor dout = pool.normal({3, 4, 5}, DType::fp64);
    const auto loss = [&] {
      TensorPool local;
      const Tensor inout = local.copy(in, DType::fp64);
      position_embedding_forward(x, inout, weight, kFirstPosition, dropout);
      return test::weighted_sum(inout, dout);
    };
    const Tensor din = pool.copy(dout, DType::fp64);
    const Tensor dweight = pool.zeros({kContext, 5}, DType::fp64);
    position_embedding_backward(x, din, dweight, kFirstPosition, dropout);
    test::expect_gradient("position embedding din", din, test::central_differences(loss, in));
    test::expect_gradient("position embedding dweight", dweight,
                          test::central_differences(loss, weight));
  }
}

// Against a plain loop in fp64 over the masks of core/rng.h's definition.
TEST(PositionEmbedding, AgreesWithFp64OnEveryPrecisionAndInstructionSet) {
  test::for_each_simd_target([] {
    Executor x(Device::cpu, 2);
    Executor one(Device::cpu, 1);
    for (const Precision& precision : test::kPrecisions) {
      SCOPED_TRACE(precision.name);
      for (const Sizes& s : kSizes) {
        for (const float probability : {0.0f, 0.3f}) {
          const Shape shape{s.batch, s.positions, s.channels};
          SCOPED_TRACE(to_string(shape));
          const Dropout dropout = test::some_dropout(probability);
          TensorPool pool(static_cast<uint64_t>(s.channels));
          const Tensor inout = pool.normal(shape, precision.residual, 1.0, "inout");
          const Tensor weight =
              pool.normal({kContext, s.channels}, precision.activation, 1.0, "weight");
          const Tensor dinout = pool.normal(shape, precision.residual, 1.0, "dinout");
          const Tensor dweight =
              pool.normal({kContext, s.channels}, precision.accumulator, 1.0, "dweight");

          const Tensor expected = pool.copy(inout, DType::fp64);
          const Tensor expected_din = pool.copy(dinout, DType::fp64);
          const Tensor expected_dweight = pool.copy(dweight, DType::fp64);
          for (int64_t i = 0; i < shape.numel(); ++i) {
            const int64_t at =
                (kFirstPosition + i / s.channels % s.positions) * s.channels + i % s.channels;
            const double factor = test::dropout_factor(dropout, shape, i);
            test::set_value(expected, i,
                            factor * (test::get_value(inout, i) + test::get_value(weight, at)));
            const double gradient = factor * test::get_value(dinout, i);
            test::set_value(expected_din, i, gradient);
            test::set_value(expected_dweight, at, test::get_value(expected_dweight, at) + gradient);
          }
          const Tensor inout_one = pool.copy(inout, precision.residual);
          const Tensor dinout_one = pool.copy(dinout, precision.residual);
          const Tensor dweight_one = pool.copy(dweight, precision.accumulator);

          position_embedding_forward(x, inout, weight, kFirstPosition, dropout);
          position_embedding_backward(x, dinout, dweight, kFirstPosition, dropout);
          test::expect_close(inout, expected);
          test::expect_close(dinout, expected_din);
          test::expect_close(dweight, expected_dweight);
          pool.check_guards();

          // The same bits on one thread.
          position_embedding_forward(one, inout_one, weight, kFirstPosition, dropout);
          position_embedding_backward(one, dinout_one, dweight_one, kFirstPosition, dropout);
          EXPECT_EQ(test::values(inout_one), test::values(inout));
          EXPECT_EQ(test::values(dinout_one), test::values(dinout));
          EXPECT_EQ(test::values(dweight_one), test::values(dweight));
        }
      }
    }
  });
}

TEST(Embedding, RefusesWhatDoesNotFit) {
  Executor x(Device::cpu, 1);
  TensorPool pool;
  const Tensor tokens = pool.integers({2, 3}, 0, 3);
  const Tensor out = pool.normal({2, 3, 8}, DType::fp32);
  const Tensor weight = pool.normal({4, 8}, DType::fp32);
  const Tensor narrow = pool.normal({4, 7}, DType::fp32);
  const Tensor floats = pool.normal({2, 3}, DType::fp32);
  EXPECT_THROW(token_embedding_forward(x, out, tokens, narrow, 0), ShapeError);
  EXPECT_THROW(token_embedding_forward(x, out, floats, weight, 0), ShapeError);
  EXPECT_THROW(token_embedding_forward(x, out, pool.integers({3, 2}, 0, 3), weight, 0), ShapeError);
  EXPECT_THROW(token_embedding_forward(x, out, tokens, pool.normal({4, 8}, DType::fp64), 0),
               ShapeError);
  EXPECT_THROW(token_embedding_forward(x, pool.normal({2, 3, 8}, DType::bf16), tokens, weight, 0),
               ShapeError);
  EXPECT_THROW(token_embedding_backward(x, narrow, out, tokens, 0), ShapeError);
  EXPECT_THROW(token_embedding_backward(x, pool.normal({4, 8}, DType::bf16), out, tokens, 0),
               ShapeError);

  const Dropout none;
  EXPECT_THROW(position_embedding_forward(x, out, narrow, 0, none), ShapeError);
  EXPECT_THROW(position_embedding_forward(x, out, weight, 2, none), ShapeError);  // past the table
  EXPECT_THROW(position_embedding_forward(x, out, weight, -1, none), ShapeError);
  EXPECT_THROW(position_embedding_forward(x, out, weight, 0, Dropout{.p = 1.5f}), ShapeError);
  EXPECT_THROW(position_embedding_forward(x, out, pool.normal({4, 8}, DType::fp64), 0, none),
               ShapeError);
  EXPECT_THROW(position_embedding_backward(x, out, pool.normal({4, 8}, DType::fp64), 0, none),
               ShapeError);
  EXPECT_THROW(position_embedding_backward(x, out, weight, 2, none), ShapeError);
}

}  // namespace
}  // namespace gradus
