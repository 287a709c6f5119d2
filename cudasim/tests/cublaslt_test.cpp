// Products of cuBLASLt as cudasim makes them, against sums in double, and what they refuse.
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "cudasim/control.h"
#include "device_buffer.h"

namespace gradus::cuda {
namespace {

template <typename T>
constexpr cudaDataType_t kType = CUDA_R_32F;
template <>
constexpr cudaDataType_t kType<__nv_bfloat16> = CUDA_R_16BF;
template <>
constexpr cudaDataType_t kType<__half> = CUDA_R_16F;

/// D = epilogue(op(A) op(B) + beta C), column-major, with everything that may be turned wrong.
struct Product {
  uint64_t m = 7, n = 5, k = 9;
  bool transpose_a = false, transpose_b = false;
  int64_t pad_a = 0, pad_b = 0, pad_d = 0;
  cudaDataType_t type = CUDA_R_32F, result = CUDA_R_32F;
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  int64_t auxiliary_stride = 8;
  uint32_t alignment = 4;
  uint64_t workspace_bytes = 0;
  int offset = 0;  ///< of A, in bytes
  float beta = 0;
  void* bias = nullptr;
  void* auxiliary = nullptr;
};

/// Owns the descriptors of a product.
class Descriptors {
 public:
  explicit Descriptors(const Product& p) : product_(p) {
    EXPECT_EQ(cublasLtCreate(&handle_), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cublasLtMatmulDescCreate(&descriptor_, p.compute, CUDA_R_32F), CUBLAS_STATUS_SUCCESS);
    set(CUBLASLT_MATMUL_DESC_TRANSA, p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_TRANSB, p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, p.epilogue);
    set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, p.auxiliary);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, p.auxiliary_stride);
    const uint64_t a_rows = p.transpose_a ? p.k : p.m;
    const uint64_t b_rows = p.transpose_b ? p.n : p.k;
    layout(a_, p.type, a_rows, p.m * p.k / a_rows, p.pad_a);
    layout(b_, p.type, b_rows, p.n * p.k / b_rows, p.pad_b);
    layout(d_, p.result, p.m, p.n, p.pad_d);
    EXPECT_EQ(cublasLtMatmulPreferenceCreate(&preference_), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(
        cublasLtMatmulPreferenceSetAttribute(preference_, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                             &p.workspace_bytes, sizeof(p.workspace_bytes)),
        CUBLAS_STATUS_SUCCESS);
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      EXPECT_EQ(cublasLtMatmulPreferenceSetAttribute(preference_, attribute, &p.alignment,
                                                     sizeof(p.alignment)),
                CUBLAS_STATUS_SUCCESS);
    }
  }
  ~Descriptors() {
    cublasLtMatmulPreferenceDestroy(preference_);
    for (cublasLtMatrixLayout_t layout : {a_, b_, d_}) {
      cublasLtMatrixLayoutDestroy(layout);
    }
    cublasLtMatmulDescDestroy(descriptor_);
    cublasLtDestroy(handle_);
  }
  Descriptors(const Descriptors&) = delete;
  Descriptors& operator=(const Descriptors&) = delete;

  cublasStatus_t heuristic(std::vector<cublasLtMatmulHeuristicResult_t>& found) {
    found.resize(8);
    int count = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        handle_, descriptor_, a_, b_, d_, d_, preference_, 8, found.data(), &count);
    found.resize(static_cast<size_t>(count));
    return status;
  }
  cublasStatus_t multiply(const void* a, const void* b, void* d,
                          const cublasLtMatmulAlgo_t* algorithm, void* workspace = nullptr,
                          size_t workspace_bytes = 0) {
    const float alpha = 1;
    return cublasLtMatmul(handle_, descriptor_, &alpha, a, a_, b, b_, &product_.beta, d, d_, d, d_,
                          algorithm, workspace, workspace_bytes, nullptr);
  }

 private:
  template <typename T>
  void set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    EXPECT_EQ(cublasLtMatmulDescSetAttribute(descriptor_, attribute, &value, sizeof(value)),
              CUBLAS_STATUS_SUCCESS);
  }
  static void layout(cublasLtMatrixLayout_t& to, cudaDataType_t type, uint64_t rows,
                     uint64_t columns, int64_t pad) {
    EXPECT_EQ(
        cublasLtMatrixLayoutCreate(&to, type, rows, columns, static_cast<int64_t>(rows) + pad),
        CUBLAS_STATUS_SUCCESS);
  }

  Product product_;
  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t descriptor_ = nullptr;
  cublasLtMatrixLayout_t a_ = nullptr, b_ = nullptr, d_ = nullptr;
  cublasLtMatmulPreference_t preference_ = nullptr;
};

