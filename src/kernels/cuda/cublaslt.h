#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <compare>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "core/dtype.h"

namespace gradus::cuda {

/// cuBLASLt with owners for its handles. Everything here is column-major, as the library has it;
/// matmul.h is the row-major face that the rest of Gradus sees.

/// Throws the CudaError of a `call` that failed: its text, the library's word for the status, what
/// the call was for, file and line.
[[noreturn]] void throw_cublaslt_error(cublasStatus_t status, const char* call,
                                       const std::string& purpose, const char* file, int line);
/// Runs a call of cuBLASLt once, and throws CudaError if it fails. `purpose` is only evaluated
/// then.
#define GRADUS_CUBLASLT_CHECK(statement, purpose)                                         \
  do {                                                                                    \
    const cublasStatus_t gradus_status_ = (statement);                                    \
    if (gradus_status_ != CUBLAS_STATUS_SUCCESS) {                                        \
      ::gradus::cuda::throw_cublaslt_error(gradus_status_, #statement, purpose, __FILE__, \
                                           __LINE__);                                     \
    }                                                                                     \
  } while (false)

/// Owns one of the library's opaque pointers.
template <auto destroy>
struct CublasLtDeleter {
  template <typename T>
  void operator()(T* object) const {
    destroy(object);  // fails only for what was never created
  }
};
template <typename Pointer, auto destroy>
using CublasLtOwner = std::unique_ptr<std::remove_pointer_t<Pointer>, CublasLtDeleter<destroy>>;

/// A handle of the library, for the device that is current when it is made.
class CublasLt {
 public:
  CublasLt();
  cublasLtHandle_t get() const { return handle_.get(); }

 private:
  CublasLtOwner<cublasLtHandle_t, cublasLtDestroy> handle_;
};

/// D = epilogue(op(A) · op(B) + beta D), op(A) (m, k), op(B) (k, n), D (m, n), all column-major.
/// A product is wholly described by this, pointers apart, so it is the key of plans.
struct CublasLtProduct {
  int64_t m = 0, n = 0, k = 0;
  bool transpose_a = false, transpose_b = false;
  int64_t stride_a = 0, stride_b = 0, stride_d = 0;  ///< leading dimensions, in elements
  DType operand = DType::bf16;                       ///< of A and B
  DType result = DType::bf16;                        ///< of D, the bias and the auxiliary matrix
  bool accumulate = false;                           ///< beta is 1, else 0
  bool tf32 = false;  ///< fp32 operands may be rounded to TF32 as they are multiplied
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  int64_t stride_auxiliary = 0;
  int alignment = 16;  ///< bytes to which all pointers are aligned, a power of two

  auto operator<=>(const CublasLtProduct&) const = default;
};
std::string describe(const CublasLtProduct& product);

/// Device pointers of a product.
struct CublasLtOperands {
  const void* a = nullptr;
  const void* b = nullptr;
  void* d = nullptr;
  const void* bias = nullptr;       ///< read by BIAS epilogues, written by BGRAD ones
  const void* auxiliary = nullptr;  ///< written by GELU_AUX epilogues, read by DGELU ones
};

/// Device memory that products on one stream share.
struct Workspace {
  void* data = nullptr;
  size_t bytes = 0;
};

/// The descriptors of one product.
class CublasLtPlan {
 public:
  explicit CublasLtPlan(const CublasLtProduct& product);

  const CublasLtProduct& product() const { return product_; }

  /// Up to `count` algorithms that this device can run, the one expected to be fastest first, by
  /// the library's heuristics. Needs no operands. Throws CudaError where there is none.
  std::vector<cublasLtMatmulAlgo_t> candidates(const CublasLt& library, size_t workspace_bytes,
                                               int count);
  /// Asynchronous on `stream`.
  void run(const CublasLt& library, const cublasLtMatmulAlgo_t& algorithm,
           const CublasLtOperands& operands, Workspace workspace, cudaStream_t stream);

 private:
  using Descriptor = CublasLtOwner<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
  using Layout = CublasLtOwner<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;

  template <typename T>
  void set(cublasLtMatmulDescAttributes_t attribute, const T& value);
  void set_pointers(const void* bias, const void* auxiliary);
  Layout layout(DType dtype, int64_t rows, int64_t columns, int64_t stride) const;

  CublasLtProduct product_;
  Descriptor descriptor_;
  Layout a_, b_, d_;
};

}  // namespace gradus::cuda
