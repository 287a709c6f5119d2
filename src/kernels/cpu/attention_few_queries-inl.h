// Attention forward of one query at a time, for decoding: vectors run along D, every key and value
// is read once from where it lies, nothing is packed. Panels of queries would be almost empty.

#if defined(GRADUS_KERNELS_CPU_ATTENTION_FEW_QUERIES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRADUS_KERNELS_CPU_ATTENTION_FEW_QUERIES_INL_H_
#undef GRADUS_KERNELS_CPU_ATTENTION_FEW_QUERIES_INL_H_
#else
#define GRADUS_KERNELS_CPU_ATTENTION_FEW_QUERIES_INL_H_
#endif

#include <cmath>
#include <cstdint>

#include "kernels/cpu/attention_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gradus::cpu {
namespace HWY_NAMESPACE {

/// Up to as many queries, one at a time is faster than a panel of them.
inline constexpr int64_t kFewQueries = 4;

/// scores[j] = q · rows[j] for j in [0, count).
template <typename T, typename S>
void dot_rows(const T* HWY_RESTRICT q, HeadRows<const S> rows, int64_t count, int64_t columns,
              T* HWY_RESTRICT scores) {
  const TileTag<T> d;
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) {  // four chains of multiply-adds hide each other's latency
    const S* r0 = rows[j];
    const S* r1 = rows[j + 1];
    const S* r2 = rows[j + 2];
    const S* r3 = rows[j + 3];
    for (int64_t r = j + kRowsAhead; r < std::min(j + kRowsAhead + 4, count); ++r) {
      prefetch_row(rows[r], columns);
    }
    auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
    for_each_vector(d, columns, [&](int64_t i, size_t lanes) {
      const auto a = load_some(d, q + i, lanes);
      s0 = hn::MulAdd(a, load_some(d, r0 + i, lanes), s0);
      s1 = hn::MulAdd(a, load_some(d, r1 + i, lanes), s1);
      s2 = hn::MulAdd(a, load_some(d, r2 + i, lanes), s2);
      s3 = hn::MulAdd(a, load_some(d, r3 + i, lanes), s3);
    });
    scores[j] = sum_lanes(d, s0);
    scores[j + 1] = sum_lanes(d, s1);
    scores[j + 2] = sum_lanes(d, s2);
    scores[j + 3] = sum_lanes(d, s3);
  }
  for (; j < count; ++j) {
    auto s = hn::Zero(d);
    for_each_vector(d, columns, [&](int64_t i, size_t lanes) {
      s = hn::MulAdd(load_some(d, q + i, lanes), load_some(d, rows[j] + i, lanes), s);
    });
    scores[j] = sum_lanes(d, s);
  }
}

/// out = rescale · out + Σ_j weights[j] · rows[j].
template <typename T, typename S>
void add_weighted_rows(const T* HWY_RESTRICT weights, HeadRows<const S> rows, int64_t count,
                       int64_t columns, T rescale, T* HWY_RESTRICT out) {
  const TileTag<T> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto old = hn::Set(d, rescale);
  int64_t i = 0;
  for (; i + 4 * lanes <= columns; i += 4 * lanes) {
    auto s0 = hn::Mul(old, hn::LoadU(d, out + i));
    auto s1 = hn::Mul(old, hn::LoadU(d, out + i + lanes));
    auto s2 = hn::Mul(old, hn::LoadU(d, out + i + 2 * lanes));
    auto s3 = hn::Mul(old, hn::LoadU(d, out + i + 3 * lanes));
    for (int64_t j = 0; j < count; ++j) {
      const auto w = hn::Set(d, weights[j]);
      const S* row = rows[j] + i;
      prefetch_row(rows[std::min(j + kRowsAhead, count - 1)] + i, 4 * lanes);
      s0 = hn::MulAdd(w, load(d, row), s0);
      s1 = hn::MulAdd(w, load(d, row + lanes), s1);
      s2 = hn::MulAdd(w, load(d, row + 2 * lanes), s2);
      s3 = hn::MulAdd(w, load(d, row + 3 * lanes), s3);
    }
    hn::StoreU(s0, d, out + i);
    hn::StoreU(s1, d, out + i + lanes);
    hn::StoreU(s2, d, out + i + 2 * lanes);
    hn::StoreU(s3, d, out + i + 3 * lanes);
  }
  for (; i < columns; i += lanes) {
    const auto n = static_cast<size_t>(std::min(lanes, columns - i));
    auto s = hn::Mul(old, load_some(d, out + i, n));
    for (int64_t j = 0; j < count; ++j) {
      s = hn::MulAdd(hn::Set(d, weights[j]), load_some(d, rows[j] + i, n), s);
    }
    store_some(d, s, out + i, n);
  }
}

