// Building blocks of flash attention: products of small matrices in registers, exp2, transposed
// panels. T is the compute type (float or double), S the storage type.

#if defined(GRADUS_KERNELS_CPU_ATTENTION_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRADUS_KERNELS_CPU_ATTENTION_TILE_INL_H_
#undef GRADUS_KERNELS_CPU_ATTENTION_TILE_INL_H_
#else
#define GRADUS_KERNELS_CPU_ATTENTION_TILE_INL_H_
#endif

#include <hwy/cache_control.h>

#include <array>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/attention_geometry.h"
#include "kernels/cpu/attention_memory.h"
#include "kernels/cpu/philox-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gradus::cpu {
namespace HWY_NAMESPACE {

/// A panel is two of these vectors wide.
template <typename T>
using TileTag = hn::CappedTag<T, kMaxPanelWidth / 2>;

template <typename T>
HWY_INLINE int64_t panel_width() {
  return 2 * static_cast<int64_t>(hn::Lanes(TileTag<T>()));
}

/// How the left factor of a product lies in memory.
enum class Left {
  by_rows,    ///< A(m, k) = a[m · lda + k]
  by_columns  ///< A(m, k) = a[k · lda + m]
};

template <Left kLeft, int kRow, class D, typename T>
HWY_INLINE hn::Vec<D> broadcast_left(D d, const T* HWY_RESTRICT a, int64_t lda, int64_t k) {
  return hn::Set(d, kLeft == Left::by_rows ? a[kRow * lda + k] : a[k * lda + kRow]);
}

template <bool kAdd, class D, typename T>
HWY_INLINE void store_pair(D d, hn::Vec<D> v0, hn::Vec<D> v1, T* HWY_RESTRICT c) {
  if constexpr (kAdd) {
    v0 = hn::Add(hn::LoadU(d, c), v0);
    v1 = hn::Add(hn::LoadU(d, c + hn::Lanes(d)), v1);
  }
  hn::StoreU(v0, d, c);
  hn::StoreU(v1, d, c + hn::Lanes(d));
}

/// C (kRows, one panel width) = or += A · B; B(k, ·) at b + k · ldb. The sums of twelve vectors
/// stay in registers: 6 x 2 of them, two of B and one of A fill the sixteen that AVX2 has, and
/// keep two fused multiply-adds of four or five cycles each in flight all the time.
template <int kRows, Left kLeft, bool kAdd, typename T>
HWY_INLINE void multiply_rows(int64_t depth, const T* HWY_RESTRICT a, int64_t lda,
                              const T* HWY_RESTRICT b, int64_t ldb, T* HWY_RESTRICT c,
                              int64_t ldc) {
  static_assert(1 <= kRows && kRows <= 6);
  const TileTag<T> d;
  const size_t lanes = hn::Lanes(d);
  auto c00 = hn::Zero(d), c01 = c00, c10 = c00, c11 = c00, c20 = c00, c21 = c00;
  auto c30 = c00, c31 = c00, c40 = c00, c41 = c00, c50 = c00, c51 = c00;
  for (int64_t k = 0; k < depth; ++k) {
    const auto b0 = hn::LoadU(d, b + k * ldb);
    const auto b1 = hn::LoadU(d, b + k * ldb + lanes);
    const auto a0 = broadcast_left<kLeft, 0>(d, a, lda, k);
    c00 = hn::MulAdd(a0, b0, c00);
    c01 = hn::MulAdd(a0, b1, c01);
    if constexpr (kRows > 1) {
      const auto a1 = broadcast_left<kLeft, 1>(d, a, lda, k);
      c10 = hn::MulAdd(a1, b0, c10);
      c11 = hn::MulAdd(a1, b1, c11);
    }
    if constexpr (kRows > 2) {
      const auto a2 = broadcast_left<kLeft, 2>(d, a, lda, k);
      c20 = hn::MulAdd(a2, b0, c20);
      c21 = hn::MulAdd(a2, b1, c21);
    }
    if constexpr (kRows > 3) {
      const auto a3 = broadcast_left<kLeft, 3>(d, a, lda, k);
      c30 = hn::MulAdd(a3, b0, c30);
      c31 = hn::MulAdd(a3, b1, c31);
    }
    if constexpr (kRows > 4) {
      const auto a4 = broadcast_left<kLeft, 4>(d, a, lda, k);
      c40 = hn::MulAdd(a4, b0, c40);
      c41 = hn::MulAdd(a4, b1, c41);
    }
    if constexpr (kRows > 5) {
      const auto a5 = broadcast_left<kLeft, 5>(d, a, lda, k);
      c50 = hn::MulAdd(a5, b0, c50);
      c51 = hn::MulAdd(a5, b1, c51);
    }
  }
  store_pair<kAdd>(d, c00, c01, c);
  if constexpr (kRows > 1) store_pair<kAdd>(d, c10, c11, c + ldc);
  if constexpr (kRows > 2) store_pair<kAdd>(d, c20, c21, c + 2 * ldc);
  if constexpr (kRows > 3) store_pair<kAdd>(d, c30, c31, c + 3 * ldc);
  if constexpr (kRows > 4) store_pair<kAdd>(d, c40, c41, c + 4 * ldc);
  if constexpr (kRows > 5) store_pair<kAdd>(d, c50, c51, c + 5 * ldc);
}

/// multiply_rows for a number of rows known at run time only, at most 6.
template <Left kLeft, bool kAdd, typename T>
HWY_NOINLINE void multiply_block(int64_t rows, int64_t depth, const T* a, int64_t lda, const T* b,
                                 int64_t ldb, T* c, int64_t ldc) {
  switch (rows) {
    case 6:
      return multiply_rows<6, kLeft, kAdd>(depth, a, lda, b, ldb, c, ldc);
    case 5:
      return multiply_rows<5, kLeft, kAdd>(depth, a, lda, b, ldb, c, ldc);
    case 4:
      return multiply_rows<4, kLeft, kAdd>(depth, a, lda, b, ldb, c, ldc);
    case 3:
      return multiply_rows<3, kLeft, kAdd>(depth, a, lda, b, ldb, c, ldc);
    case 2:
      return multiply_rows<2, kLeft, kAdd>(depth, a, lda, b, ldb, c, ldc);
    default:
      return multiply_rows<1, kLeft, kAdd>(depth, a, lda, b, ldb, c, ldc);
  }
}

/// Calls body(first, count) on consecutive blocks of at most 6 rows that cover [begin, end), of
/// sizes as equal as can be: blocks of one or two rows leave the multiply-adds waiting.
template <class Body>
HWY_INLINE void for_each_block(int64_t begin, int64_t end, Body&& body) {
  for (int64_t blocks = (end - begin + 5) / 6; blocks > 0; --blocks) {
    const int64_t count = (end - begin + blocks - 1) / blocks;
    body(begin, count);
    begin += count;
  }
}

/// C (rows, one panel width) = or += A (rows, depth) · B (depth, one panel width).
template <Left kLeft, bool kAdd, typename T>
void multiply_panel(int64_t rows, int64_t depth, const T* a, int64_t lda, const T* b, int64_t ldb,
                    T* c, int64_t ldc) {
  for_each_block(0, rows, [&](int64_t m, int64_t count) {
    multiply_block<kLeft, kAdd>(count, depth, kLeft == Left::by_rows ? a + m * lda : a + m, lda, b,
                                ldb, c + m * ldc, ldc);
  });
}

/// 2^x for x <= 0 up to a few units in the last place; 0 below 2^-125, where x = -inf ends; NaN
/// stays NaN. x = n + r with |r| <= 1/2: adding a number whose last place counts ones rounds x to
/// n, and leaves n + the exponent's bias in the low bits, ready to be shifted into place.
HWY_INLINE hn::Vec<TileTag<float>> exp2_nonpositive(TileTag<float> d, hn::Vec<TileTag<float>> x) {
  const hn::RebindToUnsigned<decltype(d)> bits;
  const auto magic = hn::Set(d, 12582912.0f + 127.0f);  // 1.5 · 2^23
  const auto shifted = hn::Add(x, magic);
  const auto r = hn::Sub(x, hn::Sub(shifted, magic));
  const auto power = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(bits, shifted)));
  // Minimax polynomial of 2^r on [-1/2, 1/2] with p(0) = 1: relative error 2.6e-9.
  auto p = hn::Set(d, 0.00015594677893006258f);
  p = hn::MulAdd(p, r, hn::Set(d, 0.001340664387101445f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.009617692973559735f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.05550310551105354f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.24022652782884113f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.6931472149679712f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -125.0f)), hn::Mul(p, power));
}

