// Streams, events and copies: in order where the program says so, and only there.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <vector>

#include "cudasim/control.h"
#include "device_buffer.h"
#include "kernels/cuda/launch.h"

namespace gradus::cuda {
namespace {

constexpr int kSeeds = 64;
constexpr int kSize = 100;

__global__ void fill(int* out, int value) { out[threadIdx.x] = value; }
__global__ void add(int* out, const int* in) { out[threadIdx.x] += in[threadIdx.x]; }

class Streams : public ::testing::Test {
 protected:
  void SetUp() override {
    GRADUS_CUDA_CHECK(cudaStreamCreateWithFlags(&first_, cudaStreamNonBlocking));
    GRADUS_CUDA_CHECK(cudaStreamCreateWithFlags(&second_, cudaStreamNonBlocking));
    GRADUS_CUDA_CHECK(cudaStreamCreate(&blocking_));
    GRADUS_CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
    GRADUS_CUDA_CHECK(cudaMallocHost(&pinned_, kSize * sizeof(int)));
  }
  void TearDown() override {
    GRADUS_CUDA_CHECK(cudaDeviceSynchronize());
    GRADUS_CUDA_CHECK(cudaStreamDestroy(first_));
    GRADUS_CUDA_CHECK(cudaStreamDestroy(second_));
    GRADUS_CUDA_CHECK(cudaStreamDestroy(blocking_));
    GRADUS_CUDA_CHECK(cudaEventDestroy(event_));
    GRADUS_CUDA_CHECK(cudaFreeHost(pinned_));
    EXPECT_EQ(cudasim::open_resources(), "");
  }

  void fill_on(cudaStream_t stream, DeviceBuffer<int>& out, int value) {
    launch(fill, {.block = kSize}, stream, out.data(), value);
  }
  void add_on(cudaStream_t stream, DeviceBuffer<int>& out, DeviceBuffer<int>& in) {
    launch(add, {.block = kSize}, stream, out.data(), in.data());
  }
  void to_pinned(cudaStream_t stream, DeviceBuffer<int>& from) {
    GRADUS_CUDA_CHECK(
        cudaMemcpyAsync(pinned_, from.data(), kSize * sizeof(int), cudaMemcpyDeviceToHost, stream));
  }
  /// With how many seeds the program leaves something else than `value` in pinned memory.
  template <typename Program>
  int wrong(int value, Program&& program) {
    int count = 0;
    for (int seed = 0; seed < kSeeds; ++seed) {
      cudasim::set_seed(static_cast<uint64_t>(seed));
      std::memset(pinned_, 0, kSize * sizeof(int));
      program();
      count += pinned_[kSize - 1] != value;
      GRADUS_CUDA_CHECK(cudaDeviceSynchronize());
    }
    return count;
  }