/// weights[j] = exp2(weights[j] - max) for j in [0, count); returns their sum.
template <typename T>
T exponentials_of(int64_t count, T max, T* HWY_RESTRICT weights) {
  const TileTag<T> d;
  const auto m = hn::Set(d, max);
  auto sum = hn::Zero(d);
  for_each_vector(d, count, [&](int64_t j, size_t lanes) {
    auto p = exp2_nonpositive(d, hn::Sub(load_some(d, weights + j, lanes), m));
    p = hn::IfThenElseZero(hn::FirstN(d, lanes), p);
    sum = hn::Add(sum, p);
    store_some(d, p, weights + j, lanes);
  });
  return sum_lanes(d, sum);
}

/// Row `row` of the (B, H, T_q) queries.
template <typename S>
void attend_query(int64_t row, const AttentionSizes& sizes,
                  const FlashForwardMemory<Compute<S>>& memory, const Tensor& out,
                  const Tensor& lse, const ConstTensor& q, const ConstTensor& k,
                  const ConstTensor& v, const AttentionSpec& spec) {
  using T = Compute<S>;
  const int64_t i = row % sizes.queries;
  const int64_t h = row / sizes.queries % sizes.heads;
  const int64_t b = row / sizes.queries / sizes.heads;
  const int64_t D = sizes.head_size;
  const auto k_rows = head_rows<S>(k, b, h / sizes.group());
  const auto v_rows = head_rows<S>(v, b, h / sizes.group());
  const S* q_row = head_rows<S>(q, b, h)[i];
  S* out_row = head_rows<S>(out, b, h)[i];
  const auto scale = static_cast<T>(spec.scale * kLog2E);
  for (int64_t c = 0; c < D; ++c) memory.q[c] = scale * static_cast<T>(q_row[c]);
  std::fill(memory.out, memory.out + D, T{0});

  constexpr T kNone = -std::numeric_limits<T>::infinity();
  T max = kNone;
  T sum = 0;
  const KeyRange seen = visible_keys(spec, b, i, sizes.keys);
  for (int64_t first = seen.begin; first < seen.end; first += kKeyTile) {
    const int64_t count = std::min(kKeyTile, seen.end - first);
    dot_rows(memory.q, HeadRows<const S>{k_rows[first], k_rows.stride}, count, D, memory.scores);
    T raised = max;
    for (int64_t j = 0; j < count; ++j) raised = std::max(raised, memory.scores[j]);
    const T base = raised == kNone ? T{0} : raised;
    const T rescale = std::exp2(max - base);
    sum = sum * rescale + exponentials_of(count, base, memory.scores);
    max = raised;
    if (spec.dropout.active()) {
      const Dropout& dropout = spec.dropout;
      for (int64_t j = 0; j < count; ++j) {
        const int64_t position = spec.key_position + first + j;
        const auto words =
            philox4x32(dropout.key, static_cast<uint64_t>(dropout.first_sample + b),
                       dropout_counter(spec, h, i) + static_cast<uint64_t>(position / 4));
        memory.scores[j] *= words[static_cast<size_t>(position % 4)] >= dropout.threshold()
                                ? static_cast<T>(dropout.scale())
                                : T{0};
      }
    }
    add_weighted_rows(memory.scores, HeadRows<const S>{v_rows[first], v_rows.stride}, count, D,
                      rescale, memory.out);
  }

  // The largest exponential is 1, so a sum is 0 only where every score seen is -inf, whose softmax
  // is NaN, or where no key was seen.
  if (sum == 0 && !seen.empty()) sum = std::numeric_limits<T>::quiet_NaN();
  const T inverse = seen.empty() ? T{0} : 1 / sum;
  for (int64_t c = 0; c < D; ++c) out_row[c] = static_cast<S>(memory.out[c] * inverse);
  lse.as<T>()[row] = seen.empty() ? kNone : max * static_cast<T>(kLn2) + std::log(sum);
}

}  // namespace HWY_NAMESPACE
}  // namespace gradus::cpu
HWY_AFTER_NAMESPACE();

#endif  // GRADUS_KERNELS_CPU_ATTENTION_FEW_QUERIES_INL_H_
