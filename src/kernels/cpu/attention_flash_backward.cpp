// Backward pass of flash attention: weights recomputed from lse, tile by tile (arXiv:2205.14135,
// algorithm 4; arXiv:2307.08691, algorithm 2). docs/backward.md, "Attention".
//
// One pair of tiles (queries, keys) takes five products. Sums never cross threads: each work item
// owns what it adds up, in a fixed order of tiles. Where the dk and dv of one head fit the memory
// of a thread (key_chunk) and heads divide well among the threads, an item is one head of keys and
// all five products happen once. Otherwise one pass over tiles of queries gives dq and another over
// chunks of keys gives dk and dv, both recomputing scores and dP: seven products, spread over any
// number of threads. Order and arithmetic of every sum are the same in both, so are the bits.

#include "core/parallel_for.h"
#include "kernels/cpu/attention.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_flash_backward.cpp"
#include <hwy/foreach_target.h>
// After foreach_target: included once for each instruction set.
#include "kernels/cpu/attention_tile-inl.h"
#include "kernels/validate.h"

HWY_BEFORE_NAMESPACE();
namespace gradus::cpu {
namespace HWY_NAMESPACE {

/// The tensors of one backward pass.
struct BackwardArguments {
  const Tensor &dq, &dk, &dv, &row_sum;
  const ConstTensor &dout, &out, &lse, &q, &k, &v;
  const AttentionSpec& spec;
  AttentionSizes sizes;
};

/// Which gradients a work item adds up.
enum class Gradients { all, keys, queries };

/// weights = exp2(scores - lse), dscores = weights ∘ (dP - row_sum), for rows [begin, end) of one
/// panel; dropout's factors multiply dP and the weights that dv takes.
template <bool kMasked, bool kDropout, typename T>
HWY_INLINE void weights_and_dscores(const PanelMask<T>& mask, int64_t begin, int64_t end,
                                    const T* HWY_RESTRICT factors, const T* HWY_RESTRICT lse,
                                    const T* HWY_RESTRICT row_sum, T* HWY_RESTRICT weights,
                                    T* HWY_RESTRICT dscores) {
  const TileTag<T> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t half = 0; half < 2; ++half) {
    const auto lse_lanes = hn::LoadU(d, lse + half * lanes);
    const auto row_sums = hn::LoadU(d, row_sum + half * lanes);
    for (int64_t j = begin; j < end; ++j) {
      T* weight_row = weights + j * kBackwardQueries + half * lanes;
      T* dscore_row = dscores + j * kBackwardQueries + half * lanes;
      auto p = exp2_nonpositive(d, hn::Sub(hn::LoadU(d, weight_row), lse_lanes));
      const auto key = hn::Set(d, static_cast<T>(j));
      const auto where_seen = [&](hn::Vec<TileTag<T>> value) {
        if constexpr (!kMasked) return value;
        return hn::IfThenElseZero(hn::And(hn::Ge(key, hn::Load(d, mask.begin + half * lanes)),
                                          hn::Lt(key, hn::Load(d, mask.end + half * lanes))),
                                  value);
      };
      p = where_seen(p);
      auto dp = hn::LoadU(d, dscore_row);
      if constexpr (kDropout) {
        const auto factor = hn::LoadU(d, factors + j * 2 * lanes + half * lanes);
        dp = hn::Mul(dp, factor);
        hn::StoreU(hn::Mul(p, factor), d, weight_row);
      } else {
        hn::StoreU(p, d, weight_row);
      }
      // Of a query that is not finite, a key that it does not see learns nothing: 0 · NaN is NaN.
      hn::StoreU(where_seen(hn::Mul(p, hn::Sub(dp, row_sums))), d, dscore_row);
    }
  }
}

/// Zero rows [begin, end) of one panel of a (kKeyTile, kBackwardQueries) matrix.
template <typename T>
HWY_INLINE void clear_rows(int64_t begin, int64_t end, int64_t width, T* panel) {
  for (int64_t j = begin; j < end; ++j) {
    std::fill(panel + j * kBackwardQueries, panel + j * kBackwardQueries + width, T{0});
  }
}

/// Scores, dP, weights and dS of one panel against one tile of keys, and its part of dq.
template <Gradients kGradients, typename T>
KeyRange differentiate_panel(const BackwardArguments& args, const QueryTile& tile, int64_t panel,
                             int64_t first_key, int64_t keys,
                             const FlashBackwardMemory<T>& memory) {
  const int64_t D = args.sizes.head_size;
  const int64_t width = tile.width;
  const PanelMask<T> mask(tile, panel, first_key, keys);
  const KeyRange rows = mask.any;
  T* weights = memory.weights + panel * width;
  T* dscores = memory.dscores + panel * width;
  if constexpr (kGradients != Gradients::queries) {  // dk and dv sum over whole tiles
    const KeyRange kept = rows.empty() ? KeyRange{keys, keys} : rows;
    for (T* matrix : {weights, dscores}) {
      clear_rows(0, kept.begin, width, matrix);
      clear_rows(kept.end, keys, width, matrix);
    }
  }
  if (rows.empty()) return {};

  const int64_t count = rows.end - rows.begin;
  multiply_panel<Left::by_rows, false>(count, D, memory.k + rows.begin * D, D,
                                       memory.q + panel * D * width, width,
                                       weights + rows.begin * kBackwardQueries, kBackwardQueries);
  multiply_panel<Left::by_rows, false>(count, D, memory.v + rows.begin * D, D,
                                       memory.dout + panel * D * width, width,
                                       dscores + rows.begin * kBackwardQueries, kBackwardQueries);

  const bool dropout = args.spec.dropout.active();
  if (dropout) dropout_factors(args.spec, tile, panel, first_key, rows, memory.factors);
  const auto rows_of = [&]<bool kMasked>(std::bool_constant<kMasked>, int64_t begin, int64_t end) {
    const T* lse = memory.lse + panel * width;
    const T* row_sum = memory.row_sum + panel * width;
    if (dropout) {
      weights_and_dscores<kMasked, true>(mask, begin, end, memory.factors, lse, row_sum, weights,
                                         dscores);
    } else {
      weights_and_dscores<kMasked, false>(mask, begin, end, memory.factors, lse, row_sum, weights,
                                          dscores);
    }
  };
  rows_of(std::true_type(), rows.begin, mask.all.begin);
  rows_of(std::false_type(), mask.all.begin, mask.all.end);
  rows_of(std::true_type(), mask.all.end, rows.end);

  if constexpr (kGradients != Gradients::keys) {
    multiply_panel<Left::by_columns, true>(D, count, memory.k + rows.begin * D, D,
                                           dscores + rows.begin * kBackwardQueries,
                                           kBackwardQueries, memory.dq + panel * D * width, width);
  }
  return rows;
}

/// dk += dS · q and dv += weights · dout for one tile of keys; `seen` is what each panel sees of
/// it.
template <typename T>
void add_key_gradients(const QueryTile& tile, const std::array<KeyRange, kMaxPanels>& seen,
                       int64_t keys, int64_t head_size, const FlashBackwardMemory<T>& memory, T* dk,
                       T* dv) {
  const int64_t width = tile.width;
  const int64_t row = round_up(head_size, width);
  for_each_block(0, keys, [&](int64_t j, int64_t count) {
    int64_t first = tile.panels;
    int64_t last = 0;
    for (int64_t p = 0; p < tile.panels; ++p) {
      const KeyRange& range = seen[static_cast<size_t>(p)];
      if (range.empty() || range.begin >= j + count || range.end <= j) continue;
      first = std::min(first, p);
      last = p + 1;
    }
    if (first >= last) return;
    const int64_t i = first * width;
    const int64_t depth = (last - first) * width;
    for (int64_t c = 0; c < row; c += width) {
      const int64_t columns = c * kBackwardQueries + i * width;
      multiply_block<Left::by_rows, true>(count, depth, memory.weights + j * kBackwardQueries + i,
                                          kBackwardQueries, memory.dout_rows + columns, width,
                                          dv + j * row + c, row);
      multiply_block<Left::by_rows, true>(count, depth, memory.dscores + j * kBackwardQueries + i,
                                          kBackwardQueries, memory.q_rows + columns, width,
                                          dk + j * row + c, row);
    }
  });
}

/// Rows of a tile of queries as (D / width, kBackwardQueries, width): the right factor of dk and
/// dv. The columns past D and the rows past `count` are 0.
template <typename T, typename S>
void pack_columns(HeadRows<const S> rows, int64_t count, int64_t columns, int64_t padded_count,
                  T* HWY_RESTRICT out) {
  const TileTag<T> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t width = 2 * lanes;
  for (int64_t i = 0; i < padded_count; ++i) {
    for (int64_t c = 0; c < round_up(columns, width); c += lanes) {
      T* to = out + c / width * kBackwardQueries * width + i * width + c % width;
      const int64_t n = i < count ? std::min(lanes, columns - c) : 0;
      hn::StoreU(n <= 0 ? hn::Zero(d) : load_some(d, rows[i] + c, static_cast<size_t>(n)), d, to);
    }
  }
}

/// row_sum = Σ_d dout · out for the queries of a tile.
template <typename S, typename T>
void sum_rows(const BackwardArguments& args, const QueryTile& tile, T* row_sum) {
  const TileTag<T> d;
  const auto dout = head_rows<S>(args.dout, tile.b, tile.h);
  const auto out = head_rows<S>(args.out, tile.b, tile.h);
  for (int64_t i = 0; i < tile.count; ++i) {
    const S* dout_row = dout[tile.first + i];
    const S* out_row = out[tile.first + i];
    prefetch_row(out[tile.first + std::min(i + kRowsAhead, tile.count - 1)], args.sizes.head_size);
    auto sum = hn::Zero(d);
    for_each_vector(d, args.sizes.head_size, [&](int64_t c, size_t lanes) {
      sum = hn::MulAdd(load_some(d, dout_row + c, lanes), load_some(d, out_row + c, lanes), sum);
    });
    row_sum[i] = sum_lanes(d, sum);
  }
}

template <Gradients kGradients, typename S, typename T>
void load_queries(const BackwardArguments& args, const QueryTile& tile,
                  const FlashBackwardMemory<T>& memory) {
  const AttentionSizes& sizes = args.sizes;
  const int64_t D = sizes.head_size;
  const int64_t lanes = tile.panels * tile.width;
  const auto q = head_rows<S>(args.q, tile.b, tile.h);
  const auto dout = head_rows<S>(args.dout, tile.b, tile.h);
  for (int64_t p = 0; p < tile.panels; ++p) {
    const int64_t i = tile.first + p * tile.width;
    pack_transposed(HeadRows<const S>{q[i], q.stride}, tile.panel_count(p), D,
                    static_cast<T>(args.spec.scale * kLog2E), memory.q + p * D * tile.width);
    pack_transposed(HeadRows<const S>{dout[i], dout.stride}, tile.panel_count(p), D, T{1},
                    memory.dout + p * D * tile.width);
  }
  if constexpr (kGradients != Gradients::queries) {
    pack_columns(HeadRows<const S>{q[tile.first], q.stride}, tile.count, D, lanes, memory.q_rows);
    pack_columns(HeadRows<const S>{dout[tile.first], dout.stride}, tile.count, D, lanes,
                 memory.dout_rows);
  }
  if constexpr (kGradients != Gradients::keys) {
    std::fill(memory.dq, memory.dq + lanes * D, T{0});
  }
  const int64_t statistics = (tile.b * sizes.heads + tile.h) * sizes.queries + tile.first;
  const T* lse = args.lse.as<T>() + statistics;
  T* row_sum = args.row_sum.as<T>() + statistics;
  if constexpr (kGradients != Gradients::keys) sum_rows<S>(args, tile, row_sum);
  for (int64_t i = 0; i < lanes; ++i) {
    // Lanes past the last query have no weight: exp2(0 - inf).
    memory.lse[i] =
        i < tile.count ? lse[i] * static_cast<T>(kLog2E) : std::numeric_limits<T>::infinity();
    memory.row_sum[i] = i < tile.count ? row_sum[i] : T{0};
  }
}

/// One tile of queries against the keys [chunk.begin, chunk.end), in tiles; dk and dv of the chunk
/// add up in memory.
template <Gradients kGradients, typename S, typename T>
void differentiate_tile(const BackwardArguments& args, const QueryTile& tile, const KeyRange& chunk,
                        const FlashBackwardMemory<T>& memory) {
  const AttentionSizes& sizes = args.sizes;
  const int64_t D = sizes.head_size;
  const KeyRange used = tile.keys.common(chunk);
  if (used.empty() && kGradients == Gradients::keys) return;
  load_queries<kGradients, S>(args, tile, memory);
  const auto k = head_rows<S>(args.k, tile.b, tile.h / sizes.group());
  const auto v = head_rows<S>(args.v, tile.b, tile.h / sizes.group());
  std::array<KeyRange, kMaxPanels> seen;
  for (int64_t first = used.begin / kKeyTile * kKeyTile; first < used.end; first += kKeyTile) {
    const int64_t keys = std::min(kKeyTile, sizes.keys - first);
    pack_rows(HeadRows<const S>{k[first], k.stride}, keys, D, memory.k);
    pack_rows(HeadRows<const S>{v[first], v.stride}, keys, D, memory.v);
    for (int64_t p = 0; p < tile.panels; ++p) {
      seen[static_cast<size_t>(p)] =
          differentiate_panel<kGradients>(args, tile, p, first, keys, memory);
    }
    if constexpr (kGradients != Gradients::queries) {
      const int64_t offset = (first - chunk.begin) * round_up(D, tile.width);
      add_key_gradients(tile, seen, keys, D, memory, memory.dk + offset, memory.dv + offset);
    }
  }
  if constexpr (kGradients != Gradients::keys) {
    const auto dq = head_rows<S>(args.dq, tile.b, tile.h);
    const auto scale = hn::Set(TileTag<T>(), static_cast<T>(args.spec.scale));
    for (int64_t p = 0; p < tile.panels; ++p) {
      T* panel = memory.dq + p * D * tile.width;
      scale_panel(panel, D, scale, scale);
      unpack_transposed(panel, tile.panel_count(p), D,
                        HeadRows<S>{dq[tile.first + p * tile.width], dq.stride});
    }
  }
}

/// out = factor · sums (count, padded D).
template <typename S, typename T>
void write_key_gradient(const T* HWY_RESTRICT sums, int64_t padded, int64_t count, int64_t columns,
                        T factor, HeadRows<S> out) {
  const TileTag<T> d;
  const auto scale = hn::Set(d, factor);
  for (int64_t j = 0; j < count; ++j) {
    for_each_vector(d, columns, [&](int64_t c, size_t lanes) {
      store_some(d, hn::Mul(scale, load_some(d, sums + j * padded + c, lanes)), out[j] + c, lanes);
    });
  }
}

/// dk and dv of a chunk of keys of one head of keys, from all queries of its group.
template <Gradients kGradients, typename S, typename T>
void differentiate_chunk(const BackwardArguments& args, int64_t b, int64_t kv_head,
                         const KeyRange& chunk, const FlashBackwardMemory<T>& memory) {
  const AttentionSizes& sizes = args.sizes;
  const int64_t width = panel_width<T>();
  const int64_t padded = round_up(sizes.head_size, width);
  const int64_t count = chunk.end - chunk.begin;
  std::fill(memory.dk, memory.dk + count * padded, T{0});
  std::fill(memory.dv, memory.dv + count * padded, T{0});
  for (int64_t h = kv_head * sizes.group(); h < (kv_head + 1) * sizes.group(); ++h) {
    for (int64_t first = 0; first < sizes.queries; first += kBackwardQueries) {
      differentiate_tile<kGradients, S>(
          args, query_tile(args.spec, sizes, b, h, first, kBackwardQueries, width), chunk, memory);
    }
  }
  const auto dk = head_rows<S>(args.dk, b, kv_head);
  const auto dv = head_rows<S>(args.dv, b, kv_head);
  write_key_gradient(memory.dk, padded, count, sizes.head_size, static_cast<T>(args.spec.scale),
                     HeadRows<S>{dk[chunk.begin], dk.stride});
  write_key_gradient(memory.dv, padded, count, sizes.head_size, T{1},
                     HeadRows<S>{dv[chunk.begin], dv.stride});
}

template <typename S>
void flash_backward_of(Executor& x, const BackwardArguments& args) {
  using T = Compute<S>;
  const AttentionSizes& sizes = args.sizes;
  Scratch scratch(x);
  const int64_t per_thread = FlashBackwardMemory<T>::size(sizes.head_size);
  T* memory = scratch.take<T>(x.threads() * per_thread);
  const auto memory_of = [&](int thread) {
    return FlashBackwardMemory<T>(Carver<T>{memory + thread * per_thread}, sizes.head_size);
  };

  const int64_t kv_heads = sizes.batch * sizes.kv_heads;
  // Rounds of one head a thread against what two passes spread evenly, in products.
  const int64_t rounds = (kv_heads + x.threads() - 1) / x.threads();
  if (sizes.keys <= key_chunk<T>(sizes.head_size) && 5 * rounds * x.threads() <= 7 * kv_heads) {
    parallel_ranges(x, kv_heads, 1, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t item = begin; item < end; ++item) {
        differentiate_chunk<Gradients::all, S>(args, item / sizes.kv_heads, item % sizes.kv_heads,
                                               {0, sizes.keys}, memory_of(thread));
      }
    });
    return;
  }

  const int64_t tiles = (sizes.queries + kBackwardQueries - 1) / kBackwardQueries;
  parallel_ranges(x, sizes.batch * sizes.heads * tiles, 1,
                  [&](int64_t begin, int64_t end, int thread) {
                    for (int64_t item = begin; item < end; ++item) {
                      const int64_t head = item / tiles;
                      const int64_t first = from_both_ends(item % tiles, tiles) * kBackwardQueries;
                      differentiate_tile<Gradients::queries, S>(
                          args,
                          query_tile(args.spec, sizes, head / sizes.heads, head % sizes.heads,
                                     first, kBackwardQueries, panel_width<T>()),
                          {0, sizes.keys}, memory_of(thread));
                    }
                  });

  // The fewer chunks, the less often queries are packed; four a thread share the work evenly.
  int64_t chunk = key_chunk<T>(sizes.head_size);
  while (chunk > kKeyTile && kv_heads * ((sizes.keys + chunk - 1) / chunk) < 4 * x.threads()) {
    chunk = round_up(chunk / 2, kKeyTile);
  }
  const int64_t chunks = (sizes.keys + chunk - 1) / chunk;
  parallel_ranges(x, kv_heads * chunks, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t head = item / chunks;
      const int64_t first = from_both_ends(item % chunks, chunks) * chunk;
      differentiate_chunk<Gradients::keys, S>(args, head / sizes.kv_heads, head % sizes.kv_heads,
                                              {first, std::min(first + chunk, sizes.keys)},
                                              memory_of(thread));
    }
  });
}

