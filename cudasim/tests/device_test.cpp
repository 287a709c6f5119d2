// What a kernel finds on the device: its place, its warp, its types.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/dtype.h"
#include "device_buffer.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"

namespace gradus::cuda {
namespace {

// ---- places ----

__global__ void count_threads(int* out) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  ++out[block * blockDim.x * blockDim.y * blockDim.z + thread];
}

TEST(Places, EveryThreadOfEveryBlockRunsOnce) {
  const dim3 grid(3, 2, 5), block(7, 3, 2);
  const size_t threads = 3 * 2 * 5 * 7 * 3 * 2;
  DeviceBuffer<int> out(std::vector<int>(threads, 0));
  launch(count_threads, {.grid = grid, .block = block}, nullptr, out.data());
  EXPECT_EQ(out.download(), std::vector<int>(threads, 1));
}

// ---- warps ----

__global__ void shuffles(int* out, int width) {
  const int lane = static_cast<int>(threadIdx.x);
  int* row = out + 4 * lane;
  row[0] = __shfl_sync(~0u, lane, 3, width);
  row[1] = __shfl_up_sync(~0u, lane, 2, width);
  row[2] = __shfl_down_sync(~0u, lane, 2, width);
  row[3] = __shfl_xor_sync(~0u, lane, 5, width);
}

TEST(Warps, ShuffleWithinSegments) {
  for (const int width : {2, 4, 8, 16, 32}) {
    DeviceBuffer<int> out(128);
    launch(shuffles, {.block = 32}, nullptr, out.data(), width);
    const std::vector<int> got = out.download();
    for (int lane = 0; lane < 32; ++lane) {
      const int begin = lane / width * width;
      const int end = begin + width;
      EXPECT_EQ(got[4 * lane], begin + 3 % width);
      EXPECT_EQ(got[4 * lane + 1], lane - 2 >= begin ? lane - 2 : lane);
      EXPECT_EQ(got[4 * lane + 2], lane + 2 < end ? lane + 2 : lane);
      EXPECT_EQ(got[4 * lane + 3], (lane ^ 5) < end ? lane ^ 5 : lane);
    }
  }
}

__global__ void votes(unsigned* out) {
  const unsigned lane = threadIdx.x;
  unsigned* row = out + 12 * lane;
  row[0] = __ballot_sync(~0u, lane % 3 == 0);
  row[1] = static_cast<unsigned>(__any_sync(~0u, lane == 31));
  row[2] = static_cast<unsigned>(__all_sync(~0u, lane < 31));
  row[3] = static_cast<unsigned>(__all_sync(~0u, 8));
  row[4] = __reduce_add_sync(~0u, lane);
  row[5] = static_cast<unsigned>(__reduce_min_sync(~0u, static_cast<int>(lane) - 40));
  row[6] = __reduce_max_sync(~0u, lane * 3);
  row[7] = __reduce_or_sync(~0u, 1u << lane % 7);
  row[8] = __reduce_and_sync(~0u, lane | 64);
  row[9] = __reduce_xor_sync(~0u, lane == 4 ? 9u : 0u);
  // Two halves, each on its own.
  const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
  if (lane < 16) {
    row[10] = __reduce_add_sync(half, lane);
  } else {
    row[10] = __reduce_add_sync(half, 1u);
  }
  row[11] = static_cast<unsigned>(__syncthreads_count(lane < 5));
}

TEST(Warps, VoteAndReduce) {
  DeviceBuffer<unsigned> out(32 * 12);
  launch(votes, {.block = 32}, nullptr, out.data());
  const std::vector<unsigned> got = out.download();
  for (unsigned lane = 0; lane < 32; ++lane) {
    const std::vector<unsigned> want{0x49249249,
                                     1,
                                     0,
                                     1,
                                     496,
                                     static_cast<unsigned>(-40),
                                     93,
                                     0x7f,
                                     64,
                                     9,
                                     lane < 16 ? 120u : 16u,
                                     5};
    EXPECT_EQ(std::vector<unsigned>(got.begin() + 12 * lane, got.begin() + 12 * lane + 12), want);
  }
}

__global__ void block_votes(int* out) {
  const int and_all = __syncthreads_and(threadIdx.x < 70);
  const int or_none = __syncthreads_or(threadIdx.x > 70);
  const int or_one = __syncthreads_or(threadIdx.x == 69);
  out[threadIdx.x] = and_all + 2 * or_none + 4 * or_one;
}

TEST(Blocks, Vote) {
  DeviceBuffer<int> out(70);
  launch(block_votes, {.block = 70}, nullptr, out.data());
  EXPECT_EQ(out.download(), std::vector<int>(70, 5));
}

// ---- atomics ----

__global__ void atomics(int* integer, float* real) {
  atomicAdd(integer, 1);
  atomicAdd(real, 0.5f);
  atomicMax(integer + 1, static_cast<int>(threadIdx.x));
}

TEST(Blocks, AddAtomically) {
  DeviceBuffer<int> integer(std::vector<int>{0, -1});
  DeviceBuffer<float> real(std::vector<float>{0});
  launch(atomics, {.grid = 3, .block = 100}, nullptr, integer.data(), real.data());
  EXPECT_EQ(integer.download(), (std::vector<int>{300, 99}));
  EXPECT_EQ(real.download(), std::vector<float>{150});
}

// ---- types ----

TEST(Types, Bf16IsTheProjectsOwn) {
  for (uint64_t word = 0; word <= 0xffffffffu; word += 65521 * 7 + 2) {
    const float value = std::bit_cast<float>(static_cast<uint32_t>(word));
    const __nv_bfloat16 rounded(value);
    if (std::isnan(value)) {
      EXPECT_EQ(__bfloat16_as_ushort(rounded), 0x7fff);
    } else {
      EXPECT_EQ(__bfloat16_as_ushort(rounded), bf16(value).bits);
      EXPECT_EQ(float(rounded), float(bf16(value)));
    }
  }
}

/// The value of a binary16, from its definition.
double half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  const double sign = bits >> 15 ? -1 : 1;
  return exponent == 0 ? sign * std::ldexp(fraction, -24)
                       : sign * std::ldexp(1024 + fraction, exponent - 25);
}

