// Row-wise dropout (core/rng.h: Dropout) inside other CPU kernels.

#if defined(GRADUS_KERNELS_CPU_DROPOUT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRADUS_KERNELS_CPU_DROPOUT_INL_H_
#undef GRADUS_KERNELS_CPU_DROPOUT_INL_H_
#else
#define GRADUS_KERNELS_CPU_DROPOUT_INL_H_
#endif

#include <algorithm>

#include "kernels/cpu/philox-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gradus::cpu {
namespace HWY_NAMESPACE {

/// Columns whose random words are drawn at a time: 4 KiB, well inside the first-level cache.
inline constexpr int64_t kDropoutColumns = 1024;

/// scale · value in lanes whose word is >= threshold, 0 in the others.
template <class D>
HWY_INLINE hn::Vec<D> drop(D d, hn::Vec<D> value, const uint32_t* HWY_RESTRICT words,
                           uint32_t threshold, hn::Vec<D> scale) {
  const hn::Rebind<uint32_t, D> d32;
  const auto word = hn::LoadU(d32, words);
  const auto scaled = hn::Mul(value, scale);
  if constexpr (sizeof(hn::TFromD<D>) == 4) {
    const auto dropped = hn::Lt(word, hn::Set(d32, threshold));
    return hn::IfThenZeroElse(hn::RebindMask(d, dropped), scaled);
  } else {
    const hn::Rebind<uint64_t, D> d64;
    const auto dropped = hn::Lt(hn::PromoteTo(d64, word), hn::Set(d64, uint64_t{threshold}));
    return hn::IfThenZeroElse(hn::RebindMask(d, dropped), scaled);
  }
}

/// Calls body(column, lanes, dropped) for the vectors of row (b, t) of a (B, T, columns) tensor,
/// where dropped(value) is the vector after dropout, or `value` itself when dropout is inactive.
template <class D, class Body>
HWY_INLINE void for_each_dropout_vector(D d, const Dropout& dropout, int64_t b, int64_t t,
                                        int64_t columns, Body&& body) {
  if (!dropout.active()) {
    for_each_vector(d, columns, [&](int64_t c, size_t lanes) {
      body(c, lanes, [](hn::Vec<D> value) { return value; });
    });
    return;
  }
  HWY_ALIGN uint32_t words[kDropoutColumns + hn::MaxLanes(d)];
  const auto counter_hi = static_cast<uint64_t>(dropout.first_sample + b);
  const auto counter_lo = static_cast<uint64_t>(dropout.first_position + t) << 32;
  const uint32_t threshold = dropout.threshold();
  const auto scale = hn::Set(d, static_cast<hn::TFromD<D>>(dropout.scale()));
  for (int64_t first = 0; first < columns; first += kDropoutColumns) {
    const int64_t count = std::min(kDropoutColumns, columns - first);
    const int64_t blocks = (count + 3) / 4;
    philox_words(dropout.key, counter_hi, counter_lo + static_cast<uint64_t>(first / 4), blocks,
                 words);
    // The last vector reads words past the row.
    std::fill_n(words + 4 * blocks, hn::Lanes(d), 0u);
    for_each_vector(d, count, [&](int64_t i, size_t lanes) {
      body(first + i, lanes,
           [&](hn::Vec<D> value) { return drop(d, value, words + i, threshold, scale); });
    });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace gradus::cpu
HWY_AFTER_NAMESPACE();

#endif  // GRADUS_KERNELS_CPU_DROPOUT_INL_H_
