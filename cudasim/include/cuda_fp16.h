#pragma once

#include <bit>
#include <cstdint>

#include "cudasim/memory.h"
#include "cudasim/warp.h"
#include "vector_types.h"

// IEEE binary16 as cuda_fp16.h has it: arithmetic is fp32's, rounded once to nearest even.

namespace cudasim {

/// The nearest binary16, ties to even; NaN becomes the device's one NaN.
inline uint16_t float_to_half(float value) {
  const auto word = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>(word >> 16 & 0x8000u);
  const uint32_t magnitude = word & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return 0x7fff;
  }
  if (magnitude >= 0x477ff000u) {  // 65520: half way to what would be next
    return static_cast<uint16_t>(sign | 0x7c00u);
  }
  if (magnitude < 0x38800000u) {  // below 2^-14: multiples of 2^-24, which the addition rounds to
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

inline float half_to_float(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
  const uint32_t magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) {
    return std::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  }
  if (magnitude < 0x400u) {
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(value));
  }
  return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
}

}  // namespace cudasim

struct __half_raw {
  unsigned short x;
};

struct alignas(2) __half {
  __half() = default;
  __half(const __half_raw& raw) : __x(raw.x) {}
  __half(float value) : __x(cudasim::float_to_half(value)) {}
  __half(double value) : __x(cudasim::float_to_half(static_cast<float>(value))) {}
  __half(int value) : __x(cudasim::float_to_half(static_cast<float>(value))) {}

  operator float() const { return cudasim::half_to_float(__x); }
  operator __half_raw() const { return {__x}; }

  // Public only so that it may be copied as bytes without a warning.
  unsigned short __x;
};
static_assert(sizeof(__half) == 2);

struct alignas(4) __half2 {
  __half x, y;
  __half2() = default;
  __half2(const __half& low, const __half& high) : x(low), y(high) {}
};
using half = __half;
using half2 = __half2;

inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline float __half2float(__half x) { return x; }
inline unsigned short __half_as_ushort(__half x) { return static_cast<__half_raw>(x).x; }
inline __half __ushort_as_half(unsigned short x) { return __half_raw{x}; }
inline __half2 __floats2half2_rn(float low, float high) { return {low, high}; }
inline __half2 __float22half2_rn(float2 x) { return {x.x, x.y}; }
inline __half2 __float2half2_rn(float x) { return {x, x}; }
inline float2 __half22float2(__half2 x) { return {x.x, x.y}; }
inline __half2 __halves2half2(__half low, __half high) { return {low, high}; }
inline __half2 __half2half2(__half x) { return {x, x}; }
inline __half __low2half(__half2 x) { return x.x; }
inline __half __high2half(__half2 x) { return x.y; }
inline float __low2float(__half2 x) { return x.x; }
inline float __high2float(__half2 x) { return x.y; }

#define CUDASIM_TYPE __half
#define CUDASIM_PAIR __half2
#include "cudasim/half_arithmetic-inl.h"
#undef CUDASIM_TYPE
#undef CUDASIM_PAIR
