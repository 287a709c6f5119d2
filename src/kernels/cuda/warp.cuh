#pragma once

// Sums and maxima over a warp, and over a team of warps that share a row.

#include <cuda_runtime.h>

namespace gradus::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

/// The same bits in every lane.
__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  return value;
}

__device__ inline double warp_sum(double value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  return value;
}

/// fmaxf: a NaN is passed over.
__device__ inline float warp_max(float value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}

/// Sums over the warps [first_warp, first_warp + warps) of a block, the same bits in all of their
/// threads. Every thread of the block calls it, each for its own team; slots (one a warp) are not
/// to be used again before the block's next barrier. With one warp a team there is no barrier.
__device__ inline float team_sum(float value, float* slots, int first_warp, int warps) {
  value = warp_sum(value);
  if (warps == 1) return value;
  if (threadIdx.x % kWarp == 0) slots[threadIdx.x / kWarp] = value;
  __syncthreads();
  float total = slots[first_warp];
  for (int warp = 1; warp < warps; ++warp) total += slots[first_warp + warp];
  return total;
}

__device__ inline float2 team_sum(float2 value, float2* slots, int first_warp, int warps) {
  value.x = warp_sum(value.x);
  value.y = warp_sum(value.y);
  if (warps == 1) return value;
  if (threadIdx.x % kWarp == 0) slots[threadIdx.x / kWarp] = value;
  __syncthreads();
  float2 total = slots[first_warp];
  for (int warp = 1; warp < warps; ++warp) {
    total.x += slots[first_warp + warp].x;
    total.y += slots[first_warp + warp].y;
  }
  return total;
}

}  // namespace gradus::cuda
