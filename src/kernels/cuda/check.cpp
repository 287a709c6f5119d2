#include "kernels/cuda/check.h"

#include "core/error.h"

namespace gradus::cuda {

void throw_cuda_error(cudaError_t error, const std::string& call, std::source_location where) {
  cudaGetLastError();
  throw CudaError("{} failed: {} ({}), at {}:{}", call, cudaGetErrorName(error),
                  cudaGetErrorString(error), where.file_name(), where.line());
}

void throw_shape_error(const std::string& message) { throw ShapeError(message); }

}  // namespace gradus::cuda
