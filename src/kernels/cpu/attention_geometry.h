#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/attention.h"

/// What both kinds of attention share: sizes, rows of one head, and who sees whom.
namespace gradus::cpu {

inline constexpr double kLog2E = 1.44269504088896340736;
inline constexpr double kLn2 = 0.693147180559945309417;

struct AttentionSizes {
  AttentionSizes(const ConstTensor& q, const ConstTensor& k)
      : batch(q.size(0)),
        queries(q.size(1)),
        keys(k.size(1)),
        heads(q.size(2)),
        kv_heads(k.size(2)),
        head_size(q.size(3)) {}

  int64_t batch, queries, keys, heads, kv_heads, head_size;

  /// Query heads that share one head of keys and values.
  int64_t group() const { return heads / kv_heads; }
};

/// The (T, D) rows of one sample and head of a (B, T, H, D) tensor.
template <typename S>
struct HeadRows {
  S* data;
  int64_t stride;

  S* operator[](int64_t row) const { return data + row * stride; }
};

template <typename S>
HeadRows<const S> head_rows(const ConstTensor& tensor, int64_t b, int64_t h) {
  return {tensor.as<S>() + b * tensor.stride(0) + h * tensor.stride(2), tensor.stride(1)};
}

template <typename S>
HeadRows<S> head_rows(const Tensor& tensor, int64_t b, int64_t h) {
  return {tensor.as<S>() + b * tensor.stride(0) + h * tensor.stride(2), tensor.stride(1)};
}

/// Indices [begin, end) of keys; begin >= end: none.
struct KeyRange {
  int64_t begin = 0;
  int64_t end = 0;

  bool empty() const { return begin >= end; }
  KeyRange clipped(int64_t from, int64_t to) const {
    return {std::clamp(begin, from, to), std::clamp(end, from, to)};
  }
  /// The smallest range that holds both.
  KeyRange united(const KeyRange& other) const {
    if (empty()) return other.empty() ? KeyRange{} : other;
    if (other.empty()) return *this;
    return {std::min(begin, other.begin), std::max(end, other.end)};
  }
  KeyRange common(const KeyRange& other) const {
    const KeyRange range{std::max(begin, other.begin), std::min(end, other.end)};
    return range.empty() ? KeyRange{} : range;
  }
};

/// The keys that query i of sample b sees: always consecutive ones.
inline KeyRange visible_keys(const AttentionSpec& spec, int64_t b, int64_t i, int64_t keys) {
  const int64_t position = spec.query_position + i;
  int64_t first = 0;  // absolute positions [first, last)
  int64_t last = std::numeric_limits<int64_t>::max();
  if (spec.causal) {
    last = position + 1;
    if (spec.window > 0) first = std::max<int64_t>(0, last - spec.window);
  }
  if (spec.document_start.defined()) {
    const ConstTensor& starts = spec.document_start;
    first =
        std::max<int64_t>(first, starts.as<int32_t>()[b * starts.stride(0) + i * starts.stride(1)]);
  }
  return KeyRange{first - spec.key_position, last - spec.key_position}.clipped(0, keys);
}

/// Entry n of the order 0, count-1, 1, count-2, … With causal masks the cost of a tile grows with
/// its index; in this order, equal shares of consecutive entries cost about the same.
inline int64_t from_both_ends(int64_t n, int64_t count) {
  return n % 2 == 0 ? n / 2 : count - 1 - n / 2;
}

/// Counter of the dropout mask's words for query i and the keys 4 n … 4 n + 3 of absolute
/// position, less n (core/rng.h).
inline uint64_t dropout_counter(const AttentionSpec& spec, int64_t h, int64_t i) {
  return static_cast<uint64_t>(spec.dropout.first_head + h) << 48 |
         static_cast<uint64_t>(spec.query_position + i) << 24;
}

}  // namespace gradus::cpu
