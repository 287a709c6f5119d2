#include "kernels/cuda/attention.h"

#include <gtest/gtest.h>

#include <ostream>
#include <random>
#include <vector>

#include "kernels/cuda/attention_case.h"
#include "support/tensors.h"

namespace gradus::cuda::testing {
namespace {

AttentionProblem problem(int B, int T_q, int T_k, int H, int H_kv, int D) {
  return {.batch = B,
          .queries = T_q,
          .keys = T_k,
          .heads = H,
          .kv_heads = H_kv,
          .head_size = D,
          .scale = 1.0 / std::sqrt(D)};
}

std::vector<AttentionCase> cases() {
  std::vector<AttentionCase> all;
  const auto add = [&](std::string name, AttentionProblem p, void (*change)(AttentionCase&)) {
    AttentionCase c{.name = std::move(name), .problem = p};
    change(c);
    all.push_back(c);
  };
  const auto nothing = [](AttentionCase&) {};
  add("one", problem(1, 1, 1, 1, 1, 64), nothing);
  add("T67_D64", problem(2, 67, 67, 2, 2, 64), nothing);
  add("T128_D64", problem(1, 128, 128, 1, 1, 64), nothing);
  add("T201_D64_packed", problem(1, 201, 201, 2, 2, 64), [](AttentionCase& c) { c.packed = true; });
  add("T150_D128", problem(1, 150, 150, 2, 1, 128), nothing);
  add("T131_D128_packed", problem(1, 131, 131, 1, 1, 128),
      [](AttentionCase& c) { c.packed = true; });
  add("T97_D80", problem(1, 97, 97, 1, 1, 80), nothing);
  add("T97_D96", problem(1, 97, 97, 2, 1, 96), nothing);
  add("T70_D256", problem(1, 70, 70, 1, 1, 256), nothing);
  add("T65_D33_unaligned", problem(1, 65, 65, 3, 3, 33), nothing);
  add("T66_D100_partial_chunk", problem(1, 66, 66, 1, 1, 100),
      [](AttentionCase& c) { c.row_padding = 4; });
  add("grouped", problem(2, 75, 75, 6, 2, 64), nothing);
  add("not_causal", problem(1, 70, 90, 1, 1, 64),
      [](AttentionCase& c) { c.problem.causal = false; });
  add("fewer_queries", problem(1, 5, 150, 2, 2, 64),
      [](AttentionCase& c) { c.problem.query_position = 145; });
  add("keys_ahead", problem(1, 140, 40, 1, 1, 64),
      [](AttentionCase& c) { c.problem.key_position = 100; });  // 100 queries see no key
  add("window", problem(1, 260, 260, 1, 1, 64), [](AttentionCase& c) { c.problem.window = 37; });
  add("window_D128", problem(1, 190, 190, 1, 1, 128),
      [](AttentionCase& c) { c.problem.window = 70; });
  add("documents", problem(2, 210, 210, 1, 1, 64), [](AttentionCase& c) { c.documents = 5; });
  add("documents_window", problem(1, 180, 180, 2, 1, 64), [](AttentionCase& c) {
    c.documents = 3;
    c.problem.window = 25;
  });
  const auto dropout = [](AttentionCase& c) {
    c.problem.dropout = {.p = 0.2,
                         .key = 12345678901234567u,
                         .first_sample = 3,
                         .first_position = 0,
                         .first_head = 5};
  };
  add("dropout_D64", problem(2, 100, 100, 2, 2, 64), dropout);
  add("dropout_D96", problem(1, 70, 70, 2, 1, 96), dropout);
  add("dropout_D128", problem(1, 90, 90, 1, 1, 128), dropout);
  add("dropout_D256", problem(1, 40, 40, 1, 1, 256), dropout);
  add("dropout_unaligned", problem(1, 50, 50, 3, 3, 33), dropout);
  add("dropout_positions", problem(1, 40, 70, 1, 1, 64), [](AttentionCase& c) {
    c.problem.dropout = {
        .p = 0.5, .key = 99, .first_sample = 0, .first_position = 0, .first_head = 0};
    c.problem.query_position = 1041;
    c.problem.key_position = 1003;  // blocks of four keys begin inside a tile
  });
  add("long_window", problem(1, 400, 400, 1, 1, 64),
      [](AttentionCase& c) { c.problem.window = 150; });
  return all;
}

/// Bounds of ‖got - want‖ / ‖want‖. A result's own rounding gives about 0.3 units of the type's
/// epsilon, the weights' and dscores' rounding before the products about as much again.
template <typename E>
void expect_close(const AttentionCase& c, double slack = 1) {
  SCOPED_TRACE(c.name + " variant " + std::to_string(c.variant));
  const double epsilon = slack * (std::is_same_v<E, __half> ? 1.0 / 1024 : 1.0 / 128);
  const AttentionErrors errors = run_attention_case<E>(c);
  EXPECT_LT(errors.out, 0.6 * epsilon);
  EXPECT_LT(errors.lse, 1e-5);
  EXPECT_LT(errors.row_sum, 2 * epsilon);
  EXPECT_LT(errors.dq, epsilon);
  EXPECT_LT(errors.dk, epsilon);
  EXPECT_LT(errors.dv, epsilon);
  EXPECT_TRUE(errors.guards);
  EXPECT_TRUE(errors.repeats);
  EXPECT_TRUE(errors.empty_rows);
}

class CudaAttention : public ::testing::TestWithParam<AttentionCase> {};

TEST_P(CudaAttention, Bf16) { expect_close<__nv_bfloat16>(GetParam()); }
TEST_P(CudaAttention, Fp16) { expect_close<__half>(GetParam()); }

INSTANTIATE_TEST_SUITE_P(Cases, CudaAttention, ::testing::ValuesIn(cases()),
                         [](const auto& test) { return test.param.name; });

/// Every kernel of the table, on a shape that has whole tiles, diagonal ones and rest.
TEST(CudaAttentionVariants, Forward) {
  for (const int D : {64, 96, 128, 256}) {
    AttentionCase c{.name = "D" + std::to_string(D), .problem = problem(1, 290, 290, 1, 1, D)};
    c.backward = false;
    for (size_t i = 0; i < attention_forward_variants(D).size(); ++i) {
      c.variant = static_cast<int>(i);
      expect_close<__nv_bfloat16>(c);
    }
  }
}

TEST(CudaAttentionVariants, Backward) {
  for (const int D : {64, 96, 128, 256}) {
    AttentionCase c{.name = "D" + std::to_string(D), .problem = problem(1, 290, 290, 1, 1, D)};
    for (size_t i = 0; i < attention_backward_variants(D).size(); ++i) {
      c.variant = static_cast<int>(i);
      expect_close<__nv_bfloat16>(c);
    }
  }
}

/// Sizes, masks and strides that nobody thought of.
TEST(CudaAttentionRandom, AnyShape) {
  const uint64_t seed = gradus::test::test_seed();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  const auto below = [&](int bound) {
    return static_cast<int>(random() % static_cast<uint64_t>(bound));
  };
  for (int i = 0; i < 24; ++i) {
    const int D = below(3) == 0 ? 1 + below(256) : 64 * (1 + below(2));
    const int kv_heads = 1 + below(2);
    AttentionCase c{.name = "random " + std::to_string(i),
                    .problem = problem(1 + below(2), 1 + below(220), 1 + below(220),
                                       kv_heads * (1 + below(3)), kv_heads, D)};
    c.seed = random();
    AttentionProblem& p = c.problem;
    p.causal = below(4) != 0;
    p.key_position = below(3) == 0 ? below(100) : 0;
    p.query_position = below(2) == 0 ? below(150) : p.key_position;
    p.window = below(3) == 0 ? 1 + below(120) : 0;
    c.documents = below(4) == 0 ? 1 + below(4) : 0;
    c.row_padding = below(3) == 0 ? below(12) : 0;
    if (below(3) == 0)
      p.dropout = {
          .p = 0.3, .key = random(), .first_sample = 1, .first_position = 0, .first_head = 2};
    c.name += " B" + std::to_string(p.batch) + " T" + std::to_string(p.queries) + "x" +
              std::to_string(p.keys) + " H" + std::to_string(p.heads) + "/" +
              std::to_string(kv_heads) + " D" + std::to_string(D) + (p.causal ? " causal" : "") +
              " at " + std::to_string(p.query_position) + "," + std::to_string(p.key_position) +
              " window " + std::to_string(p.window) + " documents " + std::to_string(c.documents) +
              (p.dropout.active() ? " dropout" : "");
    // Of few elements, or of heads of a few columns, roundings do not average out.
    expect_close<__half>(c, 4);
  }
}

}  // namespace
}  // namespace gradus::cuda::testing
