#pragma once

#include <cuda_runtime.h>

#include <source_location>
#include <string>
#include <utility>

#include "kernels/cuda/check.h"

namespace gradus::cuda {

/// Bytes of shared memory that a block may have on the device in use. Throws CudaError.
inline size_t shared_bytes_limit() {
  int device = 0;
  int bytes = 0;
  GRADUS_CUDA_CHECK(cudaGetDevice(&device));
  GRADUS_CUDA_CHECK(
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return static_cast<size_t>(bytes);
}

/// The shape of a launch: launch(kernel, {.grid = rows, .block = 256}, stream, arguments…).
struct Launch {
  dim3 grid = 1;
  dim3 block = 1;
  size_t shared_bytes = 0;  ///< dynamic shared memory of a block, on the H100 up to 227 KiB
  std::source_location where = std::source_location::current();
};

inline std::string to_string(const Launch& shape) {
  const auto sizes = [](const dim3& d) {
    return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) +
           ")";
  };
  return "launch of grid " + sizes(shape.grid) + ", block " + sizes(shape.block) + ", " +
         std::to_string(shape.shared_bytes) + " bytes of shared memory";
}

/// Launches `kernel` on `stream`; arguments are converted to its parameters. A grid of no blocks is
/// no launch. Asynchronous. Throws CudaError with the shape of a launch that the device refuses,
/// and with where it was written.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& shape, cudaStream_t stream,
            Arguments&&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "one argument for each parameter");
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) {
    return;
  }
  // What the kernel declares itself counts too: together they may pass the 48 KiB that are always
  // allowed.
  if (shape.shared_bytes > 0) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes));
    if (error != cudaSuccess) {
      throw_cuda_error(error, to_string(shape), shape.where);
    }
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  const cudaError_t error = cudaLaunchKernelEx(
      &config, kernel, static_cast<Parameters>(std::forward<Arguments>(arguments))...);
  if (error != cudaSuccess) {
    throw_cuda_error(error, to_string(shape), shape.where);
  }
}

}  // namespace gradus::cuda
