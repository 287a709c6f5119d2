#pragma once

// Tiles of bf16 in shared memory as tensor copies write and warpgroup products read them, products
// of whole tiles, and the order in which blocks take their work.

#include "bench/cuda/wgmma_ptx.cuh"

namespace gradus::cuda::hopper {

// A tile lies in shared memory as slabs of 64 columns: rows of 128 bytes, in which the 16-byte
// chunk c of row r is at place c ^ (r % 8) (128-byte swizzle, as TMA writes it); each slab starts
// at a multiple of 1024 bytes. The descriptor of an operand:
//   bits 0-13 start address / 16, 16-29 leading byte offset / 16, 32-45 stride byte offset / 16,
//   49-51 base offset (0: patterns start at multiples of 1024), 62-63 swizzle (1: 128 bytes).

constexpr uint32_t kSlabRow = 128;       // bytes
constexpr uint32_t kSwizzleAtom = 1024;  // eight rows

__device__ __forceinline__ uint64_t descriptor(uint32_t address, uint32_t leading,
                                               uint32_t stride) {
  const uint32_t low = ((address & 0x3ffffu) >> 4) | ((leading >> 4) << 16);
  const uint32_t high = (stride >> 4) | (1u << 30);
  return (static_cast<uint64_t>(high) << 32) | low;
}

/// The reduced axis runs along the 128-byte row: 16 of its elements (32 bytes) an instruction, so
/// step k of a slab starts 32 k bytes on. Groups of eight rows are `stride` = 1024 apart; leading
/// offset unused.
__device__ __forceinline__ uint64_t descriptor_k_major(uint32_t address) {
  return descriptor(address, 16, kSwizzleAtom);
}

/// The reduced axis runs down the rows: 16 rows (2048 bytes) an instruction, as two groups of eight
/// `stride` = 1024 apart; the kept axis runs along the row, its next 64 elements `slab` bytes on.
__device__ __forceinline__ uint64_t descriptor_mn_major(uint32_t address, uint32_t slab) {
  return descriptor(address, slab, kSwizzleAtom);
}

/// Accumulators that start at zero, as ordinary registers before any product is under way.
template <int kCount>
__device__ __forceinline__ void zero(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) registers[i] = 0.0f;
  pin(registers);
}

template <int kN>
__device__ __forceinline__ void pack_all(uint32_t (&packed)[kN / 4],
                                         const float (&values)[kN / 2]) {
#pragma unroll
  for (int i = 0; i < kN / 4; ++i) packed[i] = pack(values[2 * i], values[2 * i + 1]);
}

/// d (64, N) = a (64, kDepth) bᵀ with b (N, kDepth), both as slabs along the depth.
template <int kDepth, int kN>
__device__ __forceinline__ void product_nt(float (&d)[kN / 2], uint32_t a, uint32_t b) {
#pragma unroll
  for (int k = 0; k < kDepth / 16; ++k) {
    const uint32_t slab = k / 4, step = (k % 4) * 32;
    const uint64_t a_step = descriptor_k_major(a + slab * 64 * kSlabRow + step);
    const uint64_t b_step = descriptor_k_major(b + slab * kN * kSlabRow + step);
    if (k == 0) {
      wgmma_ss_first<0, 0>(d, a_step, b_step);
    } else {
      wgmma_ss<0, 0>(d, a_step, b_step, true);
    }
  }
}

/// d (64, kN) (+)= a (64, kDepth) b with a in registers and b (kDepth, kN) as slabs along kN.
template <int kDepth, int kN>
__device__ __forceinline__ void product_nn(float (&d)[kN / 2], const uint32_t (&a)[kDepth / 4],
                                           uint32_t b, bool accumulate) {
#pragma unroll
  for (int k = 0; k < kDepth / 16; ++k) {
    wgmma_rs<1>(d, &a[4 * k], descriptor_mn_major(b + k * 2 * kSwizzleAtom, kDepth * kSlabRow),
                k != 0 || accumulate);
  }
}

/// Writes a warpgroup's (64, kN) tile times `factor[row half]` as bf16 slabs of 64 rows.
template <int kN>
__device__ __forceinline__ void write_tile(uint32_t tile, const float (&d)[kN / 2], float factor0,
                                           float factor1) {
  const uint32_t warp = (threadIdx.x / 32) % 4, lane = threadIdx.x % 32;
  const uint32_t row = warp * 16 + lane / 4;
#pragma unroll
  for (int j = 0; j < kN / 8; ++j) {
    const uint32_t place = tile + (j / 8) * 64 * kSlabRow + row * kSlabRow +
                           (((j % 8) ^ (lane / 4)) * 16) + (lane % 4) * 4;
    const uint32_t upper = pack(d[4 * j] * factor0, d[4 * j + 1] * factor0);
    const uint32_t lower = pack(d[4 * j + 2] * factor1, d[4 * j + 3] * factor1);
    shared_store(place, upper);
    shared_store(place + 8 * kSlabRow, lower);
  }
}

/// A place in the ring: slot, and the parity of the phase that fills it.
template <int kStages>
struct RingPlace {
  int slot = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void next() {
    if (++slot == kStages) {
      slot = 0;
      parity ^= 1;
    }
  }
};

/// The blocks' order of work: heavy tiles first within a group of (batch, head) pairs whose keys
/// and values share the L2 cache. Without a counter a block does the item of its index. With one,
/// each of a few blocks takes items until there are no more; a launch of g blocks moves the counter
/// by items + g, so that the next starts at a base that the host knows.
struct WorkOrder {
  int items, tiles, group;
  int* counter = nullptr;
  int base = 0;

  __device__ __forceinline__ int take() const {
    return counter != nullptr ? atomicAdd(counter, 1) - base : static_cast<int>(blockIdx.x);
  }
  /// The next item, or one past the last.
  __device__ __forceinline__ int take_next() const { return counter != nullptr ? take() : items; }
  /// rank 0 is the heaviest tile.
  __device__ __forceinline__ void place(int item, int& rank, int& pair) const {
    const int per_group = group * tiles;
    const int in_group = item % per_group;
    rank = in_group / group;
    pair = item / per_group * group + in_group % group;
  }
};

}  // namespace gradus::cuda::hopper
