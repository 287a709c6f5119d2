// Each fault that cudasim is there to catch, made on purpose.
#include <cuda_runtime.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <csignal>
#include <cstdlib>
#include <string>
#include <vector>

#include "core/error.h"
#include "cudasim/control.h"
#include "device_buffer.h"
#include "kernels/cuda/dynamic_shared.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"

namespace gradus::cuda {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int kSeeds = 32;

class Faults : public ::testing::Test {
 protected:
  void TearDown() override { cudaDeviceReset(); }

  /// What `run` is caught at: the first fault in words, after an error of the device.
  template <typename Run>
  std::string fault(cudaError_t error, Run&& run) {
    run();
    EXPECT_EQ(cudaDeviceSynchronize(), error);
    std::string message = cudasim::last_fault();
    cudaDeviceReset();
    return message;
  }

  /// With how many of the seeds `wrong` says so.
  template <typename Wrong>
  int caught(Wrong&& wrong) {
    int count = 0;
    for (int seed = 0; seed < kSeeds; ++seed) {
      cudasim::set_seed(static_cast<uint64_t>(seed));
      count += wrong();
    }
    return count;
  }
  /// That `wrong` is seen to be wrong: with `least` of the seeds, or by ThreadSanitizer.
  template <typename Wrong>
  void expect_caught(Wrong&& wrong, [[maybe_unused]] int least) {
#if defined(__SANITIZE_THREAD__)
    EXPECT_EXIT(
        {
          wrong();
          std::exit(0);
        },
        ::testing::ExitedWithCode(66), "data race(.|\n)*faults_test.cpp");
#else
    EXPECT_GE(caught(wrong), least);
#endif
  }
};

// ---- barriers that are missing ----

template <bool kBarrier>
__global__ void reverse(float* out) {
  __shared__ float values[128];
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (kBarrier) {
    __syncthreads();
  }
  out[threadIdx.x] = values[127 - threadIdx.x];
}

template <bool kBarrier>
bool reverse_is_wrong() {
  DeviceBuffer<float> out(128);
  launch(reverse<kBarrier>, {.block = 128}, nullptr, out.data());
  const std::vector<float> got = out.download();
  for (int i = 0; i < 128; ++i) {
    if (got[i] != static_cast<float>(127 - i)) {
      return true;
    }
  }
  return false;
}

TEST_F(Faults, AReadBeforeTheBarrier) {
  EXPECT_EQ(caught(reverse_is_wrong<true>), 0);
#if !defined(__SANITIZE_ADDRESS__)
  expect_caught(reverse_is_wrong<false>, kSeeds);
#else
  expect_caught(reverse_is_wrong<false>, 1);  // what the last launch left is right, too
#endif
}

/// Tiles go through two buffers; `kSecond` keeps a buffer until all have read it.
template <bool kSecond>
__global__ void sum_of_tiles(float* out, const float* in, int tiles) {
  __shared__ float buffer[2][64];
  float sum = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    buffer[tile % 2][threadIdx.x] = in[tile * 64 + threadIdx.x];
    if (kSecond || tile % 2 == 0) {
      __syncthreads();
    } else {
      __syncwarp();
    }
    sum += buffer[tile % 2][63 - threadIdx.x];
  }
  out[threadIdx.x] = sum;
}

template <bool kSecond>
bool sum_of_tiles_is_wrong() {
  constexpr int kTiles = 6;
  std::vector<float> in(kTiles * 64);
  for (size_t i = 0; i < in.size(); ++i) {
    in[i] = static_cast<float>(i);
  }
  DeviceBuffer<float> device_in(in), out(64);
  launch(sum_of_tiles<kSecond>, {.block = 64}, nullptr, out.data(), device_in.data(), kTiles);
  const std::vector<float> got = out.download();
  for (int i = 0; i < 64; ++i) {
    float want = 0;
    for (int tile = 0; tile < kTiles; ++tile) {
      want += in[tile * 64 + 63 - i];
    }
    if (got[i] != want) {
      return true;
    }
  }
  return false;
}

TEST_F(Faults, ABufferOverwrittenTooSoon) {
  EXPECT_EQ(caught(sum_of_tiles_is_wrong<true>), 0);
  expect_caught(sum_of_tiles_is_wrong<false>, kSeeds / 2);
}

// ---- barriers that do not fit ----

