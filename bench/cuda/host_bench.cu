// The device side of host_bench; host_cases.cpp is the program.

#include <cuda_runtime.h>

#include "bench/cuda/harness.h"
#include "bench/cuda/host_kernels.h"
#include "kernels/cuda/launch.h"

namespace gradus::bench {
namespace {

__global__ void empty() {}

__global__ void small(float* data) { data[threadIdx.x] += 1.0f; }

__global__ void wait(int64_t nanoseconds) {
  const int64_t began = static_cast<int64_t>(clock64());
  // The clock's rate is not known here; two cycles a nanosecond is near enough on any card.
  while (static_cast<int64_t>(clock64()) - began < 2 * nanoseconds) {
  }
}

}  // namespace

void launch_empty(cudaStream_t stream) {
  empty<<<1, 32, 0, stream>>>();
  GRADUS_BENCH_CUDA(cudaGetLastError());
}

void launch_empty_ex(cudaStream_t stream) { cuda::launch(empty, {.grid = 1, .block = 32}, stream); }

void launch_small(float* data, cudaStream_t stream) {
  small<<<1, 1024, 0, stream>>>(data);
  GRADUS_BENCH_CUDA(cudaGetLastError());
}

void launch_wait(int64_t nanoseconds, cudaStream_t stream) {
  wait<<<1, 1, 0, stream>>>(nanoseconds);
  GRADUS_BENCH_CUDA(cudaGetLastError());
}

}  // namespace gradus::bench
