#include "kernels/cuda/cublaslt.h"

#include <fmt/format.h>

#include "core/error.h"

namespace gradus::cuda {
namespace {

cudaDataType_t data_type(DType dtype) {
  switch (dtype) {
    case DType::fp32:
      return CUDA_R_32F;
    case DType::bf16:
      return CUDA_R_16BF;
    case DType::fp16:
      return CUDA_R_16F;
    default:
      throw ShapeError("products on CUDA are of fp32, bf16 or fp16, not of {}", to_string(dtype));
  }
}

cublasComputeType_t compute_type(const CublasLtProduct& product) {
  const bool tf32 = product.tf32 && product.operand == DType::fp32;
  return tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
}

bool has_bias(cublasLtEpilogue_t epilogue) {
  return (epilogue & CUBLASLT_EPILOGUE_BIAS) != 0 || epilogue == CUBLASLT_EPILOGUE_DGELU_BGRAD ||
         epilogue == CUBLASLT_EPILOGUE_BGRADA || epilogue == CUBLASLT_EPILOGUE_BGRADB;
}

bool has_auxiliary(cublasLtEpilogue_t epilogue) { return (epilogue & 128) != 0; }

std::string_view name(cublasLtEpilogue_t epilogue) {
  switch (epilogue) {
    case CUBLASLT_EPILOGUE_DEFAULT:
      return "none";
    case CUBLASLT_EPILOGUE_BIAS:
      return "BIAS";
    case CUBLASLT_EPILOGUE_GELU:
      return "GELU";
    case CUBLASLT_EPILOGUE_GELU_BIAS:
      return "GELU_BIAS";
    case CUBLASLT_EPILOGUE_GELU_AUX:
      return "GELU_AUX";
    case CUBLASLT_EPILOGUE_GELU_AUX_BIAS:
      return "GELU_AUX_BIAS";
    case CUBLASLT_EPILOGUE_DGELU:
      return "DGELU";
    case CUBLASLT_EPILOGUE_DGELU_BGRAD:
      return "DGELU_BGRAD";
    case CUBLASLT_EPILOGUE_BGRADA:
      return "BGRADA";
    case CUBLASLT_EPILOGUE_BGRADB:
      return "BGRADB";
    default:
      return "another";
  }
}

/// Limits under which the library looks for algorithms.
class Preference {
 public:
  Preference(size_t workspace_bytes, int alignment) {
    cublasLtMatmulPreference_t preference = nullptr;
    GRADUS_CUBLASLT_CHECK(cublasLtMatmulPreferenceCreate(&preference), "a search");
    preference_.reset(preference);
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(workspace_bytes));
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      set(attribute, static_cast<uint32_t>(alignment));
    }
  }
  cublasLtMatmulPreference_t get() const { return preference_.get(); }

 private:
  template <typename T>
  void set(cublasLtMatmulPreferenceAttributes_t attribute, const T& value) {
    GRADUS_CUBLASLT_CHECK(
        cublasLtMatmulPreferenceSetAttribute(preference_.get(), attribute, &value, sizeof(value)),
        fmt::format("attribute {} = {}", static_cast<int>(attribute), value));
  }

  CublasLtOwner<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy> preference_;
};

}  // namespace

void throw_cublaslt_error(cublasStatus_t status, const char* call, const std::string& purpose,
                          const char* file, int line) {
  throw CudaError("{} failed: {}, at {}:{}, for {}", call, cublasLtGetStatusString(status), file,
                  line, purpose);
}

CublasLt::CublasLt() {
  cublasLtHandle_t handle = nullptr;
  GRADUS_CUBLASLT_CHECK(cublasLtCreate(&handle), "the current device");
  handle_.reset(handle);
}

std::string describe(const CublasLtProduct& product) {
  return fmt::format(
      "D ({}, {}; stride {}; {}) {}= A{} (stride {}) · B{} (stride {}) over {}, of {}{}, "
      "column-major, epilogue {}{}, aligned to {} bytes",
      product.m, product.n, product.stride_d, to_string(product.result),
      product.accumulate ? "+" : "", product.transpose_a ? "ᵀ" : "", product.stride_a,
      product.transpose_b ? "ᵀ" : "", product.stride_b, product.k, to_string(product.operand),
      product.tf32 ? " as TF32" : "", name(product.epilogue),
      has_auxiliary(product.epilogue) ? fmt::format(" (stride {})", product.stride_auxiliary) : "",
      product.alignment);
}

