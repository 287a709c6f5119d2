// The gradients of both kinds of attention against central differences in fp64.

#include <gtest/gtest.h>

#include <string>

#include "kernels/attention_problem.h"

namespace gradus {
namespace {

using test::AttentionCase;
using test::AttentionProblem;

class AttentionGradient : public ::testing::TestWithParam<AttentionKind> {};

TEST_P(AttentionGradient, AgreesWithCentralDifferences) {
  const AttentionKind kind = GetParam();
  const std::string prefix = kind == AttentionKind::flash ? "flash" : "plain";
  const AttentionCase cases[] = {
      {.name = "causal",
       .batch = 2,
       .queries = 9,
       .keys = 9,
       .heads = 2,
       .kv_heads = 2,
       .head_size = 5},
      {.name = "not causal",
       .batch = 1,
       .queries = 7,
       .keys = 7,
       .heads = 2,
       .kv_heads = 2,
       .head_size = 4,
       .causal = false},
      {.name = "cross",
       .batch = 2,
       .queries = 5,
       .keys = 11,
       .heads = 1,
       .kv_heads = 1,
       .head_size = 3,
       .causal = false},
      {.name = "two tiles",
       .batch = 1,
       .queries = 67,
       .keys = 67,
       .heads = 1,
       .kv_heads = 1,
       .head_size = 2},
      {.name = "appended queries",
       .batch = 1,
       .queries = 6,
       .keys = 13,
       .heads = 2,
       .kv_heads = 2,
       .head_size = 3,
       .query_position = 7},
      {.name = "grouped queries",
       .batch = 2,
       .queries = 6,
       .keys = 6,
       .heads = 6,
       .kv_heads = 2,
       .head_size = 3},
      {.name = "window",
       .batch = 1,
       .queries = 14,
       .keys = 14,
       .heads = 2,
       .kv_heads = 2,
       .head_size = 3,
       .window = 4},
      {.name = "documents",
       .batch = 2,
       .queries = 12,
       .keys = 12,
       .heads = 2,
       .kv_heads = 2,
       .head_size = 3,
       .documents = true},
      {.name = "shifted keys",
       .batch = 1,
       .queries = 12,
       .keys = 8,
       .heads = 2,
       .kv_heads = 2,
       .head_size = 3,
       .query_position = 3,
       .key_position = 6},
      {.name = "dropout",
       .batch = 2,
       .queries = 9,
       .keys = 9,
       .heads = 2,
       .kv_heads = 2,
       .head_size = 5,
       .dropout = 0.4f},
      {.name = "dropout, not causal",
       .batch = 1,
       .queries = 6,
       .keys = 10,
       .heads = 2,
       .kv_heads = 2,
       .head_size = 4,
       .causal = false,
       .dropout = 0.25f},
      {.name = "everything",
       .batch = 2,
       .queries = 10,
       .keys = 15,
       .heads = 4,
       .kv_heads = 2,
       .head_size = 3,
       .window = 7,
       .query_position = 6,
       .key_position = 2,
       .documents = true,
       .dropout = 0.2f},
  };
  // One thread sums all gradients of a head at once, 16 take keys and queries in two passes.
  for (const int threads : {1, 16}) {
    for (const AttentionCase& c : cases) {
      SCOPED_TRACE(::testing::Message() << c.name << ", " << threads << " threads");
      Executor x(Device::cpu, threads);
      AttentionProblem p(c, DType::fp64);
      p.forward(x, kind);
      p.backward(x, kind);
      const auto loss = [&] {
        p.forward(x, kind);
        return test::weighted_sum(p.out, p.dout);
      };
      const std::pair<Tensor, Tensor> gradients[] = {{p.q, p.dq}, {p.k, p.dk}, {p.v, p.dv}};
      for (const auto& [input, gradient] : gradients) {
        test::expect_gradient(prefix + ", " + c.name + ", d" + input.name(), gradient,
                              test::central_differences(loss, input));
      }
      p.check_bounds();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, AttentionGradient,
                         ::testing::Values(AttentionKind::flash, AttentionKind::plain),
                         [](const auto& kind) {
                           return kind.param == AttentionKind::flash ? "flash" : "plain";
                         });

}  // namespace
}  // namespace gradus
