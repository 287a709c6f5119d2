// Products as cuBLASLt makes them. The table of types and the rules of epilogues are those of its
// documentation (cublasLtMatmul, cublasLtEpilogue_t, cublasLtMatmulDescAttributes_t of CUDA 13),
// and nothing beyond them.

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "device.h"
#include "fault.h"

using cudasim::Device;

struct cublasLtContext {};

namespace {

/// What stands behind the library's opaque pointers.
struct Descriptor {
  cublasComputeType_t compute;
  int32_t transpose_a = CUBLAS_OP_N;
  int32_t transpose_b = CUBLAS_OP_N;
  uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  void* bias = nullptr;
  void* auxiliary = nullptr;
  int64_t auxiliary_stride = 0;
};
struct Layout {
  cudaDataType_t type;
  uint64_t rows;
  uint64_t columns;
  int64_t stride;
};
struct Preference {
  uint64_t workspace_bytes = 0;
  uint32_t alignment[4] = {256, 256, 256, 256};  ///< of A, B, C, D
};

Descriptor* of(cublasLtMatmulDesc_t pointer) { return reinterpret_cast<Descriptor*>(pointer); }
Layout* of(cublasLtMatrixLayout_t pointer) { return reinterpret_cast<Layout*>(pointer); }
Preference* of(cublasLtMatmulPreference_t pointer) {
  return reinterpret_cast<Preference*>(pointer);
}

/// Marks what an algorithm of this library holds.
constexpr uint64_t kAlgorithmMark = 0x6375646173696d;
/// Workspaces of the algorithms, best first.
constexpr uint64_t kWorkspaces[] = {uint64_t{4} << 20, uint64_t{1} << 20, 0};
constexpr uint64_t kAuxiliaryStride = 8;
constexpr uintptr_t kAuxiliaryAlignment = 16;
constexpr uintptr_t kWorkspaceAlignment = 16;

/// What an algorithm was chosen for.
struct Algorithm {
  uint64_t mark;
  uint64_t workspace_bytes;
  uint32_t alignment[4];
};

size_t size_of(cudaDataType_t type) { return type == CUDA_R_32F ? 4 : 2; }

bool has_bias(uint32_t epilogue) { return (epilogue & CUBLASLT_EPILOGUE_BIAS) != 0; }
bool has_auxiliary(uint32_t epilogue) { return (epilogue & 128) != 0; }

bool is_aligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

bool is_supported_epilogue(uint32_t epilogue) {
  switch (epilogue) {
    case CUBLASLT_EPILOGUE_DEFAULT:
    case CUBLASLT_EPILOGUE_BIAS:
    case CUBLASLT_EPILOGUE_GELU:
    case CUBLASLT_EPILOGUE_GELU_BIAS:
    case CUBLASLT_EPILOGUE_GELU_AUX:
    case CUBLASLT_EPILOGUE_GELU_AUX_BIAS:
    case CUBLASLT_EPILOGUE_DGELU:
      return true;
    default:
      return false;
  }
}

/// Whether a product of these can be had, pointers apart.
cublasStatus_t check(const Descriptor& descriptor, const Layout& a, const Layout& b,
                     const Layout& c, const Layout& d) {
  const bool transpose_a = descriptor.transpose_a != CUBLAS_OP_N;
  const bool transpose_b = descriptor.transpose_b != CUBLAS_OP_N;
  const uint64_t m = transpose_a ? a.columns : a.rows;
  const uint64_t k = transpose_a ? a.rows : a.columns;
  const uint64_t n = transpose_b ? b.rows : b.columns;
  if ((transpose_b ? b.columns : b.rows) != k || d.rows != m || d.columns != n || c.rows != m ||
      c.columns != n || m == 0 || n == 0 || k == 0) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  for (const Layout* layout : {&a, &b, &c, &d}) {
    if (layout->stride < static_cast<int64_t>(layout->rows)) {
      return CUBLAS_STATUS_INVALID_VALUE;
    }
  }
  // Scale type fp32: A and B alike; C and D alike, of their type or fp32.
  if (a.type != b.type || c.type != d.type || (d.type != a.type && d.type != CUDA_R_32F)) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  if (descriptor.compute != CUBLAS_COMPUTE_32F && a.type != CUDA_R_32F) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  if (!is_supported_epilogue(descriptor.epilogue)) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  if (descriptor.epilogue != CUBLASLT_EPILOGUE_DEFAULT && d.type != a.type) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  if (has_bias(descriptor.epilogue) &&
      (descriptor.bias == nullptr || !is_aligned(descriptor.bias, size_of(d.type)))) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (has_auxiliary(descriptor.epilogue)) {
    if (descriptor.auxiliary == nullptr ||
        descriptor.auxiliary_stride < static_cast<int64_t>(d.rows) ||
        static_cast<uint64_t>(descriptor.auxiliary_stride) % kAuxiliaryStride != 0) {
      return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (!is_aligned(descriptor.auxiliary, kAuxiliaryAlignment)) {
      return CUBLAS_STATUS_NOT_SUPPORTED;
    }
  }
  return CUBLAS_STATUS_SUCCESS;
}

// ---- elements ----

float load(const void* base, cudaDataType_t type, size_t index) {
  switch (type) {
    case CUDA_R_16BF:
      return static_cast<const __nv_bfloat16*>(base)[index];
    case CUDA_R_16F:
      return static_cast<const __half*>(base)[index];
    default:
      return static_cast<const float*>(base)[index];
  }
}

void store(void* base, cudaDataType_t type, size_t index, float value) {
  switch (type) {
    case CUDA_R_16BF:
      static_cast<__nv_bfloat16*>(base)[index] = value;
      return;
    case CUDA_R_16F:
      static_cast<__half*>(base)[index] = value;
      return;
    default:
      static_cast<float*>(base)[index] = value;
  }
}

/// Rounded to 10 bits of fraction, ties away from zero.
float to_tf32(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return std::isfinite(value) ? std::bit_cast<float>((bits + 0x1000u) & ~0x1fffu) : value;
}

// GELU by tanh, as the library's.
constexpr double kGeluScale = 0.7978845608028654;  // sqrt(2 / pi)
constexpr double kGeluCube = 0.044715;

double gelu(double x) {
  return 0.5 * x * (1 + std::tanh(kGeluScale * (x + kGeluCube * x * x * x)));
}

double gelu_slope(double x) {
  const double t = std::tanh(kGeluScale * (x + kGeluCube * x * x * x));
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * kGeluScale * (1 + 3 * kGeluCube * x * x);
}

/// A product that has been asked for, with all that it needs later.
struct Product {
  Descriptor descriptor;
  Layout a_layout, b_layout, c_layout, d_layout;
  float alpha, beta;
  const void* a;
  const void* b;
  const void* c;
  void* d;
  void* workspace;
  size_t workspace_bytes;
};

void multiply(const Product& product) {
  const Descriptor& descriptor = product.descriptor;
  const bool tf32 = descriptor.compute == CUBLAS_COMPUTE_32F_FAST_TF32;
  const bool transpose_a = descriptor.transpose_a != CUBLAS_OP_N;
  const bool transpose_b = descriptor.transpose_b != CUBLAS_OP_N;
  const size_t m = product.d_layout.rows;
  const size_t n = product.d_layout.columns;
  const size_t k = transpose_a ? product.a_layout.rows : product.a_layout.columns;
  const auto a_stride = static_cast<size_t>(product.a_layout.stride);
  const auto b_stride = static_cast<size_t>(product.b_layout.stride);
  const auto unpack = [&](const void* base, const Layout& layout, size_t index) {
    const float value = load(base, layout.type, index);
    return double{tf32 ? to_tf32(value) : value};
  };
  // Rows of A and columns of B, each in a row.
  std::vector<double> a(m * k);
  std::vector<double> b(n * k);
  for (size_t i = 0; i < m; ++i) {
    for (size_t l = 0; l < k; ++l) {
      a[i * k + l] =
          unpack(product.a, product.a_layout, transpose_a ? l + i * a_stride : i + l * a_stride);
    }
  }
  for (size_t j = 0; j < n; ++j) {
    for (size_t l = 0; l < k; ++l) {
      b[j * k + l] =
          unpack(product.b, product.b_layout, transpose_b ? j + l * b_stride : l + j * b_stride);
    }
  }
  // Whoever shares the workspace with something under way finds out.
  if (product.workspace_bytes > 0) {
    std::memset(product.workspace, 0xff, product.workspace_bytes);
  }
  const cudaDataType_t type = product.d_layout.type;
  for (size_t j = 0; j < n; ++j) {
    for (size_t i = 0; i < m; ++i) {
      double sum = 0;
      for (size_t l = 0; l < k; ++l) {
        sum += a[i * k + l] * b[j * k + l];
      }
      sum *= double{product.alpha};
      if (product.beta != 0) {
        const size_t at = i + j * static_cast<size_t>(product.c_layout.stride);
        sum += double{product.beta} * double{load(product.c, product.c_layout.type, at)};
      }
      if (has_bias(descriptor.epilogue)) {
        sum += double{load(descriptor.bias, type, i)};
      }
      const size_t at_auxiliary = i + j * static_cast<size_t>(descriptor.auxiliary_stride);
      if (descriptor.epilogue == CUBLASLT_EPILOGUE_DGELU) {
        sum *= gelu_slope(double{load(descriptor.auxiliary, type, at_auxiliary)});
      } else if ((descriptor.epilogue & CUBLASLT_EPILOGUE_GELU) != 0) {
        if (has_auxiliary(descriptor.epilogue)) {
          store(descriptor.auxiliary, type, at_auxiliary, static_cast<float>(sum));
        }
        sum = gelu(sum);
      }
      store(product.d, type, i + j * static_cast<size_t>(product.d_layout.stride),
            static_cast<float>(sum));
    }
  }
}

/// The part of a product's memory that is not the device's, in words; empty if all is.
std::string stray(const Product& product) {
  const auto& memory = Device::get().memory();
  const auto holds = [&](const void* base, const Layout& layout) {
    const auto columns = static_cast<int64_t>(layout.columns);
    const auto elements = (columns - 1) * layout.stride + static_cast<int64_t>(layout.rows);
    return memory.is_device_range(base, static_cast<size_t>(elements) * size_of(layout.type));
  };
  const Descriptor& descriptor = product.descriptor;
  if (!holds(product.a, product.a_layout)) return "A";
  if (!holds(product.b, product.b_layout)) return "B";
  if (product.beta != 0 && !holds(product.c, product.c_layout)) return "C";
  if (!holds(product.d, product.d_layout)) return "D";
  Layout vector = product.d_layout;
  vector.columns = 1;
  if (has_bias(descriptor.epilogue) && !holds(descriptor.bias, vector)) return "the bias";
  Layout auxiliary = product.d_layout;
  auxiliary.stride = descriptor.auxiliary_stride;
  if (has_auxiliary(descriptor.epilogue) && !holds(descriptor.auxiliary, auxiliary)) {
    return "the auxiliary matrix";
  }
  if (product.workspace_bytes > 0 &&
      !memory.is_device_range(product.workspace, product.workspace_bytes)) {
    return "the workspace";
  }
  return {};
}

/// The value of an attribute, if it has the attribute's size.
template <typename T>
cublasStatus_t assign(T& to, const void* value, size_t bytes) {
  if (bytes != sizeof(T)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  std::memcpy(&to, value, sizeof(T));
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace

// With C's linkage, as in runtime.cpp.
extern "C" {

// ---- the library ----

#define CUDASIM_STATUSES(X)                                                                      \
  X(CUBLAS_STATUS_SUCCESS, "success")                                                            \
  X(CUBLAS_STATUS_NOT_INITIALIZED, "the library was not initialized")                            \
  X(CUBLAS_STATUS_ALLOC_FAILED, "the resource allocation failed")                                \
  X(CUBLAS_STATUS_INVALID_VALUE, "an unsupported value or parameter was passed to the function") \
  X(CUBLAS_STATUS_ARCH_MISMATCH,                                                                 \
    "the function requires a feature absent from the device architecture")                       \
  X(CUBLAS_STATUS_EXECUTION_FAILED, "the function failed to launch on the GPU")                  \
  X(CUBLAS_STATUS_INTERNAL_ERROR, "an internal operation failed")                                \
  X(CUBLAS_STATUS_NOT_SUPPORTED, "the functionality requested is not supported")

const char* cublasLtGetStatusName(cublasStatus_t status) {
  switch (status) {
#define CUDASIM_NAME(code, text) \
  case code:                     \
    return #code;
    CUDASIM_STATUSES(CUDASIM_NAME)
#undef CUDASIM_NAME
  }
  return "unknown status";
}

const char* cublasLtGetStatusString(cublasStatus_t status) {
  switch (status) {
#define CUDASIM_TEXT(code, text) \
  case code:                     \
    return text;
    CUDASIM_STATUSES(CUDASIM_TEXT)
#undef CUDASIM_TEXT
  }
  return "unknown status";
}

size_t cublasLtGetVersion() { return 130000; }

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  if (handle == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  *handle = new cublasLtContext;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

// ---- descriptions ----

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* descriptor,
                                        cublasComputeType_t compute_type,
                                        cudaDataType_t scale_type) {
  if (descriptor == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  const bool supported =
      compute_type == CUBLAS_COMPUTE_32F || compute_type == CUBLAS_COMPUTE_32F_FAST_TF32;
  if (!supported || scale_type != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
  *descriptor = reinterpret_cast<cublasLtMatmulDesc_t>(new Descriptor{.compute = compute_type});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t descriptor) {
  delete of(descriptor);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t descriptor,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
  if (descriptor == nullptr || value == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return assign(of(descriptor)->transpose_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return assign(of(descriptor)->transpose_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return assign(of(descriptor)->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return assign(of(descriptor)->bias, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
      return assign(of(descriptor)->auxiliary, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
      return assign(of(descriptor)->auxiliary_stride, value, bytes);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType_t type,
                                          uint64_t rows, uint64_t columns,
                                          int64_t leading_dimension) {
  if (layout == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  if (type != CUDA_R_32F && type != CUDA_R_16F && type != CUDA_R_16BF) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  *layout =
      reinterpret_cast<cublasLtMatrixLayout_t>(new Layout{type, rows, columns, leading_dimension});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete of(layout);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  if (preference == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  *preference = reinterpret_cast<cublasLtMatmulPreference_t>(new Preference);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete of(preference);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, size_t bytes) {
  if (preference == nullptr || value == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return assign(of(preference)->workspace_bytes, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return assign(
          of(preference)->alignment[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], value,
          bytes);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

// ---- products ----

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle,
                                              cublasLtMatmulDesc_t descriptor,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int requested,
                                              cublasLtMatmulHeuristicResult_t results[],
                                              int* returned) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (descriptor == nullptr || a == nullptr || b == nullptr || c == nullptr || d == nullptr ||
      preference == nullptr || requested <= 0 || results == nullptr || returned == nullptr) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  *returned = 0;
  const cublasStatus_t status = check(*of(descriptor), *of(a), *of(b), *of(c), *of(d));
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  Algorithm algorithm{.mark = kAlgorithmMark, .workspace_bytes = 0, .alignment = {}};
  std::copy_n(of(preference)->alignment, 4, algorithm.alignment);
  for (const uint64_t workspace_bytes : kWorkspaces) {
    if (*returned == requested || workspace_bytes > of(preference)->workspace_bytes) continue;
    algorithm.workspace_bytes = workspace_bytes;
    cublasLtMatmulHeuristicResult_t& result = results[(*returned)++];
    result = {};
    std::memcpy(&result.algo, &algorithm, sizeof(algorithm));
    result.workspaceSize = workspace_bytes;
    result.state = CUBLAS_STATUS_SUCCESS;
    result.wavesCount = 1.0f;
  }
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t descriptor,
                              const void* alpha, const void* a, cublasLtMatrixLayout_t a_layout,
                              const void* b, cublasLtMatrixLayout_t b_layout, const void* beta,
                              const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t* algorithm, void* workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (descriptor == nullptr || a_layout == nullptr || b_layout == nullptr || c_layout == nullptr ||
      d_layout == nullptr || alpha == nullptr || beta == nullptr || a == nullptr || b == nullptr ||
      d == nullptr) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  const auto lock = Device::lock();
  Device& device = Device::get();
  if (cudasim::device_error() != cudaSuccess) return CUBLAS_STATUS_EXECUTION_FAILED;
  const cublasStatus_t status =
      check(*of(descriptor), *of(a_layout), *of(b_layout), *of(c_layout), *of(d_layout));
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  if (!device.knows(stream)) return CUBLAS_STATUS_INVALID_VALUE;
  Product product{*of(descriptor),
                  *of(a_layout),
                  *of(b_layout),
                  *of(c_layout),
                  *of(d_layout),
                  0,
                  0,
                  a,
                  b,
                  c,
                  d,
                  workspace,
                  0};
  std::memcpy(&product.alpha, alpha, sizeof(float));
  std::memcpy(&product.beta, beta, sizeof(float));
  if (product.beta != 0 && c == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  // In place, C is as D.
  if (c == d &&
      (of(c_layout)->stride != of(d_layout)->stride || of(c_layout)->type != of(d_layout)->type)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  Algorithm chosen{};
  if (algorithm != nullptr) {
    std::memcpy(&chosen, algorithm, sizeof(chosen));
    if (chosen.mark != kAlgorithmMark) return CUBLAS_STATUS_INVALID_VALUE;
    if (chosen.workspace_bytes > workspace_bytes) return CUBLAS_STATUS_INVALID_VALUE;
  } else {
    // The library asks its heuristics, for these pointers and this workspace.
    std::fill_n(chosen.alignment, 4, 2);
  }
  const void* const pointers[] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) {
    if (i == 2 && product.beta == 0) continue;  // C is not read
    const size_t size = size_of(i < 2 ? product.a_layout.type : product.d_layout.type);
    if (!is_aligned(pointers[i], std::max<size_t>(chosen.alignment[i], size))) {
      return CUBLAS_STATUS_INVALID_VALUE;
    }
  }
  if (chosen.workspace_bytes > 0 &&
      (workspace == nullptr || !is_aligned(workspace, kWorkspaceAlignment))) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  product.workspace_bytes = chosen.workspace_bytes;
  device.submit(stream, [&device, product] {
    const std::string what = stray(product);
    if (!what.empty()) {
      cudasim::report_fault(cudaErrorIllegalAddress,
                            "a product by cuBLASLt: " + what + " is not all in one allocation");
      return;
    }
    multiply(product);
    device.check_fences("a product by cuBLASLt");
  });
  return CUBLAS_STATUS_SUCCESS;
}

}  // extern "C"
