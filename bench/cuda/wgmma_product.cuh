#pragma once

// out (M, N) = a (M, K) bᵀ with b (N, K), bf16, sums in fp32: the product of a linear layer.
// Persistent blocks of 128 x kColumns; a producer thread streams slabs of 64 of the reduced axis
// through a ring, two warpgroups hold 64 x kColumns sums each and store them from registers.

#include "bench/cuda/wgmma.cuh"

namespace gradus::cuda::hopper {

struct ProductArguments {
  CUtensorMap a, b;  ///< boxes of 128 and kColumns rows
  __nv_bfloat16* out;
  uint32_t* fault;
  int m, n, k;     ///< m and n multiples of 8; k of 64
  int super_rows;  ///< blocks of rows that share columns of b in the L2 cache
};

template <int kColumns_, int kRing>
struct ProductTile {
  static constexpr int kColumns = kColumns_, kStages = kRing, kThreads = 384;
  static constexpr uint32_t kABytes = 128 * kSlabRow, kBBytes = kColumns * kSlabRow;
  static constexpr uint32_t kB = kStages * kABytes, kBarriers = kB + kStages * kBBytes;
  static constexpr uint32_t kSharedBytes = kBarriers + 16 * kStages;
  static constexpr int kLaunchRegisters = 168;
};

namespace product_detail {

struct Place {
  int row, column;
};

template <class Tile>
__device__ __forceinline__ int items(const ProductArguments& p) {
  return (p.m + 127) / 128 * ((p.n + Tile::kColumns - 1) / Tile::kColumns);
}

template <class Tile>
__device__ __forceinline__ Place place_of(const ProductArguments& p, int item) {
  const int rows = (p.m + 127) / 128, columns = (p.n + Tile::kColumns - 1) / Tile::kColumns;
  const int band = item / (p.super_rows * columns);
  const int height = min(p.super_rows, rows - band * p.super_rows);
  const int in_band = item - band * p.super_rows * columns;
  return {(band * p.super_rows + in_band % height) * 128, in_band / height * Tile::kColumns};
}

template <class Tile>
__device__ __forceinline__ void produce(const ProductArguments& p, uint32_t base, uint32_t bars) {
  RingPlace<Tile::kStages> ring;
  for (int item = blockIdx.x; item < items<Tile>(p); item += gridDim.x) {
    const Place place = place_of<Tile>(p, item);
    for (int k = 0; k < p.k; k += 64) {
      const uint32_t full = bars + 16 * ring.slot;
      barrier_wait(full + 8, ring.parity ^ 1, p.fault, 31);
      barrier_expect(full, Tile::kABytes + Tile::kBBytes);
      tma_load(base + ring.slot * Tile::kABytes, p.a, full, k, 0, place.row, 0);
      tma_load(base + Tile::kB + ring.slot * Tile::kBBytes, p.b, full, k, 0, place.column, 0);
      ring.next();
    }
  }
}

template <class Tile>
__device__ __forceinline__ void consume(const ProductArguments& p, uint32_t base, uint32_t bars,
                                        int w) {
  constexpr int kN = Tile::kColumns;
  const int warp = (threadIdx.x / 32) % 4, lane = threadIdx.x % 32;
  RingPlace<Tile::kStages> ring, behind;
  float sums[kN / 2];
  const auto release = [&] {
    __syncwarp();
    if (lane == 0) barrier_arrive(bars + 16 * behind.slot + 8);
    behind.next();
  };
  for (int item = blockIdx.x; item < items<Tile>(p); item += gridDim.x) {
    const Place place = place_of<Tile>(p, item);
    zero(sums);
    for (int k = 0; k < p.k; k += 64) {
      barrier_wait(bars + 16 * ring.slot, ring.parity, p.fault, 32);
      const uint32_t a = base + ring.slot * Tile::kABytes + w * 64 * kSlabRow;
      const uint32_t b = base + Tile::kB + ring.slot * Tile::kBBytes;
      pin(sums);
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        wgmma_ss<0, 0>(sums, descriptor_k_major(a + step * 32), descriptor_k_major(b + step * 32),
                       true);
      }
      wgmma_commit();
      wgmma_wait<1>();
      pin(sums);
      if (k > 0) release();
      ring.next();
    }
    wgmma_wait<0>();
    pin(sums);
    release();
    const int row = place.row + w * 64 + warp * 16 + lane / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row + 8 * half >= p.m) continue;
      __nv_bfloat16* out = p.out + static_cast<int64_t>(row + 8 * half) * p.n;
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) {
        const int column = place.column + 8 * j + lane % 4 * 2;
        if (column < p.n) {
          *reinterpret_cast<uint32_t*>(out + column) =
              pack(sums[4 * j + 2 * half], sums[4 * j + 2 * half + 1]);
        }
      }
    }
  }
}

}  // namespace product_detail

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    product_kernel(const __grid_constant__ ProductArguments p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDACC__)
  extern __shared__ __align__(1024) uint8_t attention_shared[];
  const uint32_t base = shared_address(attention_shared), bars = base + Tile::kBarriers;
  const int warpgroup = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0);
  if (threadIdx.x == 0) {
    if (base % kSwizzleAtom != 0) stop(p.fault, 99, base);
    for (int s = 0; s < Tile::kStages; ++s) {
      barrier_init(bars + 16 * s, 1);
      barrier_init(bars + 16 * s + 8, 8);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (warpgroup == 0) {
    registers_release<24>();
    if (threadIdx.x == 0) product_detail::produce<Tile>(p, base, bars);
  } else {
    registers_acquire<240>();
    product_detail::consume<Tile>(p, base, bars, warpgroup - 1);
  }
#endif
}

}  // namespace gradus::cuda::hopper
