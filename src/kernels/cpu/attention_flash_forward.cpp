// Forward pass of flash attention: online softmax over tiles of keys (arXiv:1805.02867, algorithm
// 3; arXiv:2307.08691, algorithm 1), for a few queries one at a time. docs/backward.md,
// "Attention".

#include <cmath>

#include "core/parallel_for.h"
#include "kernels/cpu/attention.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_flash_forward.cpp"
#include <hwy/foreach_target.h>
// After foreach_target: included once for each instruction set.
#include "kernels/cpu/attention_few_queries-inl.h"
#include "kernels/cpu/attention_tile-inl.h"
#include "kernels/validate.h"

HWY_BEFORE_NAMESPACE();
namespace gradus::cpu {
namespace HWY_NAMESPACE {

/// Replaces the rows [begin, end) of a panel's scores that the mask hides by -inf and raises the
/// maxima m0, m1.
template <bool kMasked, typename T>
HWY_INLINE void raise_maxima(const PanelMask<T>& mask, int64_t begin, int64_t end,
                             T* HWY_RESTRICT scores, hn::Vec<TileTag<T>>& m0,
                             hn::Vec<TileTag<T>>& m1) {
  const TileTag<T> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto hidden = hn::Set(d, -std::numeric_limits<T>::infinity());
  for (int64_t j = begin; j < end; ++j) {
    T* row = scores + j * 2 * lanes;
    auto s0 = hn::LoadU(d, row);
    auto s1 = hn::LoadU(d, row + lanes);
    if constexpr (kMasked) {
      const auto key = hn::Set(d, static_cast<T>(j));
      s0 = hn::IfThenElse(
          hn::And(hn::Ge(key, hn::Load(d, mask.begin)), hn::Lt(key, hn::Load(d, mask.end))), s0,
          hidden);
      s1 = hn::IfThenElse(hn::And(hn::Ge(key, hn::Load(d, mask.begin + lanes)),
                                  hn::Lt(key, hn::Load(d, mask.end + lanes))),
                          s1, hidden);
      hn::StoreU(s0, d, row);
      hn::StoreU(s1, d, row + lanes);
    }
    m0 = hn::Max(m0, s0);
    m1 = hn::Max(m1, s1);
  }
}

/// scores = exp2(scores - m), their sums added to l0, l1; dropout multiplies what is stored, never
/// the sums.
template <bool kDropout, typename T>
HWY_INLINE void exponentials(const KeyRange& rows, T* HWY_RESTRICT scores,
                             const T* HWY_RESTRICT factors, hn::Vec<TileTag<T>> m0,
                             hn::Vec<TileTag<T>> m1, hn::Vec<TileTag<T>>& l0,
                             hn::Vec<TileTag<T>>& l1) {
  const TileTag<T> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t j = rows.begin; j < rows.end; ++j) {
    T* row = scores + j * 2 * lanes;
    auto p0 = exp2_nonpositive(d, hn::Sub(hn::LoadU(d, row), m0));
    auto p1 = exp2_nonpositive(d, hn::Sub(hn::LoadU(d, row + lanes), m1));
    l0 = hn::Add(l0, p0);
    l1 = hn::Add(l1, p1);
    if constexpr (kDropout) {
      p0 = hn::Mul(p0, hn::LoadU(d, factors + j * 2 * lanes));
      p1 = hn::Mul(p1, hn::LoadU(d, factors + j * 2 * lanes + lanes));
    }
    hn::StoreU(p0, d, row);
    hn::StoreU(p1, d, row + lanes);
  }
}

/// A maximum to subtract. While it is -inf, of a query that has seen no key yet or scores of -inf
/// alone, 0 makes every exponential 0; finish_panel tells the two apart.
template <typename T>
HWY_INLINE hn::Vec<TileTag<T>> finite_maximum(hn::Vec<TileTag<T>> m) {
  const TileTag<T> d;
  return hn::IfThenZeroElse(hn::Eq(m, hn::Set(d, -std::numeric_limits<T>::infinity())), m);
}

/// Takes one tile of keys into a panel's maximum, sum and out.
template <typename T>
void attend_panel(const AttentionSpec& spec, const QueryTile& tile, int64_t panel,
                  int64_t first_key, int64_t keys, int64_t head_size,
                  const FlashForwardMemory<T>& memory) {
  const TileTag<T> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t width = tile.width;
  const PanelMask<T> mask(tile, panel, first_key, keys);
  if (mask.any.empty()) return;
  const KeyRange rows = mask.any;
  T* out = memory.out + panel * head_size * width;
  T* max = memory.max + panel * width;
  T* sum = memory.sum + panel * width;

  multiply_panel<Left::by_rows, false>(
      rows.end - rows.begin, head_size, memory.k + rows.begin * head_size, head_size,
      memory.q + panel * head_size * width, width, memory.scores + rows.begin * width, width);

  const auto old0 = hn::LoadU(d, max);
  const auto old1 = hn::LoadU(d, max + lanes);
  auto m0 = old0;
  auto m1 = old1;
  raise_maxima<true>(mask, rows.begin, mask.all.begin, memory.scores, m0, m1);
  raise_maxima<false>(mask, mask.all.begin, mask.all.end, memory.scores, m0, m1);
  raise_maxima<true>(mask, mask.all.end, rows.end, memory.scores, m0, m1);
  hn::StoreU(m0, d, max);
  hn::StoreU(m1, d, max + lanes);
  m0 = finite_maximum<T>(m0);
  m1 = finite_maximum<T>(m1);

  auto l0 = hn::LoadU(d, sum);
  auto l1 = hn::LoadU(d, sum + lanes);
  const auto raised = hn::Or(hn::Ne(old0, m0), hn::Ne(old1, m1));
  if (!hn::AllFalse(d, raised)) {
    const auto rescale0 = exp2_nonpositive(d, hn::Sub(old0, m0));
    const auto rescale1 = exp2_nonpositive(d, hn::Sub(old1, m1));
    l0 = hn::Mul(l0, rescale0);
    l1 = hn::Mul(l1, rescale1);
    scale_panel(out, head_size, rescale0, rescale1);
  }
  if (spec.dropout.active()) {
    dropout_factors(spec, tile, panel, first_key, rows, memory.factors);
    exponentials<true>(rows, memory.scores, memory.factors, m0, m1, l0, l1);
  } else {
    exponentials<false>(rows, memory.scores, memory.factors, m0, m1, l0, l1);
  }
  hn::StoreU(l0, d, sum);
  hn::StoreU(l1, d, sum + lanes);

  multiply_panel<Left::by_columns, true>(head_size, rows.end - rows.begin,
                                         memory.v + rows.begin * head_size, head_size,
                                         memory.scores + rows.begin * width, width, out, width);
}

/// out = panel out / sum, lse = log Σ exp of the natural scores. The largest exponential is 1, so a
/// sum is 0 only where every score that a query saw is -inf, whose softmax is NaN, or where it saw
/// no key: there out is 0 and lse -inf.
template <typename S, typename T>
void finish_panel(const QueryTile& tile, int64_t panel, int64_t head_size,
                  const FlashForwardMemory<T>& memory, HeadRows<S> out, T* lse) {
  const TileTag<T> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t width = tile.width;
  T* panel_out = memory.out + panel * head_size * width;
  const T* max = memory.max + panel * width;
  T* sum = memory.sum + panel * width;
  for (int64_t i = 0; i < width; ++i) {
    const bool none = tile.visible[static_cast<size_t>(panel * width + i)].empty();
    if (sum[i] == 0 && !none) sum[i] = std::numeric_limits<T>::quiet_NaN();
    if (i < tile.panel_count(panel)) {
      lse[i] = none ? -std::numeric_limits<T>::infinity()
                    : max[i] * static_cast<T>(kLn2) + std::log(sum[i]);
    }
    sum[i] = none ? T{0} : 1 / sum[i];
  }
  scale_panel(panel_out, head_size, hn::LoadU(d, sum), hn::LoadU(d, sum + lanes));
  unpack_transposed(panel_out, tile.panel_count(panel), head_size, out);
}

template <typename S>
void attend_tile(const QueryTile& tile, const AttentionSizes& sizes,
                 const FlashForwardMemory<Compute<S>>& memory, const Tensor& out, const Tensor& lse,
                 const ConstTensor& q, const ConstTensor& k, const ConstTensor& v,
                 const AttentionSpec& spec) {
  using T = Compute<S>;
  const int64_t D = sizes.head_size;
  const int64_t panel_size = D * tile.width;
  const int64_t lanes = tile.panels * tile.width;
  const auto q_rows = head_rows<S>(q, tile.b, tile.h);
  const auto out_rows = head_rows<S>(out, tile.b, tile.h);
  const auto k_rows = head_rows<S>(k, tile.b, tile.h / sizes.group());
  const auto v_rows = head_rows<S>(v, tile.b, tile.h / sizes.group());

  for (int64_t p = 0; p < tile.panels; ++p) {
    pack_transposed(HeadRows<const S>{q_rows[tile.first + p * tile.width], q_rows.stride},
                    tile.panel_count(p), D, static_cast<T>(spec.scale * kLog2E),
                    memory.q + p * panel_size);
  }
  std::fill(memory.max, memory.max + lanes, -std::numeric_limits<T>::infinity());
  std::fill(memory.sum, memory.sum + lanes, T{0});
  std::fill(memory.out, memory.out + tile.panels * panel_size, T{0});

  for (int64_t first = tile.keys.begin / kKeyTile * kKeyTile; first < tile.keys.end;
       first += kKeyTile) {
    const int64_t keys = std::min(kKeyTile, sizes.keys - first);
    const KeyRange used = tile.keys.clipped(first, first + keys);
    const int64_t offset = (used.begin - first) * D;
    pack_rows(HeadRows<const S>{k_rows[used.begin], k_rows.stride}, used.end - used.begin, D,
              memory.k + offset);
    pack_rows(HeadRows<const S>{v_rows[used.begin], v_rows.stride}, used.end - used.begin, D,
              memory.v + offset);
    for (int64_t p = 0; p < tile.panels; ++p) {
      attend_panel(spec, tile, p, first, keys, D, memory);
    }
  }

  T* lse_rows = lse.as<T>() + (tile.b * sizes.heads + tile.h) * sizes.queries + tile.first;
  for (int64_t p = 0; p < tile.panels; ++p) {
    finish_panel(tile, p, D, memory,
                 HeadRows<S>{out_rows[tile.first + p * tile.width], out_rows.stride},
                 lse_rows + p * tile.width);
  }
}

template <typename S>
void flash_forward_of(Executor& x, const Tensor& out, const Tensor& lse, const ConstTensor& q,
                      const ConstTensor& k, const ConstTensor& v, const AttentionSpec& spec) {
  using T = Compute<S>;
  const AttentionSizes sizes(q, k);
  Scratch scratch(x);
  const int64_t per_thread = FlashForwardMemory<T>::size(sizes.head_size);
  T* memory = scratch.take<T>(x.threads() * per_thread);
  const auto memory_of = [&](int thread) {
    return FlashForwardMemory<T>(Carver<T>{memory + thread * per_thread}, sizes.head_size);
  };

  if (sizes.queries <= kFewQueries) {
    const int64_t rows = sizes.batch * sizes.heads * sizes.queries;
    parallel_ranges(x, rows, 1, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t row = begin; row < end; ++row) {
        attend_query<S>(row, sizes, memory_of(thread), out, lse, q, k, v, spec);
      }
    });
    return;
  }
  const int64_t tiles = (sizes.queries + kForwardQueries - 1) / kForwardQueries;
  parallel_ranges(
      x, sizes.batch * sizes.heads * tiles, 1, [&](int64_t begin, int64_t end, int thread) {
        for (int64_t item = begin; item < end; ++item) {
          const int64_t head = item / tiles;
          const int64_t tile = from_both_ends(item % tiles, tiles);
          attend_tile<S>(query_tile(spec, sizes, head / sizes.heads, head % sizes.heads,
                                    tile * kForwardQueries, kForwardQueries, panel_width<T>()),
                         sizes, memory_of(thread), out, lse, q, k, v, spec);
        }
      });
}

void flash_forward_any(Executor& x, const Tensor& out, const Tensor& lse, const ConstTensor& q,
                       const ConstTensor& k, const ConstTensor& v, const AttentionSpec& spec) {
  dispatch_float("attention_forward", q,
                 [&]<typename S>(S) { flash_forward_of<S>(x, out, lse, q, k, v, spec); });
}

}  // namespace HWY_NAMESPACE
}  // namespace gradus::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gradus::cpu {

HWY_EXPORT(flash_forward_any);

void flash_forward(Executor& x, Tensor out, Tensor lse, ConstTensor q, ConstTensor k, ConstTensor v,
                   const AttentionSpec& spec) {
  HWY_DYNAMIC_DISPATCH(flash_forward_any)(x, out, lse, q, k, v, spec);
}

int64_t flash_scratch(const Executor& x, int64_t head_size, DType dtype) {
  const auto bytes = [&]<typename T>(T) {
    return scratch_bytes<T>(x.threads() * std::max(FlashForwardMemory<T>::size(head_size),
                                                   FlashBackwardMemory<T>::size(head_size)));
  };
  return accumulator_of(dtype) == DType::fp64 ? bytes(double{}) : bytes(float{});
}

}  // namespace gradus::cpu
#endif  // HWY_ONCE