/// What a heuristic and then a product say of `p`, whose operands are large enough.
cublasStatus_t status_of(Product p, bool with_algorithm = true) {
  DeviceBuffer<float> a(1000), b(1000), d(1000), bias(1000), auxiliary(1000);
  if (p.bias == nullptr) p.bias = bias.data();
  if (p.auxiliary == nullptr) p.auxiliary = auxiliary.data();
  Descriptors descriptors(p);
  std::vector<cublasLtMatmulHeuristicResult_t> found;
  const cublasStatus_t status = descriptors.heuristic(found);
  if (status != CUBLAS_STATUS_SUCCESS) {
    // A product with these is refused in the same way.
    EXPECT_EQ(descriptors.multiply(a.data(), b.data(), d.data(), nullptr), status);
    return status;
  }
  EXPECT_FALSE(found.empty());
  return descriptors.multiply(reinterpret_cast<char*>(a.data()) + p.offset, b.data(), d.data(),
                              with_algorithm ? &found[0].algo : nullptr);
}

double gelu(double x) {
  return x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

template <typename T>
void expect_products(double tolerance) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (const uint32_t epilogue :
       {CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_GELU,
        CUBLASLT_EPILOGUE_GELU_BIAS, CUBLASLT_EPILOGUE_GELU_AUX, CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
        CUBLASLT_EPILOGUE_DGELU}) {
    for (int turn = 0; turn < 8; ++turn) {
      Product p{.transpose_a = (turn & 1) != 0,
                .transpose_b = (turn & 2) != 0,
                .pad_a = 2,
                .pad_b = 3,
                .pad_d = 4,
                .type = kType<T>,
                .result = kType<T>,
                .epilogue = epilogue,
                .alignment = sizeof(T),
                .beta = (turn & 4) != 0 ? 1.0f : 0.0f};
      const auto draw = [&](size_t size) {
        std::vector<T> values(size);
        for (T& value : values) value = normal(random);
        return values;
      };
      const size_t a_stride = (p.transpose_a ? p.k : p.m) + 2;
      const size_t b_stride = (p.transpose_b ? p.n : p.k) + 3;
      const size_t d_stride = p.m + 4;
      const auto a = draw(a_stride * 9), b = draw(b_stride * 9), bias = draw(p.m);
      const auto d_before = draw(d_stride * p.n), aux_before = draw(8 * p.n);
      DeviceBuffer<T> device_a(a), device_b(b), device_d(d_before), device_bias(bias),
          device_aux(aux_before);
      p.bias = device_bias.data();
      p.auxiliary = device_aux.data();
      Descriptors descriptors(p);
      std::vector<cublasLtMatmulHeuristicResult_t> found;
      ASSERT_EQ(descriptors.heuristic(found), CUBLAS_STATUS_SUCCESS);
      ASSERT_EQ(
          descriptors.multiply(device_a.data(), device_b.data(), device_d.data(), &found[0].algo),
          CUBLAS_STATUS_SUCCESS);
      const auto d = device_d.download(), aux = device_aux.download();
      for (size_t j = 0; j < p.n; ++j) {
        for (size_t i = 0; i < p.m; ++i) {
          double sum = p.beta * double{float(d_before[i + j * d_stride])};
          for (size_t l = 0; l < p.k; ++l) {
            sum += double{float(a[p.transpose_a ? l + i * a_stride : i + l * a_stride])} *
                   double{float(b[p.transpose_b ? j + l * b_stride : l + j * b_stride])};
          }
          if (epilogue & CUBLASLT_EPILOGUE_BIAS) sum += double{float(bias[i])};
          if (epilogue == CUBLASLT_EPILOGUE_DGELU) {
            const double x = double{float(aux_before[i + 8 * j])};
            sum *= (gelu(x + 1e-5) - gelu(x - 1e-5)) / 2e-5;
          } else if (epilogue & CUBLASLT_EPILOGUE_GELU) {
            if (epilogue & 128) {
              EXPECT_NEAR(float(aux[i + 8 * j]), sum, tolerance * 16);
            }
            sum = gelu(sum);
          }
          EXPECT_NEAR(float(d[i + j * d_stride]), sum, tolerance * 16) << epilogue << " " << turn;
        }
        for (size_t i = p.m; i < d_stride; ++i) {
          EXPECT_EQ(float(d[i + j * d_stride]), float(d_before[i + j * d_stride]));
        }
      }
    }
  }
}

TEST(CublasLt, MakesProducts) {
  expect_products<float>(0x1p-23);
  expect_products<__nv_bfloat16>(0x1p-9);
  expect_products<__half>(0x1p-11);
}

