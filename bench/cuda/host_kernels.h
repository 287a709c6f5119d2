#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace gradus::bench {

/// Kernels that do next to nothing, for host_bench.
void launch_empty(cudaStream_t stream);
/// The same by cudaLaunchKernelEx, as kernels/cuda/launch.h has it.
void launch_empty_ex(cudaStream_t stream);
/// data[i] += 1 for 1024 floats: a block of the size that small operations have.
void launch_small(float* data, cudaStream_t stream);
/// Runs for about so many nanoseconds on one multiprocessor.
void launch_wait(int64_t nanoseconds, cudaStream_t stream);

}  // namespace gradus::bench
