#include "kernels/attention_problem.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

namespace gradus::test {

const std::vector<AttentionCase>& attention_cases() {
  static const std::vector<AttentionCase> cases = {
      {.name = "one element"},
      {.name = "one query",
       .batch = 3,
       .keys = 70,
       .heads = 2,
       .kv_heads = 2,
       .head_size = 5,
       .query_position = 69},
      {.name = "head size 1", .queries = 7, .keys = 7, .heads = 3, .kv_heads = 3},
      {.name = "head size 3",
       .batch = 2,
       .queries = 17,
       .keys = 17,
       .heads = 2,
       .kv_heads = 2,
       .head_size = 3},
      {.name = "one tile",
       .batch = 2,
       .queries = 64,
       .keys = 64,
       .heads = 2,
       .kv_heads = 2,
       .head_size = 32},
      {.name = "ragged tiles",
       .queries = 131,
       .keys = 131,
       .heads = 2,
       .kv_heads = 2,
       .head_size = 64},
      {.name = "not causal",
       .queries = 67,
       .keys = 67,
       .heads = 2,
       .kv_heads = 2,
       .head_size = 80,
       .causal = false},
      {.name = "cross attention",
       .batch = 2,
       .queries = 37,
       .keys = 151,
       .heads = 2,
       .kv_heads = 2,
       .head_size = 16,
       .causal = false},
      {.name = "more queries than keys",
       .queries = 151,
       .keys = 37,
       .heads = 1,
       .kv_heads = 1,
       .head_size = 33},
      {.name = "appended queries",
       .queries = 41,
       .keys = 130,
       .heads = 2,
       .kv_heads = 1,
       .head_size = 24,
       .query_position = 89},
      {.name = "few queries",
       .batch = 2,
       .queries = 3,
       .keys = 133,
       .heads = 4,
       .kv_heads = 2,
       .head_size = 129,
       .query_position = 130,
       .dropout = 0.2f},
      {.name = "keys of a later shard",
       .queries = 70,
       .keys = 40,
       .heads = 2,
       .kv_heads = 2,
       .head_size = 20,
       .query_position = 30,
       .key_position = 50},
      {.name = "keys all in the future",
       .queries = 6,
       .keys = 9,
       .heads = 2,
       .kv_heads = 2,
       .head_size = 8,
       .key_position = 11},
      {.name = "grouped queries",
       .batch = 2,
       .queries = 71,
       .keys = 71,
       .heads = 6,
       .kv_heads = 2,
       .head_size = 40},
      {.name = "one head of keys",
       .queries = 33,
       .keys = 33,
       .heads = 5,
       .kv_heads = 1,
       .head_size = 7},
      {.name = "window",
       .queries = 150,
       .keys = 150,
       .heads = 2,
       .kv_heads = 2,
       .head_size = 16,
       .window = 13},
      {.name = "window of one",
       .queries = 20,
       .keys = 20,
       .heads = 1,
       .kv_heads = 1,
       .head_size = 6,
       .window = 1},
      {.name = "window on appended queries",
       .queries = 9,
       .keys = 140,
       .heads = 2,
       .kv_heads = 2,
       .head_size = 12,
       .window = 65,
       .query_position = 131},
      {.name = "documents",
       .batch = 3,
       .queries = 140,
       .keys = 140,
       .heads = 2,
       .kv_heads = 2,
       .head_size = 12,
       .documents = true},
      {.name = "documents, not causal",
       .batch = 2,
       .queries = 50,
       .keys = 90,
       .heads = 2,
       .kv_heads = 2,
       .head_size = 12,
       .causal = false,
       .query_position = 40,
       .documents = true},
      {.name = "dropout",
       .batch = 2,
       .queries = 70,
       .keys = 70,
       .heads = 2,
       .kv_heads = 2,
       .head_size = 32,
       .dropout = 0.3f},
      {.name = "everything",
       .batch = 2,
       .queries = 77,
       .keys = 99,
       .heads = 4,
       .kv_heads = 2,
       .head_size = 28,
       .window = 50,
       .query_position = 29,
       .key_position = 7,
       .documents = true,
       .dropout = 0.1f},
      {.name = "head size 256",
       .queries = 66,
       .keys = 66,
       .heads = 1,
       .kv_heads = 1,
       .head_size = 256},
      {.name = "more keys than a thread keeps",
       .queries = 5,
       .keys = 700,
       .heads = 1,
       .kv_heads = 1,
       .head_size = 8,
       .query_position = 695},
      {.name = "no queries", .queries = 0, .keys = 3, .heads = 2, .kv_heads = 2, .head_size = 4},
      {.name = "no keys", .queries = 5, .keys = 0, .heads = 2, .kv_heads = 2, .head_size = 4},
      {.name = "no samples",
       .batch = 0,
       .queries = 5,
       .keys = 5,
       .heads = 2,
       .kv_heads = 2,
       .head_size = 4},
  };
  return cases;
}

AttentionProblem::AttentionProblem(const AttentionCase& given, DType dtype, bool strided)
    : c(given), dtype_(dtype), strided_(strided), padding_(strided ? 3 : 0) {
  q = rows(c.queries, c.heads, "q");
  k = rows(c.keys, c.kv_heads, "k");
  v = rows(c.keys, c.kv_heads, "v");
  dout = rows(c.queries, c.heads, "dout");
  for (const Tensor& input : {q, k, v, dout}) draw(input);
  out = rows(c.queries, c.heads, "out");
  dq = rows(c.queries, c.heads, "dq");
  dk = rows(c.keys, c.kv_heads, "dk");
  dv = rows(c.keys, c.kv_heads, "dv");
  const Shape statistics{c.batch, c.heads, c.queries};
  lse = pool.poisoned(statistics, accumulator_of(dtype), "lse");
  row_sum = pool.poisoned(statistics, accumulator_of(dtype), "row_sum");
  if (c.documents) {
    const auto last = static_cast<int32_t>(c.query_position + c.queries);
    document_start = pool.integers({c.batch, c.queries}, 0, last, "document_start");
  }
  scale = 1.0 / std::sqrt(static_cast<double>(c.head_size));
  dropout = {.p = c.dropout, .key = 0x1234567890ABCDEF, .first_sample = 5, .first_head = 3};
}

Tensor AttentionProblem::rows(int64_t count, int64_t heads, const char* name) {
  const int64_t columns = heads * c.head_size;
  const Tensor wide = pool.poisoned({c.batch, count, columns + 2 * padding_}, dtype_, name);
  wide_.push_back(wide);
  return wide.slice(2, padding_, columns).split(2, heads);
}

void AttentionProblem::draw(const Tensor& tensor) {
  std::normal_distribution<double> normal;
  for (int64_t i = 0; i < tensor.numel(); ++i) set_value(tensor, i, normal(pool.rng()));
}

AttentionSpec AttentionProblem::spec(AttentionKind kind) const {
  return {.kind = kind,
          .scale = scale,
          .causal = c.causal,
          .window = c.window,
          .query_position = c.query_position,
          .key_position = c.key_position,
          .document_start = document_start,
          .dropout = dropout};
}

void AttentionProblem::forward(Executor& x, AttentionKind kind) {
  attention_forward(x, out, lse, q, k, v, spec(kind));
}

void AttentionProblem::backward(Executor& x, AttentionKind kind) {
  attention_backward(x, dq, dk, dv, row_sum, dout, out, lse, q, k, v, spec(kind));
}

void AttentionProblem::take_inputs(const AttentionProblem& from) {
  const std::pair<Tensor, Tensor> copies[] = {{q, from.q},       {k, from.k},     {v, from.v},
                                              {dout, from.dout}, {out, from.out}, {lse, from.lse}};
  for (const auto& [to, source] : copies) {
    for (int64_t i = 0; i < to.numel(); ++i) set_value(to, i, get_value(source, i));
  }
  document_start = from.document_start;
}

void AttentionProblem::poison_outputs() {
  for (const Tensor& tensor : {out, lse, dq, dk, dv, row_sum}) {
    for (int64_t i = 0; i < tensor.numel(); ++i) {
      set_value(tensor, i, std::numeric_limits<double>::quiet_NaN());
    }
  }
}

void AttentionProblem::check_bounds() const {
  pool.check_guards();
  if (!strided_) return;
  for (const Tensor& wide : wide_) {
    const int64_t columns = wide.size(2);
    for (int64_t i = 0; i < wide.numel(); ++i) {
      const int64_t column = i % columns;
      if (column >= padding_ && column < columns - padding_) continue;
      ASSERT_TRUE(std::isnan(get_value(wide, i))) << wide.name() << ": wrote column " << column;
    }
  }
}

double gradient_error(const ConstTensor& actual, const ConstTensor& expected) {
  constexpr double kFloor = 0.5;
  const double error = relative_error(actual, expected);
  double largest = 0.0;
  double worst = 0.0;
  for (int64_t i = 0; i < expected.numel(); ++i) {
    largest = std::max(largest, std::abs(get_value(expected, i)));
    worst = std::max(worst, std::abs(get_value(actual, i) - get_value(expected, i)));
  }
  return std::isfinite(largest) && std::isfinite(worst) && largest < kFloor ? worst / kFloor
                                                                            : error;
}

AttentionReference::AttentionReference(const AttentionProblem& p) {
  const AttentionCase& c = p.c;
  out = pool.zeros({c.batch, c.queries, c.heads, c.head_size}, DType::fp64, "reference out");
  lse = pool.zeros({c.batch, c.heads, c.queries}, DType::fp64, "reference lse");
  weights = pool.zeros({c.batch, c.heads, c.queries, c.keys}, DType::fp64, "weights");
  const std::vector<double> q = values(p.q);
  const std::vector<double> k = values(p.k);
  const std::vector<double> v = values(p.v);
  const auto at = [&](const std::vector<double>& data, int64_t rows, int64_t heads, int64_t b,
                      int64_t row, int64_t h) {
    return data.data() + ((b * rows + row) * heads + h) * c.head_size;
  };
  const int64_t group = c.heads / c.kv_heads;
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t h = 0; h < c.heads; ++h) {
      for (int64_t i = 0; i < c.queries; ++i) {
        const int64_t query_at = c.query_position + i;
        const auto sees = [&](int64_t j) {
          const int64_t key_at = c.key_position + j;
          if (c.causal && key_at > query_at) return false;
          if (c.window > 0 && key_at <= query_at - c.window) return false;
          if (c.documents && key_at < get_value(p.document_start, b * c.queries + i)) return false;
          return true;
        };
        std::vector<double> scores(static_cast<size_t>(c.keys));
        double max = -std::numeric_limits<double>::infinity();
        for (int64_t j = 0; j < c.keys; ++j) {
          double dot = 0.0;
          for (int64_t d = 0; d < c.head_size; ++d) {
            dot += at(q, c.queries, c.heads, b, i, h)[d] *
                   at(k, c.keys, c.kv_heads, b, j, h / group)[d];
          }
          scores[static_cast<size_t>(j)] = p.scale * dot;
          if (sees(j)) max = std::max(max, p.scale * dot);
        }
        double sum = 0.0;
        for (int64_t j = 0; j < c.keys; ++j) {
          if (sees(j)) sum += std::exp(scores[static_cast<size_t>(j)] - max);
        }
        const int64_t row = (b * c.heads + h) * c.queries + i;
        set_value(lse, row, max + std::log(sum));
        for (int64_t j = 0; j < c.keys; ++j) {
          if (!sees(j)) continue;
          double weight = std::exp(scores[static_cast<size_t>(j)] - max) / sum;
          if (p.dropout.active()) {
            const int64_t key_at = c.key_position + j;
            const auto words =
                philox4x32(p.dropout.key, static_cast<uint64_t>(p.dropout.first_sample + b),
                           static_cast<uint64_t>((p.dropout.first_head + h) << 48 | query_at << 24 |
                                                 key_at / 4));
            const bool kept = words[static_cast<size_t>(key_at % 4)] >= p.dropout.threshold();
            weight *= kept ? p.dropout.scale() : 0.0;
          }
          set_value(weights, row * c.keys + j, weight);
          for (int64_t d = 0; d < c.head_size; ++d) {
            const int64_t element = ((b * c.queries + i) * c.heads + h) * c.head_size + d;
            set_value(
                out, element,
                get_value(out, element) + weight * at(v, c.keys, c.kv_heads, b, j, h / group)[d]);
          }
        }
      }
    }
  }
}

double AttentionReference::weight(int64_t b, int64_t h, int64_t i, int64_t j) const {
  return get_value(weights,
                   ((b * weights.size(1) + h) * weights.size(2) + i) * weights.size(3) + j);
}

}  // namespace gradus::test