CublasLtPlan::CublasLtPlan(const CublasLtProduct& product) : product_(product) {
  cublasLtMatmulDesc_t descriptor = nullptr;
  GRADUS_CUBLASLT_CHECK(cublasLtMatmulDescCreate(&descriptor, compute_type(product), CUDA_R_32F),
                        describe(product));
  descriptor_.reset(descriptor);
  const auto operation = [](bool transposed) { return transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
  set(CUBLASLT_MATMUL_DESC_TRANSA, operation(product.transpose_a));
  set(CUBLASLT_MATMUL_DESC_TRANSB, operation(product.transpose_b));
  set(CUBLASLT_MATMUL_DESC_EPILOGUE, product.epilogue);
  if (has_auxiliary(product.epilogue)) {
    set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, product.stride_auxiliary);
  }
  a_ = product.transpose_a ? layout(product.operand, product.k, product.m, product.stride_a)
                           : layout(product.operand, product.m, product.k, product.stride_a);
  b_ = product.transpose_b ? layout(product.operand, product.n, product.k, product.stride_b)
                           : layout(product.operand, product.k, product.n, product.stride_b);
  d_ = layout(product.result, product.m, product.n, product.stride_d);
}

template <typename T>
void CublasLtPlan::set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
  GRADUS_CUBLASLT_CHECK(
      cublasLtMatmulDescSetAttribute(descriptor_.get(), attribute, &value, sizeof(value)),
      fmt::format("attribute {} of {}", static_cast<int>(attribute), describe(product_)));
}

void CublasLtPlan::set_pointers(const void* bias, const void* auxiliary) {
  if (has_bias(product_.epilogue)) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  if (has_auxiliary(product_.epilogue)) {
    set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, auxiliary);
  }
}

CublasLtPlan::Layout CublasLtPlan::layout(DType dtype, int64_t rows, int64_t columns,
                                          int64_t stride) const {
  cublasLtMatrixLayout_t result = nullptr;
  GRADUS_CUBLASLT_CHECK(
      cublasLtMatrixLayoutCreate(&result, data_type(dtype), static_cast<uint64_t>(rows),
                                 static_cast<uint64_t>(columns), stride),
      describe(product_));
  return Layout(result);
}

std::vector<cublasLtMatmulAlgo_t> CublasLtPlan::candidates(const CublasLt& library,
                                                           size_t workspace_bytes, int count) {
  // The heuristics read no operands, but take the alignment of bias and auxiliary matrix from
  // their addresses.
  const auto aligned = reinterpret_cast<const void*>(static_cast<uintptr_t>(product_.alignment));
  set_pointers(aligned, aligned);
  const std::string purpose = describe(product_);
  const Preference preference(workspace_bytes, product_.alignment);
  std::vector<cublasLtMatmulHeuristicResult_t> found(static_cast<size_t>(count));
  int found_count = 0;
  GRADUS_CUBLASLT_CHECK(
      cublasLtMatmulAlgoGetHeuristic(library.get(), descriptor_.get(), a_.get(), b_.get(), d_.get(),
                                     d_.get(), preference.get(), count, found.data(), &found_count),
      purpose);
  std::vector<cublasLtMatmulAlgo_t> algorithms;
  for (int i = 0; i < found_count; ++i) {
    if (found[i].state == CUBLAS_STATUS_SUCCESS) algorithms.push_back(found[i].algo);
  }
  if (algorithms.empty()) {
    throw CudaError("cuBLASLt has no algorithm with {} bytes of workspace for {}", workspace_bytes,
                    purpose);
  }
  return algorithms;
}

void CublasLtPlan::run(const CublasLt& library, const cublasLtMatmulAlgo_t& algorithm,
                       const CublasLtOperands& operands, Workspace workspace, cudaStream_t stream) {
  set_pointers(operands.bias, operands.auxiliary);
  const float alpha = 1.0f;
  const float beta = product_.accumulate ? 1.0f : 0.0f;
  GRADUS_CUBLASLT_CHECK(
      cublasLtMatmul(library.get(), descriptor_.get(), &alpha, operands.a, a_.get(), operands.b,
                     b_.get(), &beta, operands.d, d_.get(), operands.d, d_.get(), &algorithm,
                     workspace.data, workspace.bytes, stream),
      fmt::format("{}, with a workspace of {} bytes", describe(product_), workspace.bytes));
}

}  // namespace gradus::cuda