  cudaStream_t first_ = nullptr;
  cudaStream_t second_ = nullptr;
  cudaStream_t blocking_ = nullptr;
  cudaEvent_t event_ = nullptr;
  int* pinned_ = nullptr;
};

TEST_F(Streams, OneStreamIsInOrder) {
  DeviceBuffer<int> a(kSize), b(kSize);
  EXPECT_EQ(wrong(5,
                  [&] {
                    fill_on(first_, a, 2);
                    fill_on(first_, b, 3);
                    add_on(first_, a, b);
                    to_pinned(first_, a);
                    GRADUS_CUDA_CHECK(cudaStreamSynchronize(first_));
                  }),
            0);
}

TEST_F(Streams, AHostThatReadsTooEarlyIsWrong) {
  DeviceBuffer<int> a(kSize);
  EXPECT_GT(wrong(2,
                  [&] {
                    fill_on(first_, a, 2);
                    to_pinned(first_, a);
                  }),
            kSeeds / 4);
}

TEST_F(Streams, AnEventOrdersTwoStreamsAndItsAbsenceShows) {
  DeviceBuffer<int> a(kSize), b(kSize);
  const auto program = [&](bool wait) {
    fill_on(first_, a, 1);
    GRADUS_CUDA_CHECK(cudaStreamSynchronize(first_));
    fill_on(first_, a, 2);
    fill_on(second_, b, 3);
    GRADUS_CUDA_CHECK(cudaEventRecord(event_, first_));
    if (wait) {
      GRADUS_CUDA_CHECK(cudaStreamWaitEvent(second_, event_));
    }
    add_on(second_, b, a);
    to_pinned(second_, b);
    GRADUS_CUDA_CHECK(cudaStreamSynchronize(second_));
  };
  EXPECT_EQ(wrong(5, [&] { program(true); }), 0);
  EXPECT_GT(wrong(5, [&] { program(false); }), kSeeds / 4);
}

TEST_F(Streams, AnEventIsTheWorkBeforeItsLastRecord) {
  DeviceBuffer<int> a(kSize);
  // Waiting for an event that was never recorded is waiting for nothing.
  GRADUS_CUDA_CHECK(cudaStreamWaitEvent(second_, event_));
  EXPECT_EQ(cudaEventQuery(event_), cudaSuccess);
  EXPECT_EQ(wrong(2,
                  [&] {
                    GRADUS_CUDA_CHECK(cudaEventRecord(event_, first_));
                    fill_on(first_, a, 2);
                    to_pinned(first_, a);
                    GRADUS_CUDA_CHECK(cudaEventRecord(event_, first_));
                    GRADUS_CUDA_CHECK(cudaEventSynchronize(event_));
                  }),
            0);
  EXPECT_EQ(wrong(2,
                  [&] {
                    fill_on(first_, a, 2);
                    to_pinned(first_, a);
                    GRADUS_CUDA_CHECK(cudaEventRecord(event_, first_));
                    while (cudaEventQuery(event_) == cudaErrorNotReady) {
                    }
                  }),
            0);
}

TEST_F(Streams, TheDefaultStreamWaitsForBlockingStreamsAlone) {
  DeviceBuffer<int> a(kSize);
  const auto program = [&](cudaStream_t stream) {
    fill_on(nullptr, a, 1);
    GRADUS_CUDA_CHECK(cudaDeviceSynchronize());
    fill_on(stream, a, 2);
    to_pinned(nullptr, a);
    GRADUS_CUDA_CHECK(cudaStreamSynchronize(nullptr));
  };
  EXPECT_EQ(wrong(2, [&] { program(blocking_); }), 0);
  EXPECT_GT(wrong(2, [&] { program(first_); }), kSeeds / 4);
  const auto other_way = [&](cudaStream_t stream) {
    fill_on(nullptr, a, 1);
    GRADUS_CUDA_CHECK(cudaDeviceSynchronize());
    fill_on(nullptr, a, 2);
    to_pinned(stream, a);
    GRADUS_CUDA_CHECK(cudaStreamSynchronize(stream));
  };
  EXPECT_EQ(wrong(2, [&] { other_way(blocking_); }), 0);
  EXPECT_GT(wrong(2, [&] { other_way(first_); }), kSeeds / 4);
}

TEST_F(Streams, PinnedMemoryIsReadLateAndPageableMemoryAtOnce) {
  DeviceBuffer<int> a(kSize);
  const auto program = [&](int* from, bool synchronize) {
    std::vector<int> old(kSize, 7);
    std::memcpy(from, old.data(), kSize * sizeof(int));
    GRADUS_CUDA_CHECK(
        cudaMemcpyAsync(a.data(), from, kSize * sizeof(int), cudaMemcpyHostToDevice, first_));
    if (synchronize) {
      GRADUS_CUDA_CHECK(cudaStreamSynchronize(first_));
    }
    std::memset(from, 0, kSize * sizeof(int));
    to_pinned(first_, a);
    GRADUS_CUDA_CHECK(cudaStreamSynchronize(first_));
  };
  std::vector<int> pageable(kSize);
  int* pinned = nullptr;
  GRADUS_CUDA_CHECK(cudaMallocHost(&pinned, kSize * sizeof(int)));
  EXPECT_EQ(wrong(7, [&] { program(pageable.data(), false); }), 0);
  EXPECT_EQ(wrong(7, [&] { program(pinned, true); }), 0);
  EXPECT_GT(wrong(7, [&] { program(pinned, false); }), kSeeds / 4);
  GRADUS_CUDA_CHECK(cudaFreeHost(pinned));
}

TEST_F(Streams, FreeingWaitsForTheDevice) {
  auto a = std::make_unique<DeviceBuffer<int>>(kSize);
  EXPECT_EQ(wrong(2,
                  [&] {
                    DeviceBuffer<int> b(kSize);
                    fill_on(first_, b, 2);
                    to_pinned(first_, b);
                  }),
            0);
}

TEST_F(Streams, CopiesKnowTheirDirectionsAndBounds) {
  DeviceBuffer<int> a(kSize);
  std::vector<int> host(kSize);
  const size_t bytes = kSize * sizeof(int);
  EXPECT_EQ(cudaMemcpy(a.data(), host.data(), bytes, cudaMemcpyDeviceToHost),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(host.data(), a.data(), bytes, cudaMemcpyHostToDevice),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(a.data() + 1, host.data(), bytes, cudaMemcpyHostToDevice),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(a.data(), 0, bytes + 1), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(host.data(), a.data(), bytes, cudaMemcpyDefault), cudaSuccess);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
}

TEST_F(Streams, EventsMeasureTime) {
  cudaEvent_t from, to;
  GRADUS_CUDA_CHECK(cudaEventCreate(&from));
  GRADUS_CUDA_CHECK(cudaEventCreate(&to));
  DeviceBuffer<int> a(kSize);
  float milliseconds = -1;
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, from, to), cudaErrorInvalidResourceHandle);
  GRADUS_CUDA_CHECK(cudaEventRecord(from, first_));
  fill_on(first_, a, 2);
  GRADUS_CUDA_CHECK(cudaEventRecord(to, first_));
  GRADUS_CUDA_CHECK(cudaEventSynchronize(to));
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, from, to), cudaSuccess);
  EXPECT_GE(milliseconds, 0);
  GRADUS_CUDA_CHECK(cudaEventDestroy(from));
  GRADUS_CUDA_CHECK(cudaEventDestroy(to));
  cudaGetLastError();
}

}  // namespace
}  // namespace gradus::cuda