TEST(CublasLt, RoundsToTf32WhenAsked) {
  const float a = 1.0f + 0x1p-11f, b = 3.0f;
  for (const bool tf32 : {false, true}) {
    DeviceBuffer<float> device_a(std::vector<float>{a}), device_b(std::vector<float>{b}), d(1);
    Descriptors descriptors({.m = 1,
                             .n = 1,
                             .k = 1,
                             .compute = tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F});
    ASSERT_EQ(descriptors.multiply(device_a.data(), device_b.data(), d.data(), nullptr),
              CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(d.download()[0], (tf32 ? 1.0f + 0x1p-10f : a) * b);
  }
}

TEST(CublasLt, RefusesWhatItsTablesDoNotHave) {
  EXPECT_EQ(status_of({}), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(status_of({.type = CUDA_R_16BF}), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(status_of({.type = CUDA_R_16BF, .result = CUDA_R_16F}), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(status_of({.type = CUDA_R_32F, .result = CUDA_R_16BF}), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(status_of({.type = CUDA_R_16BF, .compute = CUBLAS_COMPUTE_32F_FAST_TF32}),
            CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(status_of({.type = CUDA_R_16BF, .epilogue = CUBLASLT_EPILOGUE_BIAS}),
            CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(status_of({.epilogue = CUBLASLT_EPILOGUE_RELU}), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(status_of({.epilogue = CUBLASLT_EPILOGUE_BGRADB}), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(status_of({.pad_a = -1}), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(status_of({.pad_d = -1}), CUBLAS_STATUS_INVALID_VALUE);
  cublasLtMatmulDesc_t descriptor = nullptr;
  EXPECT_EQ(cublasLtMatmulDescCreate(&descriptor, CUBLAS_COMPUTE_32F_FAST_16BF, CUDA_R_32F),
            CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(cublasLtMatmulDescCreate(&descriptor, CUBLAS_COMPUTE_32F, CUDA_R_16F),
            CUBLAS_STATUS_NOT_SUPPORTED);
}

TEST(CublasLt, KeepsToTheAuxiliaryMatrixsRules) {
  for (const uint32_t epilogue : {CUBLASLT_EPILOGUE_GELU_AUX, CUBLASLT_EPILOGUE_DGELU}) {
    EXPECT_EQ(status_of({.epilogue = epilogue, .auxiliary_stride = 16}), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(status_of({.epilogue = epilogue, .auxiliary_stride = 12}),
              CUBLAS_STATUS_INVALID_VALUE);
    EXPECT_EQ(status_of({.m = 9, .epilogue = epilogue, .auxiliary_stride = 8}),
              CUBLAS_STATUS_INVALID_VALUE);
    DeviceBuffer<float> auxiliary(1000);
    EXPECT_EQ(status_of({.epilogue = epilogue, .auxiliary = auxiliary.data() + 1}),
              CUBLAS_STATUS_NOT_SUPPORTED);
  }
}

TEST(CublasLt, AnAlgorithmIsForItsAlignmentAndWorkspace) {
  EXPECT_EQ(status_of({.alignment = 16, .offset = 16}), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(status_of({.alignment = 16, .offset = 8}), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(status_of({.alignment = 16, .offset = 8}, false), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(status_of({.offset = 2}, false), CUBLAS_STATUS_INVALID_VALUE);
  // The first algorithm of a large workspace needs one.
  EXPECT_EQ(status_of({.workspace_bytes = 32 << 20}), CUBLAS_STATUS_INVALID_VALUE);
  DeviceBuffer<float> a(63), b(45), d(35);
  DeviceBuffer<char> workspace(4 << 20);
  Descriptors descriptors({.workspace_bytes = 4 << 20});
  std::vector<cublasLtMatmulHeuristicResult_t> found;
  ASSERT_EQ(descriptors.heuristic(found), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(found.size(), 3u);
  for (const auto& result : found) {
    EXPECT_EQ(descriptors.multiply(a.data(), b.data(), d.data(), &result.algo, workspace.data(),
                                   result.workspaceSize),
              CUBLAS_STATUS_SUCCESS);
  }
  EXPECT_EQ(descriptors.multiply(a.data(), b.data(), d.data(), &found[0].algo, workspace.data() + 1,
                                 4 << 20),
            CUBLAS_STATUS_INVALID_VALUE);
}

TEST(CublasLt, MemoryThatIsTooSmallIsAFault) {
  {
    DeviceBuffer<float> a(63), b(45), d(34);
    Descriptors descriptors({});
    EXPECT_EQ(descriptors.multiply(a.data(), b.data(), d.data(), nullptr), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
    EXPECT_THAT(cudasim::last_fault(), ::testing::HasSubstr("D is not all in one allocation"));
  }
  cudaDeviceReset();
}

}  // namespace
}  // namespace gradus::cuda