/// The same for double, with Taylor's series up to r^13 / 13!: its rest is below 1e-17. 0 below
/// 2^-1021.
HWY_INLINE hn::Vec<TileTag<double>> exp2_nonpositive(TileTag<double> d,
                                                     hn::Vec<TileTag<double>> x) {
  constexpr std::array<double, 14> kTaylor = [] {
    std::array<double, 14> c{1.0};
    for (size_t i = 1; i < c.size(); ++i) {
      c[i] = c[i - 1] * 0.693147180559945309417 / static_cast<double>(i);
    }
    return c;
  }();
  const hn::RebindToUnsigned<decltype(d)> bits;
  const auto magic = hn::Set(d, 6755399441055744.0 + 1023.0);  // 1.5 · 2^52
  const auto shifted = hn::Add(x, magic);
  const auto r = hn::Sub(x, hn::Sub(shifted, magic));
  const auto power = hn::BitCast(d, hn::ShiftLeft<52>(hn::BitCast(bits, shifted)));
  auto p = hn::Set(d, kTaylor[13]);
  for (size_t i = 13; i-- > 0;) p = hn::MulAdd(p, r, hn::Set(d, kTaylor[i]));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -1021.0)), hn::Mul(p, power));
}

#if HWY_TARGET == HWY_SCALAR
template <typename T>
inline constexpr int64_t kTransposeBlock = 1;
#else
template <typename T>
inline constexpr int64_t kTransposeBlock = 16 / sizeof(T);
#endif

