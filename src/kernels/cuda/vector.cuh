#pragma once

// Neighbouring elements that move through memory together, as they are stored, and as floats.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "kernels/cuda/ptx.cuh"

namespace gradus::cuda {

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline float to_float(__half value) { return __half2float(value); }

/// Rounds to nearest, ties to even.
template <typename T>
__device__ inline T from_float(float value) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(value);
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(value);
  } else {
    return value;
  }
}

/// Elements of T in 16 bytes.
template <typename T>
inline constexpr int kLanesOf = 16 / static_cast<int>(sizeof(T));

/// Elements that one thread takes at a time of rows in two types: 16 bytes of the wider.
template <typename R, typename A>
inline constexpr int kLanesOfBoth = kLanesOf<R> < kLanesOf<A> ? kLanesOf<R> : kLanesOf<A>;

/// kCount neighbours of T as they are stored: what a thread holds of a row for later costs a
/// register for two 16-bit elements. Accesses are of 16 bytes, or of all kCount if those are fewer;
/// addresses must be aligned to them.
template <typename T, int kCount>
struct Packed {
  static constexpr int kWords = kCount * static_cast<int>(sizeof(T)) / 4;
  static_assert(kWords == 1 || kWords == 2 || kWords % 4 == 0);

  uint32_t words[kWords];

  __device__ void load(const T* from) {
    if constexpr (kWords == 1) {
      words[0] = *reinterpret_cast<const uint32_t*>(from);
    } else if constexpr (kWords == 2) {
      const uint2 pair = *reinterpret_cast<const uint2*>(from);
      words[0] = pair.x;
      words[1] = pair.y;
    } else {
#pragma unroll
      for (int i = 0; i < kWords; i += 4) {
        const uint4 four = reinterpret_cast<const uint4*>(from)[i / 4];
        words[i] = four.x;
        words[i + 1] = four.y;
        words[i + 2] = four.z;
        words[i + 3] = four.w;
      }
    }
  }

  __device__ void store(T* to) const {
    if constexpr (kWords == 1) {
      *reinterpret_cast<uint32_t*>(to) = words[0];
    } else if constexpr (kWords == 2) {
      *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
    } else {
#pragma unroll
      for (int i = 0; i < kWords; i += 4) {
        reinterpret_cast<uint4*>(to)[i / 4] =
            make_uint4(words[i], words[i + 1], words[i + 2], words[i + 3]);
      }
    }
  }

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = 0;
  }

  __device__ void widen(float (&values)[kCount]) const {
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] = __uint_as_float(words[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        const float2 pair = unpack2<T>(words[i]);
        values[2 * i] = pair.x;
        values[2 * i + 1] = pair.y;
      }
    }
  }

  /// Rounds to nearest, ties to even.
  __device__ void narrow(const float (&values)[kCount]) {
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) words[i] = __float_as_uint(values[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kWords; ++i) words[i] = pack2<T>(values[2 * i], values[2 * i + 1]);
    }
  }
};

/// One element with the interface of Packed.
template <typename T>
struct Single {
  T element;

  __device__ void load(const T* from) { element = *from; }
  __device__ void store(T* to) const { *to = element; }
  __device__ void widen(float (&values)[1]) const { values[0] = to_float(element); }
  __device__ void narrow(const float (&values)[1]) { element = from_float<T>(values[0]); }
};

/// kCount neighbours of T as they are stored, of which there may be one.
template <typename T, int kCount>
using Lanes = std::conditional_t<kCount == 1, Single<T>, Packed<T, kCount>>;

/// kCount neighbours as floats.
template <typename T, int kCount>
__device__ inline void load_floats(float (&values)[kCount], const T* from) {
  Lanes<T, kCount> lanes;
  lanes.load(from);
  lanes.widen(values);
}

template <typename T, int kCount>
__device__ inline void store_floats(T* to, const float (&values)[kCount]) {
  Lanes<T, kCount> lanes;
  lanes.narrow(values);
  lanes.store(to);
}

/// Whether every row of `columns` elements from this address on starts at a multiple of `lanes`
/// elements or of 16 bytes, whichever is less, and ends with a whole group of lanes.
template <typename T>
bool rows_are_aligned(const T* address, int64_t columns, int lanes) {
  const size_t access = lanes * sizeof(T) < 16 ? lanes * sizeof(T) : 16;
  return columns % lanes == 0 && reinterpret_cast<uintptr_t>(address) % access == 0;
}

}  // namespace gradus::cuda
