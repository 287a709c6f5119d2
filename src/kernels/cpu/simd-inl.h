// Vector helpers shared by the CPU kernels: one source for every instruction set, compiled once for
// each by Highway's foreach_target. S is the storage type (double, float, bf16), Compute<S> the
// type of arithmetic: double for double, float for the others.

#if defined(GRADUS_KERNELS_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRADUS_KERNELS_CPU_SIMD_INL_H_
#undef GRADUS_KERNELS_CPU_SIMD_INL_H_
#else
#define GRADUS_KERNELS_CPU_SIMD_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <type_traits>

#include "core/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace gradus::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

template <typename S>
using Compute = std::conditional_t<std::is_same_v<S, double>, double, float>;

/// The full vector of S's compute type.
template <typename S>
using Tag = hn::ScalableTag<Compute<S>>;

/// Lanes at p, widened to the compute type. No alignment asked for.
template <class D, typename S>
HWY_INLINE hn::Vec<D> load(D d, const S* HWY_RESTRICT p) {
  if constexpr (std::is_same_v<S, bf16>) {
    const hn::Rebind<uint16_t, D> d16;
    const hn::Rebind<uint32_t, D> d32;
    const auto half = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p));
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, half)));
  } else {
    return hn::LoadU(d, p);
  }
}

/// Narrows to bf16 with round to nearest, ties to even; NaN stays NaN.
template <class D>
HWY_INLINE auto round_to_bf16([[maybe_unused]] D d, hn::Vec<D> value) {
  const hn::Rebind<uint32_t, D> d32;
  const hn::Rebind<uint16_t, D> d16;
  const auto word = hn::BitCast(d32, value);
  const auto odd = hn::And(hn::ShiftRight<16>(word), hn::Set(d32, 1u));
  const auto rounded = hn::ShiftRight<16>(hn::Add(word, hn::Add(odd, hn::Set(d32, 0x7fffu))));
  const auto quiet = hn::Or(hn::ShiftRight<16>(word), hn::Set(d32, 0x0040u));
  const auto is_nan = hn::RebindMask(d32, hn::IsNaN(value));
  const auto bits = hn::IfThenElse(is_nan, quiet, rounded);
  return hn::TruncateTo(d16, bits);
}

template <class D, typename S>
HWY_INLINE void store(D d, hn::Vec<D> value, S* HWY_RESTRICT p) {
  if constexpr (std::is_same_v<S, bf16>) {
    const hn::Rebind<uint16_t, D> d16;
    hn::StoreU(round_to_bf16(d, value), d16, reinterpret_cast<uint16_t*>(p));
  } else {
    hn::StoreU(value, d, p);
  }
}

/// The first `count` < Lanes(d) elements at p; the other lanes are zero. Reads nothing beyond them.
template <class D, typename S>
HWY_INLINE hn::Vec<D> load_n(D d, const S* HWY_RESTRICT p, size_t count) {
  HWY_ALIGN S buffer[hn::MaxLanes(d)] = {};
  for (size_t i = 0; i < count; ++i) buffer[i] = p[i];
  return load(d, buffer);
}

template <class D, typename S>
HWY_INLINE void store_n(D d, hn::Vec<D> value, S* HWY_RESTRICT p, size_t count) {
  HWY_ALIGN S buffer[hn::MaxLanes(d)];
  store(d, value, buffer);
  for (size_t i = 0; i < count; ++i) p[i] = buffer[i];
}

/// Calls body(offset, lanes) with full vectors first and one partial vector last. body loads and
/// stores with load_some / store_some.
template <class D, class Body>
HWY_INLINE void for_each_vector(D d, int64_t count, Body&& body) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) body(i, static_cast<size_t>(lanes));
  if (i < count) body(i, static_cast<size_t>(count - i));
}

template <class D, typename S>
HWY_INLINE hn::Vec<D> load_some(D d, const S* HWY_RESTRICT p, size_t lanes) {
  return HWY_LIKELY(lanes == hn::Lanes(d)) ? load(d, p) : load_n(d, p, lanes);
}

template <class D, typename S>
HWY_INLINE void store_some(D d, hn::Vec<D> value, S* HWY_RESTRICT p, size_t lanes) {
  if (HWY_LIKELY(lanes == hn::Lanes(d))) {
    store(d, value, p);
  } else {
    store_n(d, value, p, lanes);
  }
}

/// Sum of the lanes, in every lane's order of the target: deterministic on one kind of CPU.
template <class D>
HWY_INLINE hn::TFromD<D> sum_lanes(D d, hn::Vec<D> value) {
  return hn::GetLane(hn::SumOfLanes(d, value));
}

}  // namespace HWY_NAMESPACE
}  // namespace gradus::cpu
HWY_AFTER_NAMESPACE();

#endif  // GRADUS_KERNELS_CPU_SIMD_INL_H_