/// Transposes a square block: in(r) loads its row r, out(c, v) takes its column c.
template <typename T, class In, class Out>
HWY_INLINE void transpose_block(In&& in, Out&& out) {
#if HWY_TARGET == HWY_SCALAR
  out(0, in(0));
#else
  const hn::FixedTag<T, kTransposeBlock<T>> d;
  if constexpr (sizeof(T) == 8) {
    const auto r0 = in(0), r1 = in(1);
    out(0, hn::InterleaveLower(d, r0, r1));
    out(1, hn::InterleaveUpper(d, r0, r1));
  } else {
    const hn::FixedTag<double, 2> pairs;
    const auto r0 = in(0), r1 = in(1), r2 = in(2), r3 = in(3);
    const auto low01 = hn::BitCast(pairs, hn::InterleaveLower(d, r0, r1));
    const auto low23 = hn::BitCast(pairs, hn::InterleaveLower(d, r2, r3));
    const auto up01 = hn::BitCast(pairs, hn::InterleaveUpper(d, r0, r1));
    const auto up23 = hn::BitCast(pairs, hn::InterleaveUpper(d, r2, r3));
    out(0, hn::BitCast(d, hn::InterleaveLower(pairs, low01, low23)));
    out(1, hn::BitCast(d, hn::InterleaveUpper(pairs, low01, low23)));
    out(2, hn::BitCast(d, hn::InterleaveLower(pairs, up01, up23)));
    out(3, hn::BitCast(d, hn::InterleaveUpper(pairs, up01, up23)));
  }
#endif
}

/// Asks for a row that will be read soon. Rows of one head lie far apart in a packed (B, T, 3C)
/// tensor, on pages of their own, where the processor does not guess them.
template <typename S>
HWY_INLINE void prefetch_row(const S* row, int64_t columns) {
  const char* bytes = reinterpret_cast<const char*>(row);
  for (int64_t i = 0; i < columns * static_cast<int64_t>(sizeof(S)); i += 64) {
    hwy::Prefetch(bytes + i);
  }
}
inline constexpr int64_t kRowsAhead = 8;

