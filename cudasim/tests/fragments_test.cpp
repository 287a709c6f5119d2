// ldmatrix and mma against the layouts in the PTX ISA's figures, written out here on their own:
// from where each lane's registers come, not how ptx.cpp goes about it.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

#include "device_buffer.h"
#include "kernels/cuda/dynamic_shared.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"

namespace gradus::cuda {
namespace {

// ---- ldmatrix ----

template <int kMatrices, bool kTranspose>
__global__ void load_matrices(uint32_t* out, const uint16_t* in) {
  auto* shared = dynamic_shared<uint16_t>();
  for (int i = 0; i < kMatrices * 2; ++i) {
    shared[i * 32 + threadIdx.x] = in[i * 32 + threadIdx.x];
  }
  __syncthreads();
  const uint16_t* row = shared + threadIdx.x % (8 * kMatrices) * 8;
  if constexpr (kMatrices == 4) {
    uint32_t registers[4];
    if constexpr (kTranspose) {
      ldmatrix_x4_trans(registers, row);
    } else {
      ldmatrix_x4(registers, row);
    }
    for (int i = 0; i < 4; ++i) {
      out[threadIdx.x * 4 + i] = registers[i];
    }
  } else {
    uint32_t registers[2];
    if constexpr (kTranspose) {
      ldmatrix_x2_trans(registers, row);
    } else {
      ldmatrix_x2(registers, row);
    }
    for (int i = 0; i < 2; ++i) {
      out[threadIdx.x * 2 + i] = registers[i];
    }
  }
}

template <int kMatrices, bool kTranspose>
void expect_layout() {
  // Element (row, column) of matrix m is 100*m + 10*row + column.
  std::vector<uint16_t> in(kMatrices * 64);
  for (int i = 0; i < kMatrices * 64; ++i) {
    in[i] = static_cast<uint16_t>(100 * (i / 64) + 10 * (i % 64 / 8) + i % 8);
  }
  DeviceBuffer<uint16_t> device_in(in);
  DeviceBuffer<uint32_t> out(32 * kMatrices);
  launch(load_matrices<kMatrices, kTranspose>, {.block = 32, .shared_bytes = in.size() * 2},
         nullptr, out.data(), device_in.data());
  const std::vector<uint32_t> got = out.download();
  for (int thread = 0; thread < 32; ++thread) {
    for (int m = 0; m < kMatrices; ++m) {
      // "Each thread loads a fragment of a row": threads 0-3 hold row 0, two elements each, and so
      // on.
      const int row = thread >> 2;
      const int column = (thread & 3) << 1;
      const int low = kTranspose ? 100 * m + 10 * column + row : 100 * m + 10 * row + column;
      const int high = kTranspose ? low + 10 : low + 1;
      EXPECT_EQ(got[thread * kMatrices + m] & 0xffffu, static_cast<uint32_t>(low));
      EXPECT_EQ(got[thread * kMatrices + m] >> 16, static_cast<uint32_t>(high));
    }
  }
}

TEST(Ldmatrix, LoadsRowsAsTheFiguresShow) {
  expect_layout<4, false>();
  expect_layout<2, false>();
}
TEST(Ldmatrix, TransposesAsTheFiguresShow) {
  expect_layout<4, true>();
  expect_layout<2, true>();
}

// ---- mma ----

template <typename T>
__global__ void multiply(float* d, const uint32_t* a, const uint32_t* b) {
  uint32_t a_fragment[4];
  uint32_t b_fragment[2];
  float d_fragment[4];
  for (int i = 0; i < 4; ++i) {
    a_fragment[i] = a[threadIdx.x * 4 + i];
    d_fragment[i] = d[threadIdx.x * 4 + i];
  }
  for (int i = 0; i < 2; ++i) {
    b_fragment[i] = b[threadIdx.x * 2 + i];
  }
  mma_m16n8k16<T>(d_fragment, a_fragment, b_fragment);
  for (int i = 0; i < 4; ++i) {
    d[threadIdx.x * 4 + i] = d_fragment[i];
  }
}

uint16_t bits_of(__nv_bfloat16 x) { return __bfloat16_as_ushort(x); }
uint16_t bits_of(__half x) { return __half_as_ushort(x); }

// PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type": element i of a thread's
// fragment.
struct Place {
  int row, column;
};
Place a_place(int thread, int i) {
  const int group = thread >> 2;
  const int in_group = thread % 4;
  const int row = (i >= 0 && i < 2) || (i >= 4 && i < 6) ? group : group + 8;
  const int column = i < 4 ? in_group * 2 + (i & 1) : in_group * 2 + (i & 1) + 8;
  return {row, column};
}
Place b_place(int thread, int i) {
  const int in_group = thread % 4;
  return {i < 2 ? in_group * 2 + (i & 1) : in_group * 2 + (i & 1) + 8, thread >> 2};
}
Place c_place(int thread, int i) {
  return {i < 2 ? thread >> 2 : (thread >> 2) + 8, (thread % 4) * 2 + (i & 1)};
}

template <typename T>
void expect_product() {
  std::mt19937 random(7);
  std::uniform_int_distribution<int> small(-8, 8);  // sums are exact
  float a[16][16], b[16][8], c[16][8];
  for (auto& row : a)
    for (float& x : row) x = static_cast<float>(small(random));
  for (auto& row : b)
    for (float& x : row) x = static_cast<float>(small(random));
  for (auto& row : c)
    for (float& x : row) x = static_cast<float>(small(random)) / 4;
  std::vector<uint32_t> a_words(128), b_words(64);
  std::vector<float> c_words(128);
  for (int thread = 0; thread < 32; ++thread) {
    for (int i = 0; i < 8; ++i) {
      const Place at = a_place(thread, i);
      a_words[thread * 4 + i / 2] |= uint32_t{bits_of(T(a[at.row][at.column]))} << (16 * (i & 1));
    }
    for (int i = 0; i < 4; ++i) {
      const Place at = b_place(thread, i);
      b_words[thread * 2 + i / 2] |= uint32_t{bits_of(T(b[at.row][at.column]))} << (16 * (i & 1));
      const Place to = c_place(thread, i);
      c_words[thread * 4 + i] = c[to.row][to.column];
    }
  }
  DeviceBuffer<uint32_t> device_a(a_words), device_b(b_words);
  DeviceBuffer<float> device_c(c_words);
  launch(multiply<T>, {.block = 32}, nullptr, device_c.data(), device_a.data(), device_b.data());
  const std::vector<float> got = device_c.download();
  for (int thread = 0; thread < 32; ++thread) {
    for (int i = 0; i < 4; ++i) {
      const Place at = c_place(thread, i);
      float want = c[at.row][at.column];
      for (int k = 0; k < 16; ++k) want += a[at.row][k] * b[k][at.column];
      EXPECT_EQ(got[thread * 4 + i], want) << thread << " " << i;
    }
  }
}

TEST(Mma, MultipliesFragmentsLaidOutAsTheFiguresShow) {
  expect_product<__nv_bfloat16>();
  expect_product<__half>();
}

}  // namespace
}  // namespace gradus::cuda
