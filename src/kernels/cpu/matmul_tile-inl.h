// The innermost kernels of the matrix product. Compiled once for each instruction set.

#if defined(GRADUS_KERNELS_CPU_MATMUL_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRADUS_KERNELS_CPU_MATMUL_TILE_INL_H_
#undef GRADUS_KERNELS_CPU_MATMUL_TILE_INL_H_
#else
#define GRADUS_KERNELS_CPU_MATMUL_TILE_INL_H_
#endif

#include <hwy/cache_control.h>

#include <array>

#include "kernels/cpu/matmul_pack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gradus::cpu {
namespace HWY_NAMESPACE {

/// What happens to a tile of sums: out = sums + add + bias, where add and bias may be null.
template <typename T, typename S, typename O>
struct TileResult {
  O* out = nullptr;
  int64_t out_stride = 0;
  const T* add = nullptr;
  int64_t add_stride = 0;
  const S* bias = nullptr;
  int64_t rows = 0;     ///< of the tile that exist, at most kTileRows
  int64_t columns = 0;  ///< of the tile that exist, at most two vectors

  /// c is touched last and is the operand that is least likely to be in a cache.
  HWY_INLINE void prefetch() const {
    for (int64_t i = 0; i < rows; ++i) hwy::Prefetch(out + i * out_stride);
  }

  /// Row i of the tile; v0 and v1 are its sums.
  template <class D>
  HWY_INLINE void put_row(D d, int64_t i, hn::Vec<D> v0, hn::Vec<D> v1) const {
    const auto lanes = static_cast<int64_t>(hn::Lanes(d));
    if (i >= rows) return;
    if (HWY_LIKELY(columns == 2 * lanes)) {
      if (add != nullptr) {
        v0 = hn::Add(v0, hn::LoadU(d, add + i * add_stride));
        v1 = hn::Add(v1, hn::LoadU(d, add + i * add_stride + lanes));
      }
      if (bias != nullptr) {
        v0 = hn::Add(v0, load(d, bias));
        v1 = hn::Add(v1, load(d, bias + lanes));
      }
      store(d, v0, out + i * out_stride);
      store(d, v1, out + i * out_stride + lanes);
      return;
    }
    HWY_ALIGN T sums[2 * hn::MaxLanes(d)];
    hn::StoreU(v0, d, sums);
    hn::StoreU(v1, d, sums + lanes);
    for (int64_t j = 0; j < columns; ++j) {
      T value = sums[j];
      if (add != nullptr) value += add[i * add_stride + j];
      if (bias != nullptr) value += widen(bias[j]);
      out[i * out_stride + j] = static_cast<O>(value);
    }
  }
};

/// One tile of kTileRows rows and two vectors of columns: sums of a[i][k · a_step] · b[k][·] over k
/// < depth, b packed with two vectors a k.
template <class D, typename T, class Result>
HWY_INLINE void multiply_tile(D d, const std::array<const T*, kTileRows>& a, int64_t a_step,
                              const T* HWY_RESTRICT b, int64_t depth, const Result& result) {
  static_assert(kTileRows == 6);
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const T* HWY_RESTRICT a0 = a[0];
  const T* HWY_RESTRICT a1 = a[1];
  const T* HWY_RESTRICT a2 = a[2];
  const T* HWY_RESTRICT a3 = a[3];
  const T* HWY_RESTRICT a4 = a[4];
  const T* HWY_RESTRICT a5 = a[5];
  result.prefetch();
  // Named one by one: vectors of scalable instruction sets cannot live in arrays.
  auto s00 = hn::Zero(d), s01 = hn::Zero(d), s10 = hn::Zero(d), s11 = hn::Zero(d);
  auto s20 = hn::Zero(d), s21 = hn::Zero(d), s30 = hn::Zero(d), s31 = hn::Zero(d);
  auto s40 = hn::Zero(d), s41 = hn::Zero(d), s50 = hn::Zero(d), s51 = hn::Zero(d);
  for (int64_t k = 0, ak = 0; k < depth; ++k, ak += a_step) {
    const auto b0 = hn::LoadU(d, b);
    const auto b1 = hn::LoadU(d, b + lanes);
    b += 2 * lanes;
    auto v = hn::Set(d, a0[ak]);
    s00 = hn::MulAdd(v, b0, s00);
    s01 = hn::MulAdd(v, b1, s01);
    v = hn::Set(d, a1[ak]);
    s10 = hn::MulAdd(v, b0, s10);
    s11 = hn::MulAdd(v, b1, s11);
    v = hn::Set(d, a2[ak]);
    s20 = hn::MulAdd(v, b0, s20);
    s21 = hn::MulAdd(v, b1, s21);
    v = hn::Set(d, a3[ak]);
    s30 = hn::MulAdd(v, b0, s30);
    s31 = hn::MulAdd(v, b1, s31);
    v = hn::Set(d, a4[ak]);
    s40 = hn::MulAdd(v, b0, s40);
    s41 = hn::MulAdd(v, b1, s41);
    v = hn::Set(d, a5[ak]);
    s50 = hn::MulAdd(v, b0, s50);
    s51 = hn::MulAdd(v, b1, s51);
  }
  result.put_row(d, 0, s00, s01);
  result.put_row(d, 1, s10, s11);
  result.put_row(d, 2, s20, s21);
  result.put_row(d, 3, s30, s31);
  result.put_row(d, 4, s40, s41);
  result.put_row(d, 5, s50, s51);
}

/// out[j] = bias[j] + Σ_k a[k] · b[j · b_stride + k] for j < columns: one row of a against the rows
/// of a matrix, nothing packed. columns <= 4.
template <class D, typename S, typename O>
HWY_INLINE void multiply_row(D d, const S* HWY_RESTRICT a, const S* HWY_RESTRICT b,
                             int64_t b_stride, int64_t columns, int64_t depth, const S* bias,
                             O* HWY_RESTRICT out) {
  using T = hn::TFromD<D>;
  // Missing columns repeat the first, so that there is one loop.
  const S* HWY_RESTRICT b0 = b;
  const S* HWY_RESTRICT b1 = columns > 1 ? b + b_stride : b;
  const S* HWY_RESTRICT b2 = columns > 2 ? b + 2 * b_stride : b;
  const S* HWY_RESTRICT b3 = columns > 3 ? b + 3 * b_stride : b;
  auto s0 = hn::Zero(d), s1 = hn::Zero(d), s2 = hn::Zero(d), s3 = hn::Zero(d);
  for_each_vector(d, depth, [&](int64_t k, size_t lanes) {
    const auto v = load_some(d, a + k, lanes);
    s0 = hn::MulAdd(v, load_some(d, b0 + k, lanes), s0);
    s1 = hn::MulAdd(v, load_some(d, b1 + k, lanes), s1);
    s2 = hn::MulAdd(v, load_some(d, b2 + k, lanes), s2);
    s3 = hn::MulAdd(v, load_some(d, b3 + k, lanes), s3);
  });
  const T sums[4] = {sum_lanes(d, s0), sum_lanes(d, s1), sum_lanes(d, s2), sum_lanes(d, s3)};
  for (int64_t j = 0; j < columns; ++j) {
    out[j] = static_cast<O>(bias != nullptr ? sums[j] + widen(bias[j]) : sums[j]);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace gradus::cpu
HWY_AFTER_NAMESPACE();

#endif  // GRADUS_KERNELS_CPU_MATMUL_TILE_INL_H_