/// panel (columns, width) = factor · rowsᵀ of `count` <= width rows; the lanes past them are 0.
template <typename T, typename S>
void pack_transposed(HeadRows<const S> rows, int64_t count, int64_t columns, T factor,
                     T* HWY_RESTRICT panel) {
  constexpr int64_t kBlock = kTransposeBlock<T>;
  const hn::FixedTag<T, kBlock> d;
  const int64_t width = panel_width<T>();
  if (count < width) std::memset(panel, 0, static_cast<size_t>(columns * width) * sizeof(T));
  const int64_t whole_rows = count - count % kBlock;
  const int64_t whole_columns = columns - columns % kBlock;
  const auto scale = hn::Set(d, factor);
  for (int64_t i = 0; i < count; ++i) prefetch_row(rows[i], columns);
  for (int64_t i = 0; i < whole_rows; i += kBlock) {
    for (int64_t c = 0; c < whole_columns; c += kBlock) {
      transpose_block<T>([&](int64_t r) { return hn::Mul(scale, load(d, rows[i + r] + c)); },
                         [&](int64_t r, hn::Vec<decltype(d)> v) {
                           hn::StoreU(v, d, panel + (c + r) * width + i);
                         });
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t c = i < whole_rows ? whole_columns : 0; c < columns; ++c) {
      panel[c * width + i] = factor * static_cast<T>(rows[i][c]);
    }
  }
}

/// `count` <= width rows = panelᵀ, rounded to the storage type.
template <typename T, typename S>
void unpack_transposed(const T* HWY_RESTRICT panel, int64_t count, int64_t columns,
                       HeadRows<S> rows) {
  constexpr int64_t kBlock = kTransposeBlock<T>;
  const hn::FixedTag<T, kBlock> d;
  const int64_t width = panel_width<T>();
  const int64_t whole_rows = count - count % kBlock;
  const int64_t whole_columns = columns - columns % kBlock;
  for (int64_t i = 0; i < whole_rows; i += kBlock) {
    for (int64_t c = 0; c < whole_columns; c += kBlock) {
      transpose_block<T>([&](int64_t r) { return hn::LoadU(d, panel + (c + r) * width + i); },
                         [&](int64_t r, hn::Vec<decltype(d)> v) { store(d, v, rows[i + r] + c); });
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t c = i < whole_rows ? whole_columns : 0; c < columns; ++c) {
      rows[i][c] = static_cast<S>(panel[c * width + i]);
    }
  }
}

/// panel (rows, width) = panel · factors (width), lane by lane.
template <typename T>
HWY_INLINE void scale_panel(T* HWY_RESTRICT panel, int64_t rows, hn::Vec<TileTag<T>> factor0,
                            hn::Vec<TileTag<T>> factor1) {
  const TileTag<T> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t r = 0; r < rows; ++r, panel += 2 * lanes) {
    hn::StoreU(hn::Mul(hn::LoadU(d, panel), factor0), d, panel);
    hn::StoreU(hn::Mul(hn::LoadU(d, panel + lanes), factor1), d, panel + lanes);
  }
}

/// out (count, columns), contiguous, = rows, widened to the compute type.
template <typename T, typename S>
void pack_rows(HeadRows<const S> rows, int64_t count, int64_t columns, T* HWY_RESTRICT out) {
  const TileTag<T> d;
  for (int64_t r = 0; r < count; ++r, out += columns) {
    const S* HWY_RESTRICT in = rows[r];
    prefetch_row(rows[std::min(r + kRowsAhead, count - 1)], columns);
    for_each_vector(d, columns, [&](int64_t i, size_t lanes) {
      store_some(d, load_some(d, in + i, lanes), out + i, lanes);
    });
  }
}

/// One tile of queries: which keys each of them and each panel of them sees.
struct QueryTile {
  int64_t b = 0, h = 0;
  int64_t first = 0;  ///< query
  int64_t count = 0;  ///< of queries
  int64_t width = 0;  ///< of a panel
  int64_t panels = 0;
  KeyRange keys;                                  ///< that any query of the tile sees
  std::array<KeyRange, kForwardQueries> visible;  ///< lanes past the last query repeat it
  std::array<KeyRange, kMaxPanels> any, all;      ///< that some, that each query of a panel sees

  int64_t panel_count(int64_t panel) const { return std::min(width, count - panel * width); }
};

