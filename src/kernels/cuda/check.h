#pragma once

#include <cuda_runtime_api.h>

#include <source_location>
#include <string>

// No core/error.h here: nvcc does not compile fmt 9. Errors are thrown from check.cpp, which the
// host compiler compiles by itself; what catches them includes core/error.h.

namespace gradus::cuda {

/// Throws the CudaError of a `call` that failed: its text, the error's name and description, file
/// and line. Takes the error back from the runtime, so that the next launch is not blamed for it.
[[noreturn]] void throw_cuda_error(cudaError_t error, const std::string& call,
                                   std::source_location where = std::source_location::current());

/// Throws a ShapeError.
[[noreturn]] void throw_shape_error(const std::string& message);

}  // namespace gradus::cuda

/// Runs a call of the CUDA runtime once, and throws CudaError if it fails.
#define GRADUS_CUDA_CHECK(statement)                                    \
  do {                                                                  \
    const cudaError_t gradus_cuda_error_ = (statement);                 \
    if (gradus_cuda_error_ != cudaSuccess) {                            \
      ::gradus::cuda::throw_cuda_error(gradus_cuda_error_, #statement); \
    }                                                                   \
  } while (false)
