#pragma once

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include <cudasim/block.h>
#endif

namespace gradus::cuda {

/// The block's dynamic shared memory, aligned to 128 bytes: as many bytes as the launch asked for.
/// One accessor for every kernel, as two `extern __shared__` arrays are one and the same memory.
template <typename T>
__device__ inline T* dynamic_shared() {
#if defined(__CUDACC__)
  extern __shared__ __align__(128) unsigned char gradus_dynamic_shared[];
  return reinterpret_cast<T*>(gradus_dynamic_shared);
#else
  return static_cast<T*>(cudasim::dynamic_shared());
#endif
}

}  // namespace gradus::cuda