TEST(Types, Fp16IsIeee) {
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    for (const uint32_t sign : {0u, 0x8000u}) {
      const auto half_bits = static_cast<uint16_t>(bits | sign);
      const double value = half_value(half_bits);
      EXPECT_EQ(double{float(__ushort_as_half(half_bits))}, value);
      EXPECT_EQ(__half_as_ushort(__half(static_cast<float>(value))), half_bits);
      // Half way to the next: to the even one; a little beyond: to the next.
      const double next = bits + 1 == 0x7c00 ? (sign ? -65536.0 : 65536.0)
                                             : half_value(static_cast<uint16_t>(half_bits + 1));
      const auto middle = static_cast<float>((value + next) / 2);
      EXPECT_EQ(__half_as_ushort(__half(middle)), half_bits + (bits & 1));
      EXPECT_EQ(__half_as_ushort(__half(std::nextafter(middle, 2 * static_cast<float>(next)))),
                half_bits + 1);
      EXPECT_EQ(__half_as_ushort(__half(std::nextafter(middle, 0.0f))), half_bits);
    }
  }
  EXPECT_EQ(__half_as_ushort(__half(std::numeric_limits<float>::infinity())), 0x7c00);
  EXPECT_EQ(float(__ushort_as_half(0xfc00)), -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(float(__half(std::nanf("")))));
  EXPECT_EQ(__half_as_ushort(__half(1e-10f)), 0);
}

TEST(Types, PairsHaveTheLowHalfFirst) {
  EXPECT_EQ(pack2<__nv_bfloat16>(1.0f, -2.0f), 0xc0003f80u);
  EXPECT_EQ(pack2<__half>(1.0f, -2.0f), 0xc0003c00u);
  EXPECT_EQ(unpack2<__nv_bfloat16>(0xc0003f80u).y, -2.0f);
  EXPECT_EQ(unpack2<__half>(0xc0003c00u).x, 1.0f);
}

TEST(Types, VectorsAreAlignedAsTheDevices) {
  EXPECT_EQ(alignof(float4), 16u);
  EXPECT_EQ(alignof(float3), 4u);
  EXPECT_EQ(alignof(uint2), 8u);
  EXPECT_EQ(alignof(double2), 16u);
  EXPECT_EQ(alignof(uchar4), 4u);
  EXPECT_EQ(alignof(__nv_bfloat162), 4u);
}

TEST(Types, BitsOfWords) {
  EXPECT_EQ(__umulhi(0xffffffffu, 0xffffffffu), 0xfffffffeu);
  EXPECT_EQ(__umul64hi(~0ull, ~0ull), ~0ull - 1);
  EXPECT_EQ(__brev(1u), 0x80000000u);
  EXPECT_EQ(__clz(1), 31);
  EXPECT_EQ(__ffs(8), 4);
  EXPECT_EQ(__byte_perm(0x33221100u, 0x77665544u, 0x7531), 0x77553311u);
  EXPECT_EQ(__funnelshift_l(0x80000000u, 1u, 1), 3u);
}

}  // namespace
}  // namespace gradus::cuda
