#pragma once

#include <bit>
#include <cstdint>

#include "cudasim/memory.h"
#include "cudasim/warp.h"
#include "vector_types.h"

// bfloat16 as cuda_bf16.h has it: arithmetic is fp32's, rounded once to nearest even.

struct __nv_bfloat16_raw {
  unsigned short x;
};

struct alignas(2) __nv_bfloat16 {
  __nv_bfloat16() = default;
  __nv_bfloat16(const __nv_bfloat16_raw& raw) : __x(raw.x) {}
  __nv_bfloat16(float value) : __x(rounded(value)) {}
  __nv_bfloat16(double value) : __x(rounded(static_cast<float>(value))) {}
  __nv_bfloat16(int value) : __x(rounded(static_cast<float>(value))) {}

  operator float() const { return std::bit_cast<float>(uint32_t{__x} << 16); }
  operator __nv_bfloat16_raw() const { return {__x}; }

  // Public only so that it may be copied as bytes without a warning.
  unsigned short __x;

 private:
  static unsigned short rounded(float value) {
    const auto word = std::bit_cast<uint32_t>(value);
    if ((word & 0x7fffffffu) > 0x7f800000u) {
      return 0x7fff;  // the device's one NaN
    }
    return static_cast<unsigned short>((word + 0x7fffu + (word >> 16 & 1u)) >> 16);
  }
};
static_assert(sizeof(__nv_bfloat16) == 2);

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
  __nv_bfloat162() = default;
  __nv_bfloat162(const __nv_bfloat16& low, const __nv_bfloat16& high) : x(low), y(high) {}
};
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) {
  return static_cast<__nv_bfloat16_raw>(x).x;
}
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) { return __nv_bfloat16_raw{x}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float low, float high) { return {low, high}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 x) { return {x.x, x.y}; }
inline __nv_bfloat162 __float2bfloat162_rn(float x) { return {x, x}; }
inline float2 __bfloat1622float2(__nv_bfloat162 x) { return {x.x, x.y}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 low, __nv_bfloat16 high) {
  return {low, high};
}
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return {x, x}; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 x) { return x.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 x) { return x.y; }
inline float __low2float(__nv_bfloat162 x) { return x.x; }
inline float __high2float(__nv_bfloat162 x) { return x.y; }

#define CUDASIM_TYPE __nv_bfloat16
#define CUDASIM_PAIR __nv_bfloat162
#include "cudasim/half_arithmetic-inl.h"
#undef CUDASIM_TYPE
#undef CUDASIM_PAIR
