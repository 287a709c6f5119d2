#pragma once

// Elementwise work over a flat range. `Work` has take<N>(place): reads, computes and writes N
// neighbours.

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/vector.cuh"

namespace gradus::cuda {

inline constexpr int kElementwiseThreads = 256;

/// Whether 16 bytes at a time can be had from each of the addresses.
template <typename... Pointers>
bool are_aligned(const Pointers*... addresses) {
  return ((reinterpret_cast<uintptr_t>(addresses) % 16 == 0) && ...);
}

template <typename Work, int N>
__global__ void __launch_bounds__(kElementwiseThreads) take_vectors(Work work, int64_t count) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t vector = thread; vector < count / N; vector += threads) {
    work.template take<N>(vector * N);
  }
  if (N > 1 && thread < count % N) work.template take<1>(count / N * N + thread);
}

/// At most `blocks` blocks: a vector a thread where that many suffice.
template <int kLanes, typename Work>
void for_each_vector(const Work& work, bool aligned, int64_t count, cudaStream_t stream,
                     int64_t blocks = int64_t{1} << 24) {
  if (count == 0) return;
  const int lanes = aligned ? kLanes : 1;
  const int64_t threads = std::max<int64_t>(count / lanes, count % lanes);
  const int64_t all = (threads + kElementwiseThreads - 1) / kElementwiseThreads;
  const Launch shape{.grid = static_cast<unsigned>(std::min(all, blocks)),
                     .block = kElementwiseThreads};
  if (aligned) {
    launch(take_vectors<Work, kLanes>, shape, stream, work, count);
  } else {
    launch(take_vectors<Work, 1>, shape, stream, work, count);
  }
}

}  // namespace gradus::cuda
