// What attention does at the edges: extreme scores, empty rows, dropout's exact mask, decoding,
// scratch memory and refused arguments.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <utility>

#include "core/error.h"
#include "kernels/attention_problem.h"
#include "support/tolerances.h"

namespace gradus {
namespace {

using test::AttentionCase;
using test::AttentionProblem;
using test::AttentionReference;
using test::get_value;
using test::relative_error;
using test::set_value;

constexpr AttentionKind kKinds[] = {AttentionKind::flash, AttentionKind::plain};

TEST(AttentionBehaviour, LargeScoresStayFiniteAndRight) {
  Executor x(Device::cpu, 2);
  for (const int64_t queries : {3, 70}) {
    const AttentionCase c = {.name = "large scores",
                             .batch = 1,
                             .queries = queries,
                             .keys = 70,
                             .heads = 2,
                             .kv_heads = 2,
                             .head_size = 16,
                             .query_position = 70 - queries};
    for (const AttentionKind kind : kKinds) {
      for (const DType dtype : {DType::fp64, DType::fp32}) {
        AttentionProblem p(c, dtype);
        p.scale = 2500.0;  // q · k of 16 unit normals is about ±4: scores of ±1e4
        p.forward(x, kind);
        p.backward(x, kind);
        const AttentionReference reference(p);
        EXPECT_LE(relative_error(p.out, reference.out), test::large_scores_tolerance(dtype));
        EXPECT_LE(relative_error(p.lse, reference.lse), test::attention_lse_tolerance(dtype));
        for (const Tensor& gradient : {p.dq, p.dk, p.dv}) {
          for (int64_t i = 0; i < gradient.numel(); ++i) {
            ASSERT_TRUE(std::isfinite(get_value(gradient, i))) << gradient.name();
          }
        }
      }
    }
  }
}

TEST(AttentionBehaviour, QueriesWithoutKeysGiveZeroAndTakeNoGradient) {
  Executor x(Device::cpu, 2);
  for (const int64_t queries : {2, 90}) {
    // Keys 20 … 99: queries 0 … 19 see none.
    const AttentionCase c = {.name = "no keys",
                             .batch = 1,
                             .queries = queries,
                             .keys = 80,
                             .heads = 2,
                             .kv_heads = 2,
                             .head_size = 9,
                             .key_position = 20};
    for (const AttentionKind kind : kKinds) {
      for (const DType dtype : {DType::fp64, DType::fp32, DType::bf16}) {
        AttentionProblem p(c, dtype);
        p.forward(x, kind);
        p.backward(x, kind);
        for (int64_t h = 0; h < 2; ++h) {
          for (int64_t i = 0; i < queries; ++i) {
            EXPECT_EQ(get_value(p.lse, h * queries + i) == -std::numeric_limits<double>::infinity(),
                      i < 20);
            if (i >= 20) continue;
            EXPECT_EQ(get_value(p.row_sum, h * queries + i), 0.0);
            for (int64_t d = 0; d < 9; ++d) {
              EXPECT_EQ(get_value(p.out, (i * 2 + h) * 9 + d), 0.0);
              EXPECT_EQ(get_value(p.dq, (i * 2 + h) * 9 + d), 0.0);
            }
          }
        }
      }
    }
  }
}

TEST(AttentionBehaviour, NonFiniteInputsReachTheOutput) {
  Executor x(Device::cpu, 2);
  for (const int64_t queries : {2, 70}) {
    const AttentionCase c = {.name = "nan",
                             .batch = 1,
                             .queries = queries,
                             .keys = 70,
                             .heads = 1,
                             .kv_heads = 1,
                             .head_size = 8,
                             .query_position = 70 - queries};
    for (const AttentionKind kind : kKinds) {
      for (const DType dtype : {DType::fp64, DType::fp32, DType::bf16}) {
        for (const bool in_key : {false, true}) {
          AttentionProblem p(c, dtype);
          const int64_t i = queries - 1;  // sees every key
          set_value(in_key ? p.k : p.q, in_key ? 5 * 8 + 1 : i * 8 + 1, std::nan(""));
          p.forward(x, kind);
          EXPECT_TRUE(std::isnan(get_value(p.out, i * 8)));
          EXPECT_TRUE(std::isnan(get_value(p.lse, i)));
        }
      }
    }
  }
}

// A score that overflows to -inf is a key that was seen. Beside finite ones it has no weight;
// alone, softmax has no value, and that must not look like a query without keys.
TEST(AttentionBehaviour, ScoresOfMinusInfinityAreScores) {
  Executor x(Device::cpu, 2);
  constexpr int64_t kKeys = 140;  // more than two tiles of them
  struct Scores {
    const char* name;
    std::function<double(int64_t key)> sign;  // of an infinite score; 0: the score is 0
    bool defined;                             // whether softmax has a value where all are seen
  };
  const Scores kinds_of_scores[] = {
      {"all", [](int64_t) { return -1.0; }, false},
      {"one key is finite", [](int64_t j) { return j == 77 ? 0.0 : -1.0; }, true},
      {"a tile", [](int64_t j) { return j < 64 ? -1.0 : 0.0; }, true},
      {"the last tile", [](int64_t j) { return j < 128 ? 0.0 : -1.0; }, true},
      {"one is +inf", [](int64_t j) { return j == 77 ? 1.0 : -1.0; }, false},
  };
  for (const Scores& scores : kinds_of_scores) {
    for (const int64_t queries : {1, 3, 70}) {
      for (const DType dtype : {DType::fp64, DType::fp32, DType::bf16}) {
        const AttentionCase c = {.name = scores.name,
                                 .batch = 1,
                                 .queries = queries,
                                 .keys = kKeys,
                                 .heads = 1,
                                 .kv_heads = 1,
                                 .head_size = 1,
                                 .query_position = kKeys - queries};
        SCOPED_TRACE(testing::Message()
                     << scores.name << ", " << queries << " queries, " << to_string(dtype));
        AttentionProblem flash(c, dtype);
        AttentionProblem plain(c, dtype);
        const double huge = dtype == DType::fp64 ? 1e200 : 1e20;
        for (int64_t i = 0; i < queries; ++i) set_value(flash.q, i, huge);
        for (int64_t j = 0; j < kKeys; ++j) set_value(flash.k, j, scores.sign(j) * huge);
        plain.take_inputs(flash);
        flash.scale = plain.scale = 1.0;
        for (const auto& [problem, kind] :
             {std::pair(&flash, AttentionKind::flash), std::pair(&plain, AttentionKind::plain)}) {
          problem->forward(x, kind);
          problem->backward(x, kind);
          EXPECT_EQ(std::isnan(get_value(problem->out, queries - 1)), !scores.defined);
          EXPECT_EQ(std::isnan(get_value(problem->lse, queries - 1)), !scores.defined);
        }
        const std::pair<Tensor, Tensor> tensors[] = {{flash.out, plain.out},
                                                     {flash.lse, plain.lse},
                                                     {flash.dq, plain.dq},
                                                     {flash.dk, plain.dk},
                                                     {flash.dv, plain.dv}};
        for (const auto& [a, b] : tensors) {
          for (int64_t i = 0; i < a.numel(); ++i) {
            ASSERT_EQ(std::isfinite(get_value(a, i)), std::isfinite(get_value(b, i)))
                << a.name() << " " << i << ": " << get_value(a, i) << ", " << get_value(b, i);
          }
        }
      }
    }
  }
}

TEST(AttentionBehaviour, OneScoreThatOverflowsIsNotAQueryWithoutKeys) {
  Executor x(Device::cpu, 1);
  for (const AttentionKind kind : kKinds) {
    AttentionProblem p({.name = "T = D = 1"}, DType::fp32);
    set_value(p.q, 0, 1e20);
    set_value(p.k, 0, -1e20);
    p.scale = 1.0;
    p.forward(x, kind);
    EXPECT_TRUE(std::isnan(get_value(p.out, 0)));
    EXPECT_TRUE(std::isnan(get_value(p.lse, 0)));
  }
}

TEST(AttentionBehaviour, DropoutDropsExactlyTheWordsOfPhilox) {
  // v one-hot: out[i] is the row of weights, and an element is 0 only where it was dropped.
  Executor x(Device::cpu, 2);
  for (const int64_t queries : {3, 70}) {
    const AttentionCase c = {.name = "dropout mask",
                             .batch = 2,
                             .queries = queries,
                             .keys = 75,
                             .heads = 2,
                             .kv_heads = 2,
                             .head_size = 75,
                             .causal = false,
                             .query_position = 1000,
                             .key_position = 1234567,
                             .dropout = 0.37f};
    for (const AttentionKind kind : kKinds) {
      AttentionProblem p(c, DType::fp64);
      for (int64_t i = 0; i < p.v.numel(); ++i) {
        set_value(p.v, i, i / (2 * 75) % 75 == i % 75 ? 1.0 : 0.0);
      }
      p.forward(x, kind);
      int64_t dropped = 0;
      for (int64_t i = 0; i < p.out.numel(); ++i) {
        const int64_t j = i % 75;
        const int64_t h = i / 75 % 2;
        const int64_t query = i / 150 % queries;
        const int64_t b = i / 150 / queries;
        const int64_t key_at = 1234567 + j;
        const uint64_t counter = static_cast<uint64_t>(p.dropout.first_head + h) << 48 |
                                 static_cast<uint64_t>(1000 + query) << 24 |
                                 static_cast<uint64_t>(key_at / 4);
        const auto words =
            philox4x32(p.dropout.key, static_cast<uint64_t>(p.dropout.first_sample + b), counter);
        const bool kept = words[static_cast<size_t>(key_at % 4)] >= p.dropout.threshold();
        ASSERT_EQ(get_value(p.out, i) != 0.0, kept) << "query " << query << ", key " << j;
        dropped += kept ? 0 : 1;
      }
      EXPECT_NEAR(static_cast<double>(dropped) / static_cast<double>(p.out.numel()), 0.37, 0.02);
      EXPECT_LE(relative_error(p.out, AttentionReference(p).out), 1e-12);
    }
  }
}

TEST(AttentionBehaviour, DecodingInStepsEqualsTheWholeSequence) {
  constexpr int64_t kT = 75;
  Executor x(Device::cpu, 2);
  for (const DType dtype : {DType::fp64, DType::fp32}) {
    const AttentionCase c = {.name = "decode",
                             .batch = 2,
                             .queries = kT,
                             .keys = kT,
                             .heads = 4,
                             .kv_heads = 2,
                             .head_size = 20,
                             .window = 40};
    AttentionProblem p(c, dtype);
    p.forward(x, AttentionKind::flash);
    for (const AttentionKind kind : kKinds) {
      for (const int64_t step : {1, 5, 32}) {
        test::TensorPool pool;
        const Tensor out = pool.poisoned(p.out.shape(), dtype);
        for (int64_t t = 0; t < kT; t += step) {
          const int64_t count = std::min(step, kT - t);
          const Tensor lse = pool.poisoned({2, 4, count}, dtype);
          AttentionSpec spec = p.spec(kind);
          spec.query_position = t;
          attention_forward(x, out.slice(1, t, count), lse, p.q.slice(1, t, count),
                            p.k.slice(1, 0, t + count), p.v.slice(1, 0, t + count), spec);
          for (int64_t row = 0; row < 8; ++row) {
            for (int64_t i = 0; i < count; ++i) {
              EXPECT_NEAR(get_value(lse, row * count + i), get_value(p.lse, row * kT + t + i),
                          10 * test::attention_lse_tolerance(dtype));
            }
          }
        }
        EXPECT_LE(relative_error(out, p.out), test::attention_tolerance(dtype));
      }
    }
  }
}

TEST(AttentionBehaviour, NeedsExactlyTheScratchItNames) {
  Executor x(Device::cpu, 3);
  const AttentionCase c = {.name = "scratch",
                           .batch = 2,
                           .queries = 70,
                           .keys = 90,
                           .heads = 4,
                           .kv_heads = 2,
                           .head_size = 33,
                           .query_position = 20,
                           .dropout = 0.1f};
  for (const AttentionKind kind : kKinds) {
    for (const DType dtype : {DType::fp64, DType::fp32, DType::bf16}) {
      AttentionProblem p(c, dtype);
      const int64_t bytes = attention_scratch(x, kind, c.queries, c.keys, c.head_size, dtype);
      test::TensorPool pool;
      x.bind_scratch(pool.poisoned({bytes / 4}, DType::fp32, "scratch"));
      p.forward(x, kind);
      p.backward(x, kind);
      pool.check_guards();
      x.bind_scratch(pool.poisoned({bytes / 4 - 16}, DType::fp32, "scratch"));
      EXPECT_THROW(p.backward(x, kind), MemoryError);
      x.bind_scratch({});
    }
  }
}

TEST(AttentionBehaviour, FlashScratchDoesNotGrowWithTheSequence) {
  Executor x(Device::cpu, 2);
  for (const DType dtype : {DType::fp64, DType::fp32, DType::bf16}) {
    EXPECT_EQ(attention_scratch(x, AttentionKind::flash, 64, 64, 64, dtype),
              attention_scratch(x, AttentionKind::flash, 4096, 4096, 64, dtype));
  }
  EXPECT_LT(attention_scratch(x, AttentionKind::plain, 64, 64, 64, DType::fp32) * 100,
            attention_scratch(x, AttentionKind::plain, 4096, 4096, 64, DType::fp32));
}

TEST(AttentionBehaviour, RefusesWhatDoesNotFit) {
  Executor x(Device::cpu, 1);
  const AttentionCase c = {.name = "errors",
                           .batch = 2,
                           .queries = 4,
                           .keys = 6,
                           .heads = 4,
                           .kv_heads = 2,
                           .head_size = 8,
                           .query_position = 2};
  AttentionProblem p(c, DType::fp32);
  const auto pool = [&]() -> test::TensorPool& { return p.pool; };
  using Change = std::function<void(AttentionProblem&, AttentionSpec&)>;
  const std::pair<const char*, Change> changes[] = {
      {"q missing", [](auto& t, auto&) { t.q = Tensor(); }},
      {"q of rank 3",
       [&](auto& t, auto&) {
         t.q = pool().normal({2, 4, 32}, DType::fp32);
       }},
      {"k of another head size",
       [&](auto& t, auto&) {
         t.k = pool().normal({2, 6, 2, 7}, DType::fp32);
       }},
      {"heads not divided",
       [&](auto& t, auto&) {
         t.k = pool().normal({2, 6, 3, 8}, DType::fp32);
       }},
      {"no head of keys",
       [&](auto& t, auto&) {
         t.k = pool().normal({2, 6, 0, 8}, DType::fp32);
       }},
      {"v of another length",
       [&](auto& t, auto&) {
         t.v = pool().normal({2, 5, 2, 8}, DType::fp32);
       }},
      {"v of another dtype",
       [&](auto& t, auto&) {
         t.v = pool().normal({2, 6, 2, 8}, DType::bf16);
       }},
      {"out of another shape",
       [&](auto& t, auto&) {
         t.out = pool().normal({2, 4, 4, 9}, DType::fp32);
       }},
      {"out missing", [](auto& t, auto&) { t.out = Tensor(); }},
      {"last axis strided",
       [&](auto& t, auto&) {
         t.q = pool().normal({2, 4, 8, 4}, DType::fp32).transpose(2, 3);
       }},
      {"lse of another dtype",
       [&](auto& t, auto&) {
         t.lse = pool().normal({2, 4, 4}, DType::fp64);
       }},
      {"lse not contiguous",
       [&](auto& t, auto&) {
         t.lse = pool().normal({2, 4, 4}, DType::fp32).transpose(1, 2);
       }},
      {"lse of another shape",
       [&](auto& t, auto&) {
         t.lse = pool().normal({2, 4, 5}, DType::fp32);
       }},
      {"negative window", [](auto&, auto& s) { s.window = -1; }},
      {"window without causal", [](auto&, auto& s) { s.window = 3, s.causal = false; }},
      {"negative position", [](auto&, auto& s) { s.query_position = -1; }},
      {"negative key position", [](auto&, auto& s) { s.key_position = -1; }},
      {"document_start of another dtype",
       [&](auto&, auto& s) {
         s.document_start = pool().normal({2, 4}, DType::fp32);
       }},
      {"document_start of another shape",
       [&](auto&, auto& s) {
         s.document_start = pool().integers({2, 6}, 0, 1);
       }},
      {"dropout of 1", [](auto&, auto& s) { s.dropout.p = 1.0f; }},
      {"dropout of NaN", [](auto&, auto& s) { s.dropout.p = std::nanf(""); }},
      {"positions past dropout's counters",
       [](auto&, auto& s) { s.dropout.p = 0.5f, s.query_position = (1 << 24) - 2; }},
      {"heads past dropout's counters",
       [](auto&, auto& s) { s.dropout.p = 0.5f, s.dropout.first_head = 65533; }},
  };
  for (const AttentionKind kind : kKinds) {
    for (const auto& [name, change] : changes) {
      const Tensor q = p.q, k = p.k, v = p.v, out = p.out, lse = p.lse;
      AttentionSpec spec = p.spec(kind);
      change(p, spec);
      EXPECT_THROW(attention_forward(x, p.out, p.lse, p.q, p.k, p.v, spec), ShapeError) << name;
      EXPECT_THROW(attention_backward(x, p.dq, p.dk, p.dv, p.row_sum, p.dout, p.out, p.lse, p.q,
                                      p.k, p.v, spec),
                   ShapeError)
          << name;
      p.q = q, p.k = k, p.v = v, p.out = out, p.lse = lse;
    }
    const AttentionSpec spec = p.spec(kind);
    const Tensor wrong = p.pool.normal({2, 4, 4, 9}, DType::fp32);
    const auto backward = [&](Tensor dq, Tensor dk, Tensor dv, Tensor row_sum, Tensor dout) {
      attention_backward(x, dq, dk, dv, row_sum, dout, p.out, p.lse, p.q, p.k, p.v, spec);
    };
    EXPECT_THROW(backward(wrong, p.dk, p.dv, p.row_sum, p.dout), ShapeError);
    EXPECT_THROW(backward(p.dq, wrong, p.dv, p.row_sum, p.dout), ShapeError);
    EXPECT_THROW(backward(p.dq, p.dk, wrong, p.row_sum, p.dout), ShapeError);
    EXPECT_THROW(backward(p.dq, p.dk, p.dv, wrong, p.dout), ShapeError);
    EXPECT_THROW(backward(p.dq, p.dk, p.dv, p.row_sum, wrong), ShapeError);
    EXPECT_THROW(backward(p.dq, Tensor(), p.dv, p.row_sum, p.dout), ShapeError);
  }
}

}  // namespace
}  // namespace gradus