__global__ void barriers_apart(int split) {
  if (static_cast<int>(threadIdx.x) < split) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void ends_before_the_barrier(int rest) {
  if (static_cast<int>(threadIdx.x) >= rest) {
    return;
  }
  __syncthreads();
}

TEST_F(Faults, ThreadsAtDifferentBarriers) {
  launch(barriers_apart, {.block = 64}, nullptr, 64);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_THAT(
      fault(cudaErrorLaunchFailure, [] { launch(barriers_apart, {.block = 64}, nullptr, 40); }),
      AllOf(HasSubstr("comes to the barrier at"), HasSubstr("of 64 threads wait at the barrier at"),
            HasSubstr("faults_test.cpp:")));
}
TEST_F(Faults, ThreadsThatEndBeforeABarrier) {
  EXPECT_THAT(fault(cudaErrorLaunchFailure,
                    [] { launch(ends_before_the_barrier, {.block = 64}, nullptr, 63); }),
              AllOf(HasSubstr("ended"), HasSubstr("64 threads"), HasSubstr("barrier at")));
}

// ---- operations of a warp ----

__global__ void shuffle_with(uint32_t mask, int lanes) {
  if (static_cast<int>(threadIdx.x) < lanes) {
    __shfl_sync(mask, 1.0f, 0);
  }
}
__global__ void operations_apart() {
  if (threadIdx.x < 16) {
    __shfl_sync(~0u, 1.0f, 0);
  } else {
    __ballot_sync(~0u, 1);
  }
}

__global__ void wait_for_each_other() {
  if (threadIdx.x < 16) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}

TEST_F(Faults, ABlockThatHangs) {
  EXPECT_THAT(
      fault(cudaErrorLaunchFailure, [] { launch(wait_for_each_other, {.block = 64}, nullptr); }),
      AllOf(HasSubstr("hangs: 0 of 64 threads have ended, 48 wait at the barrier"),
            HasSubstr("16 lanes of warp 0 wait for 16 others in __syncwarp")));
}

TEST_F(Faults, MasksOfAWarp) {
  const auto run = [](uint32_t mask, int lanes, int block) {
    return [=] { launch(shuffle_with, {.block = block}, nullptr, mask, lanes); };
  };
  EXPECT_THAT(fault(cudaErrorLaunchFailure, run(~0u, 31, 32)), HasSubstr("ended"));
  EXPECT_THAT(fault(cudaErrorLaunchFailure, run(0xffffu, 32, 32)), HasSubstr("leaves it out"));
  EXPECT_THAT(fault(cudaErrorLaunchFailure, run(~0u, 16, 16)), HasSubstr("does not have"));
  EXPECT_THAT(
      fault(cudaErrorLaunchFailure, [] { launch(operations_apart, {.block = 32}, nullptr); }),
      AllOf(HasSubstr("a shuffle at"), HasSubstr("a vote at")));
  launch(shuffle_with, {.block = 32}, nullptr, 0xffffu, 16);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

// ---- asynchronous copies ----

template <bool kWait, bool kBarrier>
__global__ void copy_through_shared(float4* out, const float4* in) {
  auto* shared = dynamic_shared<float4>();
  cp_async_16(shared + threadIdx.x, in + threadIdx.x);
  cp_async_commit();
  if (kWait) {
    cp_async_wait<0>();
  }
  if (kBarrier) {
    __syncthreads();
  }
  out[threadIdx.x] = shared[63 - threadIdx.x];
}

template <bool kWait, bool kBarrier>
bool copy_is_wrong() {
  std::vector<float4> in(64);
  for (int i = 0; i < 64; ++i) {
    in[i] = make_float4(float(i), 1, 2, 3);
  }
  DeviceBuffer<float4> device_in(in), out(64);
  launch(copy_through_shared<kWait, kBarrier>, {.block = 64, .shared_bytes = 1024}, nullptr,
         out.data(), device_in.data());
  const std::vector<float4> got = out.download();
  for (int i = 0; i < 64; ++i) {
    if (got[i].x != in[63 - i].x || got[i].w != 3) {
      return true;
    }
  }
  return false;
}

TEST_F(Faults, ACopyThatNobodyWaitedFor) {
  EXPECT_EQ(caught(copy_is_wrong<true, true>), 0);
  expect_caught(copy_is_wrong<false, true>, kSeeds);
  expect_caught(copy_is_wrong<true, false>, kSeeds);
}

/// What is copied is of no use, but its place is used again.
template <bool kWait>
__global__ void reuse_the_target(float4* out, const float4* in) {
  auto* shared = dynamic_shared<float4>();
  cp_async_16(shared + threadIdx.x, in + threadIdx.x);
  if (kWait) {
    cp_async_commit();
    cp_async_wait<0>();
  }
  shared[threadIdx.x] = make_float4(5, 5, 5, 5);
  __syncwarp();
  out[threadIdx.x] = shared[threadIdx.x ^ 1];
}

template <bool kWait>
bool reuse_is_wrong() {
  DeviceBuffer<float4> in(std::vector<float4>(64)), out(64);
  launch(reuse_the_target<kWait>, {.block = 64, .shared_bytes = 1024}, nullptr, out.data(),
         in.data());
  for (const float4& value : out.download()) {
    if (value.x != 5) {
      return true;
    }
  }
  return false;
}

TEST_F(Faults, ACopyThatLandsOnWhatIsThereNow) {
  EXPECT_EQ(caught(reuse_is_wrong<true>), 0);
#if !defined(__SANITIZE_THREAD__)  // one thread's own doing is no race
  expect_caught(reuse_is_wrong<false>, kSeeds / 4);
#endif
}

// ---- bounds ----

__global__ void write_at(float* out, int64_t index) { out[index] = 1.0f; }
__global__ void write_shared_at(int index) { dynamic_shared<float>()[index] = 1.0f; }

#if !defined(__SANITIZE_ADDRESS__)
__global__ void copy_at(float* out, const float* in, int64_t index) { out[0] = in[index]; }

TEST_F(Faults, WritesOutOfBounds) {
  for (const int64_t index : {100, 163, -1, -64}) {
    EXPECT_THAT(fault(cudaErrorIllegalAddress,
                      [&] {
                        DeviceBuffer<float> out(100);
                        launch(write_at, {}, nullptr, out.data(), index);
                        cudaDeviceSynchronize();
                      }),
                AllOf(HasSubstr("write_at"), HasSubstr("400 bytes of device memory")));
  }
  EXPECT_THAT(fault(cudaErrorIllegalAddress,
                    [] { launch(write_shared_at, {.shared_bytes = 400}, nullptr, 100); }),
              HasSubstr("wrote byte 400 of dynamic shared memory"));
}
#if !defined(__SANITIZE_THREAD__)
TEST_F(Faults, MemoryFarOutOfBoundsCannotBeTouched) {
  float* freed = nullptr;
  GRADUS_CUDA_CHECK(cudaMalloc(&freed, 400));
  GRADUS_CUDA_CHECK(cudaFree(freed));
  DeviceBuffer<float> out(100);
  const auto touch = [](float* pointer, int64_t index) {
    return [=] { launch(write_at, {.grid = 2, .block = 33}, nullptr, pointer, index); };
  };
  EXPECT_THAT(fault(cudaErrorIllegalAddress, touch(out.data(), 2000)),
              AllOf(HasSubstr("thread (0, 0, 0) of block"), HasSubstr("write_at"),
                    HasSubstr("7600 bytes behind allocation"), HasSubstr("400 bytes of device")));
  EXPECT_THAT(fault(cudaErrorIllegalAddress, touch(out.data(), -1100)),
              HasSubstr("4400 bytes before allocation"));
  EXPECT_THAT(fault(cudaErrorIllegalAddress, touch(nullptr, 0)),
              HasSubstr("memory that is not the device's"));
  EXPECT_THAT(fault(cudaErrorIllegalAddress, touch(freed, 0)), HasSubstr("given back"));
  touch(out.data(), 0)();
  EXPECT_EQ(out.download()[0], 1.0f);
}
TEST_F(Faults, TheHostCannotTouchDeviceMemory) {
  DeviceBuffer<float> out(100);
  launch(write_at, {}, nullptr, out.data(), 3);
  GRADUS_CUDA_CHECK(cudaDeviceSynchronize());
  volatile float* pointer = out.data();
  EXPECT_EXIT(static_cast<void>(pointer[3]), ::testing::KilledBySignal(SIGSEGV),
              "the host touches byte 12 of allocation");
}
#endif
TEST_F(Faults, ReadsOutOfBoundsGiveNaN) {
  DeviceBuffer<float> out(1), in(std::vector<float>(100, 1.0f));
  for (const int64_t index : {100, -1}) {
    launch(copy_at, {}, nullptr, out.data(), in.data(), index);
    EXPECT_TRUE(std::isnan(out.download()[0]));
  }
}
#else
TEST_F(Faults, AddressSanitizerNamesTheLine) {
  for (const int64_t index : {100, -1}) {
    EXPECT_DEATH(
        {
          DeviceBuffer<float> out(100);
          launch(write_at, {}, nullptr, out.data(), index);
          cudaDeviceSynchronize();
        },
        "heap-buffer-overflow(.|\n)*faults_test.cpp");
  }
  EXPECT_DEATH(
      {
        launch(write_shared_at, {.shared_bytes = 400}, nullptr, 100);
        cudaDeviceSynchronize();
      },
      "AddressSanitizer(.|\n)*faults_test.cpp");
}
#endif

TEST_F(Faults, MemoryBeginsAsNaN) {
  DeviceBuffer<float> fresh(3);
  for (const float value : fresh.download()) {
    EXPECT_TRUE(std::isnan(value));
  }
}

// ---- alignment ----

__global__ void load_16(float* out, const float* in) {
  out[0] = __ldg(reinterpret_cast<const float4*>(in)).x;
}
#if !defined(__SANITIZE_ADDRESS__)  // whose sibling ends the process
__global__ void load_16_plainly(float* out, const float* in) {
  out[0] = reinterpret_cast<const float4*>(in)->x;
}
#endif
__global__ void copy_16(const float* in) {
  cp_async_16(dynamic_shared<float4>(), in);
  cp_async_wait<0>();
}
__global__ void load_matrix_at(int offset) {
  uint32_t registers[4];
  ldmatrix_x4(registers, dynamic_shared<char>() + 16 * threadIdx.x + offset);
}

TEST_F(Faults, MisalignedAccess) {
  DeviceBuffer<float> in(std::vector<float>(64, 1.0f)), out(1);
  EXPECT_THAT(fault(cudaErrorMisalignedAddress,
                    [&] { launch(load_16, {}, nullptr, out.data(), in.data() + 1); }),
              HasSubstr("misaligned"));
#if !defined(__SANITIZE_ADDRESS__)
  EXPECT_THAT(
      fault(cudaErrorMisalignedAddress,
            [&] { launch(load_16_plainly, {}, nullptr, out.data(), in.data() + 1); }),
      AllOf(HasSubstr("16 bytes at"), HasSubstr("misaligned, at"), HasSubstr("faults_test.cpp:")));
#endif
  EXPECT_THAT(fault(cudaErrorMisalignedAddress,
                    [&] { launch(copy_16, {.shared_bytes = 16}, nullptr, in.data() + 2); }),
              HasSubstr("misaligned"));
  EXPECT_THAT(
      fault(cudaErrorMisalignedAddress,
            [&] { launch(load_matrix_at, {.block = 32, .shared_bytes = 1024}, nullptr, 8); }),
      HasSubstr("misaligned"));
}

// ---- limits of launches ----

__global__ void nothing() {}

cudaError_t error_of(dim3 grid, dim3 block, size_t shared_bytes) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  const cudaError_t error = cudaLaunchKernelEx(&config, nothing);
  EXPECT_EQ(cudaGetLastError(), error);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  return error;
}

TEST_F(Faults, LimitsOfLaunches) {
  EXPECT_EQ(error_of(1, 1024, 48 << 10), cudaSuccess);
  EXPECT_EQ(error_of(1, 1025, 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(error_of(1, dim3(32, 33), 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(error_of(1, dim3(1, 1, 65), 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(error_of(1, 0, 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(error_of(0, 1, 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(error_of(dim3(1, 65536), 1, 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(error_of(dim3(1, 1, 65536), 1, 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(error_of(1, 1, (48 << 10) + 1), cudaErrorInvalidValue);
  EXPECT_EQ(
      cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, (227 << 10) + 1),
      cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 << 10),
            cudaSuccess);
  EXPECT_EQ(error_of(1, 1, 227 << 10), cudaSuccess);
}

TEST_F(Faults, LaunchNamesTheErrorAndItsShape) {
  launch(nothing, {.shared_bytes = 227 << 10}, nullptr);
  launch(nothing, {.grid = 0}, nullptr);
  try {
    launch(nothing, {.grid = 3, .block = 2000}, nullptr);
    FAIL();
  } catch (const CudaError& error) {
    EXPECT_THAT(error.what(),
                AllOf(HasSubstr("grid (3, 1, 1), block (2000, 1, 1), 0 bytes of shared memory"),
                      HasSubstr("cudaErrorInvalidConfiguration"), HasSubstr("faults_test.cpp:")));
  }
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

// ---- what is left open ----

TEST_F(Faults, WhatIsLeftOpenIsNamed) {
  EXPECT_EQ(cudasim::open_resources(), "");
  float* memory = nullptr;
  float* pinned = nullptr;
  cudaStream_t stream;
  cudaEvent_t event;
  ASSERT_EQ(cudaMalloc(&memory, 12), cudaSuccess);
  ASSERT_EQ(cudaMallocHost(&pinned, 20), cudaSuccess);
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  ASSERT_EQ(cudaEventCreate(&event), cudaSuccess);
  EXPECT_THAT(cudasim::open_resources(),
              AllOf(HasSubstr("12 bytes of device memory"), HasSubstr("20 bytes of pinned host"),
                    HasSubstr("stream "), HasSubstr("event ")));
  EXPECT_EQ(cudaFree(memory), cudaSuccess);
  EXPECT_EQ(cudaFree(memory), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
  EXPECT_EQ(cudasim::open_resources(), "");
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidResourceHandle);
}

using FaultsDeathTest = Faults;
TEST_F(FaultsDeathTest, AProgramThatLeavesMemoryOpenFails) {
  EXPECT_EXIT(
      {
        void* memory = nullptr;
        cudaMalloc(&memory, 12);
        std::exit(0);
      },
      ::testing::ExitedWithCode(1), "left open at exit(.|\n)*12 bytes of device memory");
}

}  // namespace
}  // namespace gradus::cuda
