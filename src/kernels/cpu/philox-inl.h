// Philox4x32-10 over vectors of counters: the numbers of core/rng.h, several blocks at a time.

#if defined(GRADUS_KERNELS_CPU_PHILOX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRADUS_KERNELS_CPU_PHILOX_INL_H_
#undef GRADUS_KERNELS_CPU_PHILOX_INL_H_
#else
#define GRADUS_KERNELS_CPU_PHILOX_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "core/rng.h"

HWY_BEFORE_NAMESPACE();
namespace gradus::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET == HWY_SCALAR

/// out[4 i + w] = philox4x32(key, counter_hi, first_counter_lo + i)[w] for i in [0, count).
/// counter_lo wraps at 2^64.
inline void philox_words(uint64_t key, uint64_t counter_hi, uint64_t first_counter_lo,
                         int64_t count, uint32_t* HWY_RESTRICT out) {
  for (int64_t i = 0; i < count; ++i) {
    const auto words = philox4x32(key, counter_hi, first_counter_lo + static_cast<uint64_t>(i));
    std::copy(words.begin(), words.end(), out + 4 * i);
  }
}

#else

namespace philox_detail {

using D64 = hn::ScalableTag<uint64_t>;
using V64 = hn::Vec<D64>;

HWY_INLINE V64 multiply_low_words(V64 a, V64 b) {
  const hn::Repartition<uint32_t, D64> d32;
  return hn::MulEven(hn::BitCast(d32, a), hn::BitCast(d32, b));
}

/// One round. A lane holds one block's word in its lower 32 bits. The upper 32 are whatever the
/// round before left: the products read only the lower ones, and store_words clears them.
HWY_INLINE void round(V64& c0, V64& c1, V64& c2, V64& c3, V64 key0, V64 key1) {
  const D64 d;
  const V64 product0 = multiply_low_words(c0, hn::Set(d, uint64_t{0xD2511F53u}));
  const V64 product1 = multiply_low_words(c2, hn::Set(d, uint64_t{0xCD9E8D57u}));
  c0 = hn::Xor(hn::ShiftRight<32>(product1), hn::Xor(c1, key0));
  c1 = product1;
  c2 = hn::Xor(hn::ShiftRight<32>(product0), hn::Xor(c3, key1));
  c3 = product0;
}

/// Words 0..3 of each block, blocks in lane order. Little-endian, as every target of Highway 1.0.
HWY_INLINE void store_words(V64 c0, V64 c1, V64 c2, V64 c3, uint32_t* HWY_RESTRICT out) {
  const D64 d;
  const V64 low = hn::Set(d, uint64_t{0xFFFFFFFFu});
  const V64 words01 = hn::Or(hn::And(c0, low), hn::ShiftLeft<32>(c1));
  const V64 words23 = hn::Or(hn::And(c2, low), hn::ShiftLeft<32>(c3));
  hn::StoreInterleaved2(words01, words23, d, reinterpret_cast<uint64_t*>(out));
}

}  // namespace philox_detail

/// out[4 i + w] = philox4x32(key, counter_hi, first_counter_lo + i)[w] for i in [0, count).
/// counter_lo wraps at 2^64. No alignment asked for.
inline void philox_words(uint64_t key, uint64_t counter_hi, uint64_t first_counter_lo,
                         int64_t count, uint32_t* HWY_RESTRICT out) {
  using philox_detail::D64;
  using philox_detail::V64;
  const D64 d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const V64 weyl0 = hn::Set(d, uint64_t{0x9E3779B9u});
  const V64 weyl1 = hn::Set(d, uint64_t{0xBB67AE85u});
  const V64 stride = hn::Set(d, static_cast<uint64_t>(lanes));
  V64 counter = hn::Add(hn::Set(d, first_counter_lo), hn::Iota(d, 0));

  int64_t i = 0;
  // Two vectors at a time: a round of one waits for its products, the other fills the gap.
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    V64 a0 = counter;
    V64 b0 = hn::Add(counter, stride);
    counter = hn::Add(b0, stride);
    V64 a1 = hn::ShiftRight<32>(a0);
    V64 b1 = hn::ShiftRight<32>(b0);
    V64 a2 = hn::Set(d, counter_hi);
    V64 b2 = a2;
    V64 a3 = hn::Set(d, counter_hi >> 32);
    V64 b3 = a3;
    V64 key0 = hn::Set(d, key);
    V64 key1 = hn::Set(d, key >> 32);
    for (int r = 0; r < 10; ++r) {
      philox_detail::round(a0, a1, a2, a3, key0, key1);
      philox_detail::round(b0, b1, b2, b3, key0, key1);
      key0 = hn::Add(key0, weyl0);
      key1 = hn::Add(key1, weyl1);
    }
    philox_detail::store_words(a0, a1, a2, a3, out + 4 * i);
    philox_detail::store_words(b0, b1, b2, b3, out + 4 * (i + lanes));
  }
  for (; i < count; i += lanes) {
    V64 c0 = counter;
    V64 c1 = hn::ShiftRight<32>(counter);
    V64 c2 = hn::Set(d, counter_hi);
    V64 c3 = hn::Set(d, counter_hi >> 32);
    V64 key0 = hn::Set(d, key);
    V64 key1 = hn::Set(d, key >> 32);
    for (int r = 0; r < 10; ++r) {
      philox_detail::round(c0, c1, c2, c3, key0, key1);
      key0 = hn::Add(key0, weyl0);
      key1 = hn::Add(key1, weyl1);
    }
    if (i + lanes <= count) {
      philox_detail::store_words(c0, c1, c2, c3, out + 4 * i);
    } else {
      HWY_ALIGN uint32_t last[4 * hn::MaxLanes(D64())];
      philox_detail::store_words(c0, c1, c2, c3, last);
      std::memcpy(out + 4 * i, last, static_cast<size_t>(count - i) * 4 * sizeof(uint32_t));
    }
    counter = hn::Add(counter, stride);
  }
}

#endif  // HWY_TARGET == HWY_SCALAR

}  // namespace HWY_NAMESPACE
}  // namespace gradus::cpu
HWY_AFTER_NAMESPACE();

#endif  // GRADUS_KERNELS_CPU_PHILOX_INL_H_
