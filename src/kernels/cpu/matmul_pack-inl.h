// Packing for the matrix product: copies a part of an operand, widened to the type of arithmetic,
// into the order in which the tile kernel reads it. Compiled once for each instruction set.

#if defined(GRADUS_KERNELS_CPU_MATMUL_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRADUS_KERNELS_CPU_MATMUL_PACK_INL_H_
#undef GRADUS_KERNELS_CPU_MATMUL_PACK_INL_H_
#else
#define GRADUS_KERNELS_CPU_MATMUL_PACK_INL_H_
#endif

#include <algorithm>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gradus::cpu {
namespace HWY_NAMESPACE {

/// Rows of c that one tile holds in registers; with two vectors of columns it takes 12
/// accumulators, 2 vectors of b and a broadcast of a: what 16 vector registers carry.
constexpr int64_t kTileRows = 6;

template <typename T>
HWY_INLINE T widen(T value) {
  return value;
}
HWY_INLINE float widen(bf16 value) { return static_cast<float>(value); }

/// to[k · kTileRows + i] = from[i + k · stride] for i < count, zero for the rest of the tile.
/// `from` is a matrix whose rows are contiguous in memory along i (a transposed operand).
template <typename S, typename T>
HWY_INLINE void pack_row_tile(T* HWY_RESTRICT to, const S* HWY_RESTRICT from, int64_t stride,
                              int64_t count, int64_t depth) {
  if (count == kTileRows) {
    const hn::CappedTag<T, 2> d;
    const auto lanes = static_cast<int64_t>(hn::Lanes(d));
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t i = 0; i < kTileRows; i += lanes) {
        hn::StoreU(load(d, from + k * stride + i), d, to + k * kTileRows + i);
      }
    }
    return;
  }
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t i = 0; i < kTileRows; ++i) {
      to[k * kTileRows + i] = i < count ? widen(from[k * stride + i]) : T{0};
    }
  }
}

/// to[k · width + j] = from[k · stride + j] for j < count, zero for the rest of the width.
template <class D, typename S, typename T>
HWY_INLINE void pack_columns(D d, T* HWY_RESTRICT to, int64_t width, const S* HWY_RESTRICT from,
                             int64_t stride, int64_t count, int64_t depth) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  if (count == width) {
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t j = 0; j < width; j += lanes) {
        hn::StoreU(load(d, from + k * stride + j), d, to + k * width + j);
      }
    }
    return;
  }
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t j = 0; j < width; ++j) {
      to[k * width + j] = j < count ? widen(from[k * stride + j]) : T{0};
    }
  }
}

#if HWY_TARGET != HWY_SCALAR
/// Four rows of four numbers transposed: to[j · width + i] = from[min(i, last_row) · stride + j].
template <typename S>
HWY_INLINE void transpose_4x4(float* HWY_RESTRICT to, int64_t width, const S* HWY_RESTRICT from,
                              int64_t stride, int64_t last_row) {
  const hn::FixedTag<float, 4> d;
  const hn::FixedTag<uint64_t, 2> pairs;
  const auto row0 = load(d, from);
  const auto row1 = load(d, from + std::min<int64_t>(1, last_row) * stride);
  const auto row2 = load(d, from + std::min<int64_t>(2, last_row) * stride);
  const auto row3 = load(d, from + std::min<int64_t>(3, last_row) * stride);
  const auto low01 = hn::BitCast(pairs, hn::InterleaveLower(d, row0, row1));
  const auto low23 = hn::BitCast(pairs, hn::InterleaveLower(d, row2, row3));
  const auto high01 = hn::BitCast(pairs, hn::InterleaveUpper(d, row0, row1));
  const auto high23 = hn::BitCast(pairs, hn::InterleaveUpper(d, row2, row3));
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(pairs, low01, low23)), d, to);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(pairs, low01, low23)), d, to + width);
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(pairs, high01, high23)), d, to + 2 * width);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(pairs, high01, high23)), d, to + 3 * width);
}
#endif

/// to[k · width + j] = from[j · stride + k] for j < count, zero for the rest of the width: the rows
/// of `from` become columns.
template <typename S, typename T>
HWY_INLINE void pack_transposed(T* HWY_RESTRICT to, int64_t width, const S* HWY_RESTRICT from,
                                int64_t stride, int64_t count, int64_t depth) {
  int64_t whole = 0;
#if HWY_TARGET != HWY_SCALAR  // which has no shuffles
  if constexpr (std::is_same_v<T, float>) {
    if (count == width) {
      // Where four does not divide the width, the last block of rows is written first and runs over
      // into the next k, which is written after it; the last k is left to the loop below.
      whole = (depth - (width % 4 != 0 ? 1 : 0)) / 4 * 4;
      for (int64_t k = 0; k < whole; k += 4) {
        for (int64_t j = (width - 1) / 4 * 4; j >= 0; j -= 4) {
          transpose_4x4(to + k * width + j, width, from + j * stride + k, stride, width - 1 - j);
        }
      }
    }
  }
#endif
  for (int64_t k = whole; k < depth; ++k) {
    for (int64_t j = 0; j < width; ++j) {
      to[k * width + j] = j < count ? widen(from[j * stride + k]) : T{0};
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace gradus::cpu
HWY_AFTER_NAMESPACE();

#endif  // GRADUS_KERNELS_CPU_MATMUL_PACK_INL_H_