void flash_backward_any(Executor& x, const Tensor& dq, const Tensor& dk, const Tensor& dv,
                        const Tensor& row_sum, const ConstTensor& dout, const ConstTensor& out,
                        const ConstTensor& lse, const ConstTensor& q, const ConstTensor& k,
                        const ConstTensor& v, const AttentionSpec& spec) {
  const BackwardArguments args{dq,  dk, dv, row_sum, dout, out,
                               lse, q,  k,  v,       spec, AttentionSizes(q, k)};
  dispatch_float("attention_backward", q, [&]<typename S>(S) { flash_backward_of<S>(x, args); });
}

}  // namespace HWY_NAMESPACE
}  // namespace gradus::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gradus::cpu {

HWY_EXPORT(flash_backward_any);

void flash_backward(Executor& x, Tensor dq, Tensor dk, Tensor dv, Tensor row_sum, ConstTensor dout,
                    ConstTensor out, ConstTensor lse, ConstTensor q, ConstTensor k, ConstTensor v,
                    const AttentionSpec& spec) {
  HWY_DYNAMIC_DISPATCH(flash_backward_any)
  (x, dq, dk, dv, row_sum, dout, out, lse, q, k, v, spec);
}

}  // namespace gradus::cpu
#endif  // HWY_ONCE
