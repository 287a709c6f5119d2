// Every shape and mask of attention_cases(), both kinds, every dtype and instruction set, against
// the contract written out element by element, and the two kinds against each other.

#include "kernels/attention.h"

#include <gtest/gtest.h>

#include "kernels/attention_problem.h"
#include "support/simd_targets.h"
#include "support/tolerances.h"

namespace gradus {
namespace {

using test::AttentionCase;
using test::AttentionProblem;
using test::AttentionReference;
using test::gradient_error;
using test::relative_error;

constexpr AttentionKind kKinds[] = {AttentionKind::flash, AttentionKind::plain};
constexpr DType kDTypes[] = {DType::fp64, DType::fp32, DType::bf16};

const char* kind_name(AttentionKind kind) {
  return kind == AttentionKind::flash ? "flash" : "plain";
}

/// Forward against the element-by-element reference, backward against the plain kind in fp64.
void check_case(const AttentionCase& c, AttentionKind kind, DType dtype, bool strided) {
  SCOPED_TRACE(::testing::Message() << c.name << ", " << kind_name(kind) << ", " << to_string(dtype)
                                    << (strided ? ", strided" : ""));
  Executor x(Device::cpu, 2);
  AttentionProblem p(c, dtype, strided);
  p.forward(x, kind);
  const AttentionReference reference(p);
  EXPECT_LE(relative_error(p.out, reference.out), test::attention_tolerance(dtype));
  EXPECT_LE(relative_error(p.lse, reference.lse), test::attention_lse_tolerance(dtype));

  AttentionProblem oracle(c, DType::fp64);
  oracle.take_inputs(p);
  oracle.backward(x, AttentionKind::plain);
  p.backward(x, kind);
  EXPECT_LE(gradient_error(p.row_sum, oracle.row_sum), test::attention_lse_tolerance(dtype));
  EXPECT_LE(gradient_error(p.dq, oracle.dq), test::attention_tolerance(dtype));
  EXPECT_LE(gradient_error(p.dk, oracle.dk), test::attention_tolerance(dtype));
  EXPECT_LE(gradient_error(p.dv, oracle.dv), test::attention_tolerance(dtype));
  p.check_bounds();
}

TEST(Attention, EveryCaseFollowsTheContract) {
  for (const AttentionCase& c : test::attention_cases()) {
    for (const AttentionKind kind : kKinds) {
      for (const DType dtype : kDTypes) check_case(c, kind, dtype, true);
      check_case(c, kind, DType::fp32, false);
    }
  }
}

TEST(Attention, EveryInstructionSetFollowsTheContract) {
  const std::vector<AttentionCase> cases = {
      {.name = "ragged",
       .queries = 71,
       .keys = 71,
       .heads = 2,
       .kv_heads = 1,
       .head_size = 37,
       .dropout = 0.25f},
      {.name = "few queries",
       .queries = 2,
       .keys = 71,
       .heads = 2,
       .kv_heads = 2,
       .head_size = 37,
       .query_position = 69},
  };
  test::for_each_simd_target([&] {
    for (const AttentionCase& c : cases) {
      for (const AttentionKind kind : kKinds) {
        for (const DType dtype : kDTypes) check_case(c, kind, dtype, true);
      }
    }
  });
}

TEST(Attention, KindsAgreeToRounding) {
  Executor x(Device::cpu, 2);
  for (const AttentionCase& c : test::attention_cases()) {
    SCOPED_TRACE(c.name);
    AttentionProblem flash(c, DType::fp64);
    flash.forward(x, AttentionKind::flash);
    flash.backward(x, AttentionKind::flash);
    AttentionProblem plain(c, DType::fp64);
    plain.take_inputs(flash);
    plain.poison_outputs();
    plain.forward(x, AttentionKind::plain);
    plain.backward(x, AttentionKind::plain);
    const double tolerance = test::attention_tolerance(DType::fp64);
    EXPECT_LE(relative_error(flash.out, plain.out), tolerance);
    EXPECT_LE(relative_error(flash.lse, plain.lse), tolerance);
    EXPECT_LE(gradient_error(flash.dq, plain.dq), tolerance);
    EXPECT_LE(gradient_error(flash.dk, plain.dk), tolerance);
    EXPECT_LE(gradient_error(flash.dv, plain.dv), tolerance);
  }
}

TEST(Attention, ThreadsDoNotChangeABit) {
  // Two heads of keys: one and two threads take all gradients of a head at once, more threads
  // split its keys and queries.
  const AttentionCase c = {.name = "threads",
                           .queries = 200,
                           .keys = 230,
                           .heads = 4,
                           .kv_heads = 2,
                           .head_size = 24,
                           .query_position = 20,
                           .dropout = 0.1f};
  for (const AttentionKind kind : kKinds) {
    for (const DType dtype : kDTypes) {
      SCOPED_TRACE(::testing::Message() << kind_name(kind) << ", " << to_string(dtype));
      AttentionProblem p(c, dtype);
      std::vector<std::vector<double>> expected;
      for (const int threads : {1, 2, 3, 7}) {
        Executor x(Device::cpu, threads);
        p.poison_outputs();
        p.forward(x, kind);
        p.backward(x, kind);
        std::vector<std::vector<double>> results;
        for (const Tensor& t : {p.out, p.lse, p.row_sum, p.dq, p.dk, p.dv}) {
          results.push_back(test::values(t));
        }
        if (expected.empty()) expected = results;
        EXPECT_EQ(results, expected) << threads << " threads";
      }
    }
  }
}

}  // namespace
}  // namespace gradus