/// The tile of at most `size` queries from `first` on.
inline QueryTile query_tile(const AttentionSpec& spec, const AttentionSizes& sizes, int64_t b,
                            int64_t h, int64_t first, int64_t size, int64_t width) {
  QueryTile tile;
  tile.b = b;
  tile.h = h;
  tile.first = first;
  tile.count = std::min(size, sizes.queries - first);
  tile.width = width;
  tile.panels = (tile.count + width - 1) / width;
  for (int64_t p = 0; p < tile.panels; ++p) {
    KeyRange any;
    KeyRange all{0, sizes.keys};
    for (int64_t i = p * width; i < (p + 1) * width; ++i) {
      const int64_t query = first + std::min(i, tile.count - 1);
      const KeyRange seen = visible_keys(spec, b, query, sizes.keys);
      tile.visible[static_cast<size_t>(i)] = seen;
      any = any.united(seen);
      all = all.common(seen);
    }
    tile.any[static_cast<size_t>(p)] = any;
    tile.all[static_cast<size_t>(p)] = all;
    tile.keys = tile.keys.united(any);
  }
  return tile;
}

/// A panel of queries against one tile of keys; rows are keys, counted from the tile's first.
template <typename T>
struct PanelMask {
  KeyRange any;  ///< rows that some query sees; the others are left out
  KeyRange all;  ///< rows that need no mask
  /// Rows [begin, end) that each query sees. Small whole numbers: exact in any T.
  HWY_ALIGN T begin[kMaxPanelWidth];
  HWY_ALIGN T end[kMaxPanelWidth];

  PanelMask(const QueryTile& tile, int64_t panel, int64_t first_key, int64_t keys)
      : any(relative(tile.any[static_cast<size_t>(panel)], first_key, keys)),
        all(relative(tile.all[static_cast<size_t>(panel)], first_key, keys)) {
    if (all.empty()) all = {any.end, any.end};
    if (all.begin == any.begin && all.end == any.end) return;
    for (int64_t i = 0; i < tile.width; ++i) {
      const KeyRange seen =
          relative(tile.visible[static_cast<size_t>(panel * tile.width + i)], first_key, keys);
      begin[i] = static_cast<T>(seen.begin);
      end[i] = static_cast<T>(seen.end);
    }
  }

 private:
  static KeyRange relative(const KeyRange& range, int64_t first_key, int64_t keys) {
    const KeyRange clipped = range.clipped(first_key, first_key + keys);
    return {clipped.begin - first_key, clipped.end - first_key};
  }
};

/// factors (kKeyTile, width), rows `rows`: what dropout multiplies the weights with.
template <typename T>
void dropout_factors(const AttentionSpec& spec, const QueryTile& tile, int64_t panel,
                     int64_t first_key, const KeyRange& rows, T* HWY_RESTRICT factors) {
  constexpr int64_t kRowWords = kKeyTile + 8;  // whole blocks of four at both ends
  const int64_t position = spec.key_position + first_key + rows.begin;
  const int64_t skipped = position % 4;
  const int64_t count = rows.end - rows.begin;
  const uint32_t threshold = spec.dropout.threshold();
  const auto kept = static_cast<T>(spec.dropout.scale());
  uint32_t words[kRowWords];
  T row[kMaxPanelWidth * kKeyTile];
  const int64_t queries = tile.panel_count(panel);
  for (int64_t i = 0; i < queries; ++i) {
    const uint64_t counter = dropout_counter(spec, tile.h, tile.first + panel * tile.width + i);
    philox_words(spec.dropout.key, static_cast<uint64_t>(spec.dropout.first_sample + tile.b),
                 counter + static_cast<uint64_t>(position / 4), (skipped + count + 3) / 4, words);
    for (int64_t j = 0; j < count; ++j) {
      row[i * kKeyTile + j] = words[skipped + j] >= threshold ? kept : T{0};
    }
  }
  pack_transposed(HeadRows<const T>{row, kKeyTile}, queries, count, T{1},
                  factors + rows.begin * tile.width);
}

}  // namespace HWY_NAMESPACE
}  // namespace gradus::cpu
HWY_AFTER_NAMESPACE();

#endif  // GRADUS_KERNELS_CPU_ATTENTION_TILE_INL_H_
