#include "kernels/cuda/matmul.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/rng.h"
#include "kernels/cuda/check.h"

namespace gradus::cuda {
namespace {

float to_float(float value) { return value; }
float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
float to_float(__half value) { return __half2float(value); }
void assign(float& to, float value) { to = value; }
void assign(__nv_bfloat16& to, float value) { to = __float2bfloat16_rn(value); }
void assign(__half& to, float value) { to = __float2half_rn(value); }

template <typename T>
struct TypeOf;
template <>
struct TypeOf<float> {
  static constexpr DType kDType = DType::fp32;
  static constexpr double kBound = 1e-5;  // sums of some hundred products, each rounded down
};
template <>
struct TypeOf<__nv_bfloat16> {
  static constexpr DType kDType = DType::bf16;
  static constexpr double kBound = 4.1e-3;  // half a unit in the last of 8 bits, and the sum's own
};
template <>
struct TypeOf<__half> {
  static constexpr DType kDType = DType::fp16;
  static constexpr double kBound = 5.2e-4;
};

constexpr unsigned char kPoison = 0xFF;  // a NaN in every type
constexpr int64_t kGuard = 64;           // elements before and behind a matrix

/// A row-major matrix on the device, its rows `stride` apart, in the midst of poison.
template <typename T>
class Matrix {
 public:
  Matrix(int64_t rows, int64_t columns, int64_t stride, int64_t shift = 0)
      : rows_(rows), columns_(columns), stride_(stride), shift_(shift) {
    GRADUS_CUDA_CHECK(cudaMalloc(&memory_, bytes()));
    poison();
  }
  ~Matrix() { cudaFree(memory_); }
  Matrix(const Matrix&) = delete;
  Matrix& operator=(const Matrix&) = delete;

  T* data() const { return static_cast<T*>(memory_) + kGuard + shift_; }
  int64_t stride() const { return stride_; }
  void poison() {
    GRADUS_CUDA_CHECK(cudaMemset(memory_, kPoison, bytes()));
    GRADUS_CUDA_CHECK(cudaDeviceSynchronize());  // the products' stream does not wait for this one
  }

  /// Random values, as the type has them, row after row without gaps.
  std::vector<double> randomize(uint64_t seed, double deviation) {
    std::vector<T> all = everything();
    std::vector<double> values;
    const uint64_t key = rng_key(seed, 0);
    for (int64_t row = 0; row < rows_; ++row) {
      for (int64_t column = 0; column < columns_; ++column) {
        const auto words =
            philox4x32(key, static_cast<uint64_t>(row), static_cast<uint64_t>(column));
        const double uniform = static_cast<double>(words[0]) * 0x1p-32 - 0.5;
        T& element = all[index(row, column)];
        assign(element, static_cast<float>(uniform * 3.4641 * deviation));
        values.push_back(to_float(element));
      }
    }
    GRADUS_CUDA_CHECK(cudaMemcpy(memory_, all.data(), bytes(), cudaMemcpyHostToDevice));
    return values;
  }

  /// The values; fails where anything but the matrix was written to.
  std::vector<double> values(const std::string& what) const {
    std::vector<T> all = everything();
    std::vector<double> values;
    for (int64_t row = 0; row < rows_; ++row) {
      for (int64_t column = 0; column < columns_; ++column) {
        values.push_back(to_float(all[index(row, column)]));
        std::memset(static_cast<void*>(&all[index(row, column)]), kPoison, sizeof(T));
      }
    }
    const auto* raw = reinterpret_cast<const unsigned char*>(all.data());
    EXPECT_TRUE(std::all_of(raw, raw + bytes(), [](unsigned char byte) { return byte == kPoison; }))
        << what << " wrote beside its result";
    return values;
  }

 private:
  size_t count() const { return static_cast<size_t>(rows_ * stride_ + 2 * kGuard + shift_); }
  size_t bytes() const { return count() * sizeof(T); }
  size_t index(int64_t row, int64_t column) const {
    return static_cast<size_t>(kGuard + shift_ + row * stride_ + column);
  }
  std::vector<T> everything() const {
    std::vector<T> all(count());
    GRADUS_CUDA_CHECK(cudaMemcpy(all.data(), memory_, bytes(), cudaMemcpyDeviceToHost));
    return all;
  }

  int64_t rows_, columns_, stride_, shift_;
  void* memory_ = nullptr;
};

void expect_close(const std::vector<double>& got, const std::vector<double>& want, double bound,
                  const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  double error = 0.0;
  double magnitude = 0.0;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_TRUE(std::isfinite(got[i])) << what << ", element " << i << " is " << got[i];
    error = std::max(error, std::fabs(got[i] - want[i]));
    magnitude = std::max(magnitude, std::fabs(want[i]));
  }
  EXPECT_LE(error, bound * magnitude) << what << ": largest error against the largest value";
}

double gelu(double x) {
  return 0.5 * x * (1.0 + std::tanh(0.79788456080286536 * (x + 0.044715 * x * x * x)));
}
double gelu_derivative(double x) {
  const double t = std::tanh(0.79788456080286536 * (x + 0.044715 * x * x * x));
  return 0.5 * (1.0 + t) +
         0.5 * x * (1.0 - t * t) * 0.79788456080286536 * (1.0 + 3.0 * 0.044715 * x * x);
}

/// Some of the library's algorithms round the sum to the result's type before an epilogue reads it
/// (seen on an H100 with bf16, where rows miss 16 bytes and with DGELU): two roundings. Its tanh is
/// an approximation.
template <typename Out>
double bound_of(bool epilogue, bool gelu) {
  return std::max((epilogue ? 2 : 1) * TypeOf<Out>::kBound, gelu ? 1e-3 : 0.0);
}

struct Case {
  int64_t rows, in_features, out_features;
  int64_t gap = 0;    ///< elements between rows of in and out
  int64_t shift = 0;  ///< elements by which pointers miss the alignment of cudaMalloc
};
std::string name_of(const Case& c) {
  return std::to_string(c.rows) + " rows, " + std::to_string(c.in_features) + " in, " +
         std::to_string(c.out_features) + " out, gap " + std::to_string(c.gap) + ", shift " +
         std::to_string(c.shift);
}

const Case kCases[] = {
    {1, 1, 1},          {1, 7, 3},          {5, 13, 7},         {17, 64, 33},    {33, 31, 65},
    {64, 32, 48},       {128, 96, 72},      {130, 72, 40, 8},   {61, 24, 56, 3}, {96, 64, 64, 16},
    {40, 40, 24, 0, 1}, {72, 48, 80, 8, 8}, {257, 128, 384, 0},
};

/// in · Wᵀ, dout · W and doutᵀ · in in fp64.
struct Reference {
  std::vector<double> in, weight, dout;
  Case c;

  double forward(int64_t row, int64_t to) const {
    double sum = 0.0;
    for (int64_t k = 0; k < c.in_features; ++k) {
      sum += in[at(row, k, c.in_features)] * weight[at(to, k, c.in_features)];
    }
    return sum;
  }
  double backward_input(int64_t row, int64_t from) const {
    double sum = 0.0;
    for (int64_t n = 0; n < c.out_features; ++n) {
      sum += dout[at(row, n, c.out_features)] * weight[at(n, from, c.in_features)];
    }
    return sum;
  }
  double backward_weight(int64_t to, int64_t from) const {
    double sum = 0.0;
    for (int64_t m = 0; m < c.rows; ++m) {
      sum += dout[at(m, to, c.out_features)] * in[at(m, from, c.in_features)];
    }
    return sum;
  }
  static size_t at(int64_t row, int64_t column, int64_t columns) {
    return static_cast<size_t>(row * columns + column);
  }
};

template <typename T>
class MatmulTest : public testing::Test {
 protected:
  MatmulTest() {
    GRADUS_CUDA_CHECK(cudaMalloc(&workspace_, kMatmulWorkspaceBytes));
    GRADUS_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  ~MatmulTest() override {
    cudaStreamDestroy(stream_);
    cudaFree(workspace_);
  }

  Matmul matmul() const { return Matmul({workspace_, kMatmulWorkspaceBytes}); }
  void synchronize() const { GRADUS_CUDA_CHECK(cudaStreamSynchronize(stream_)); }

  template <typename Out>
  void check_forward(const Case& c, bool with_bias, bool with_gelu, bool with_pre_gelu) {
    SCOPED_TRACE(name_of(c) + (with_bias ? ", bias" : "") + (with_gelu ? ", GELU" : "") +
                 (with_pre_gelu ? ", kept" : ""));
    Matrix<T> in(c.rows, c.in_features, c.in_features + c.gap, c.shift);
    Matrix<T> weight(c.out_features, c.in_features, c.in_features, c.shift);
    Matrix<T> bias(1, c.out_features, c.out_features, c.shift);
    Matrix<Out> out(c.rows, c.out_features, c.out_features + c.gap, c.shift);
    Matrix<Out> pre_gelu(c.rows, c.out_features, c.out_features + c.gap, c.shift);
    Reference reference{.c = c};
    reference.in = in.randomize(1, 1.0);
    reference.weight = weight.randomize(2, 0.5);
    const std::vector<double> biases = bias.randomize(3, 1.0);
    Matmul products = matmul();
    products.forward({.out = out.data(),
                      .in = in.data(),
                      .weight = weight.data(),
                      .bias = with_bias ? bias.data() : nullptr,
                      .gelu = with_gelu,
                      .pre_gelu = with_pre_gelu ? pre_gelu.data() : nullptr,
                      .rows = c.rows,
                      .in_features = c.in_features,
                      .out_features = c.out_features,
                      .out_stride = out.stride(),
                      .in_stride = in.stride(),
                      .pre_gelu_stride = pre_gelu.stride(),
                      .dtype = TypeOf<T>::kDType,
                      .out_dtype = TypeOf<Out>::kDType},
                     stream_);
    synchronize();
    std::vector<double> sums;
    for (int64_t row = 0; row < c.rows; ++row) {
      for (int64_t to = 0; to < c.out_features; ++to) {
        sums.push_back(reference.forward(row, to) +
                       (with_bias ? biases[static_cast<size_t>(to)] : 0.0));
      }
    }
    std::vector<double> want = sums;
    if (with_gelu) std::transform(want.begin(), want.end(), want.begin(), gelu);
    const double bound = bound_of<Out>(with_bias, with_gelu);
    expect_close(out.values("forward"), want, bound, "out");
    if (with_pre_gelu) {
      expect_close(pre_gelu.values("forward"), sums, bound_of<Out>(with_bias, false), "pre_gelu");
    }
  }

  template <typename Out>
  void check_backward_input(const Case& c, bool through_gelu) {
    SCOPED_TRACE(name_of(c) + (through_gelu ? ", through GELU" : ""));
    Matrix<T> dout(c.rows, c.out_features, c.out_features + c.gap, c.shift);
    Matrix<T> weight(c.out_features, c.in_features, c.in_features, c.shift);
    Matrix<Out> din(c.rows, c.in_features, c.in_features + c.gap, c.shift);
    Matrix<T> pre_gelu(c.rows, c.in_features, c.in_features + c.gap, c.shift);
    Reference reference{.c = c};
    reference.dout = dout.randomize(4, 1.0);
    reference.weight = weight.randomize(5, 0.5);
    const std::vector<double> at = pre_gelu.randomize(6, 1.0);
    Matmul products = matmul();
    products.backward_input({.din = din.data(),
                             .dout = dout.data(),
                             .weight = weight.data(),
                             .pre_gelu = through_gelu ? pre_gelu.data() : nullptr,
                             .rows = c.rows,
                             .in_features = c.in_features,
                             .out_features = c.out_features,
                             .din_stride = din.stride(),
                             .dout_stride = dout.stride(),
                             .pre_gelu_stride = pre_gelu.stride(),
                             .dtype = TypeOf<T>::kDType,
                             .din_dtype = TypeOf<Out>::kDType},
                            stream_);
    synchronize();
    std::vector<double> want;
    for (int64_t row = 0; row < c.rows; ++row) {
      for (int64_t from = 0; from < c.in_features; ++from) {
        want.push_back(reference.backward_input(row, from));
        if (through_gelu) want.back() *= gelu_derivative(at[want.size() - 1]);
      }
    }
    const double bound = bound_of<Out>(through_gelu, through_gelu);
    expect_close(din.values("backward_input"), want, bound, "din");
  }

  template <typename Out>
  void check_backward_weight(const Case& c, bool accumulate) {
    SCOPED_TRACE(name_of(c) + (accumulate ? ", added" : ", written"));
    Matrix<T> dout(c.rows, c.out_features, c.out_features + c.gap, c.shift);
    Matrix<T> in(c.rows, c.in_features, c.in_features + c.gap, c.shift);
    Matrix<Out> dweight(c.out_features, c.in_features, c.in_features, c.shift);
    Reference reference{.c = c};
    reference.dout = dout.randomize(7, 1.0);
    reference.in = in.randomize(8, 1.0);
    std::vector<double> before(static_cast<size_t>(c.in_features * c.out_features), 0.0);
    if (accumulate) before = dweight.randomize(9, 3.0);
    Matmul products = matmul();
    products.backward_weight({.dweight = dweight.data(),
                              .dout = dout.data(),
                              .in = in.data(),
                              .accumulate = accumulate,
                              .rows = c.rows,
                              .in_features = c.in_features,
                              .out_features = c.out_features,
                              .dout_stride = dout.stride(),
                              .in_stride = in.stride(),
                              .dtype = TypeOf<T>::kDType,
                              .dweight_dtype = TypeOf<Out>::kDType},
                             stream_);
    synchronize();
    std::vector<double> want;
    for (int64_t to = 0; to < c.out_features; ++to) {
      for (int64_t from = 0; from < c.in_features; ++from) {
        want.push_back(before[want.size()] + reference.backward_weight(to, from));
      }
    }
    expect_close(dweight.values("backward_weight"), want, TypeOf<Out>::kBound, "dweight");
  }

  void* workspace_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

using Types = testing::Types<float, __nv_bfloat16, __half>;
TYPED_TEST_SUITE(MatmulTest, Types);

TYPED_TEST(MatmulTest, Forward) {
  for (const Case& c : kCases) this->template check_forward<TypeParam>(c, false, false, false);
}

TYPED_TEST(MatmulTest, ForwardWithBias) {
  for (const Case& c : kCases) this->template check_forward<TypeParam>(c, true, false, false);
}

TYPED_TEST(MatmulTest, ForwardInFp32) {
  for (const Case& c : kCases) this->template check_forward<float>(c, false, false, false);
}

// Bias and GELU together have rules of their own for alignment: what a model has.
const Case kGeluCases[] = {{64, 32, 48}, {130, 72, 40, 8}, {256, 96, 384}, {72, 48, 80, 8, 8}};

TYPED_TEST(MatmulTest, ForwardWithGelu) {
  for (const Case& c : kGeluCases) this->template check_forward<TypeParam>(c, true, true, false);
}

TYPED_TEST(MatmulTest, ForwardKeepsWhatGeluIsAppliedTo) {
  for (const Case& c : kGeluCases) this->template check_forward<TypeParam>(c, true, true, true);
}

TYPED_TEST(MatmulTest, BackwardInput) {
  for (const Case& c : kCases) this->template check_backward_input<TypeParam>(c, false);
}

TYPED_TEST(MatmulTest, BackwardInputInFp32) {
  for (const Case& c : kCases) this->template check_backward_input<float>(c, false);
}

TYPED_TEST(MatmulTest, BackwardInputThroughGelu) {
  for (const Case& c : kGeluCases) this->template check_backward_input<TypeParam>(c, true);
}

TYPED_TEST(MatmulTest, BackwardWeightAddsInFp32) {
  for (const Case& c : kCases) this->template check_backward_weight<float>(c, true);
}

TYPED_TEST(MatmulTest, BackwardWeightWritesInFp32) {
  for (const Case& c : kCases) this->template check_backward_weight<float>(c, false);
}

TYPED_TEST(MatmulTest, BackwardWeightInItsType) {
  for (const Case& c : kCases) this->template check_backward_weight<TypeParam>(c, false);
}

TYPED_TEST(MatmulTest, NoRowsAreNoWork) {
  const Case none{0, 24, 16};
  this->template check_forward<TypeParam>(none, true, false, false);
  this->template check_backward_input<TypeParam>(none, false);
  this->template check_backward_weight<float>(none, true);
  this->template check_backward_weight<float>(none, false);
}

TYPED_TEST(MatmulTest, TuningKeepsARightAlgorithm) {
  const int64_t n = 64;
  Matrix<TypeParam> in(n, n, n);
  Matrix<TypeParam> weight(n, n, n);
  Matrix<TypeParam> out(n, n, n);
  Reference reference{.c = {n, n, n}};
  reference.in = in.randomize(10, 1.0);
  reference.weight = weight.randomize(11, 1.0);
  Matmul products = this->matmul();
  const MatmulForward arguments{.out = out.data(),
                                .in = in.data(),
                                .weight = weight.data(),
                                .rows = n,
                                .in_features = n,
                                .out_features = n,
                                .dtype = TypeOf<TypeParam>::kDType,
                                .out_dtype = TypeOf<TypeParam>::kDType};
  const std::vector<double> times = products.tune(arguments, this->stream_, 4);
  EXPECT_FALSE(times.empty());
  for (const double time : times) EXPECT_GT(time, 0.0);
  out.poison();
  products.forward(arguments, this->stream_);
  this->synchronize();
  std::vector<double> want;
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t to = 0; to < n; ++to) want.push_back(reference.forward(row, to));
  }
  expect_close(out.values("forward"), want, TypeOf<TypeParam>::kBound, "out");
}

// ---------------------------------------------------------------------------------------------
// The contract's refusals need no device.

MatmulForward valid_forward(void* memory) {
  return {.out = memory,
          .in = memory,
          .weight = memory,
          .rows = 8,
          .in_features = 16,
          .out_features = 24};
}

TEST(MatmulContract, RefusesWhatDoesNotFit) {
  alignas(16) char memory[16];
  const MatmulForward valid = valid_forward(memory);
  EXPECT_NO_THROW(column_major(valid));
  MatmulForward bad = valid;
  bad.in_stride = 15;
  EXPECT_THROW(column_major(bad), ShapeError);
  bad = valid;
  bad.out_stride = 23;
  EXPECT_THROW(column_major(bad), ShapeError);
  bad = valid;
  bad.in_features = 0;
  EXPECT_THROW(column_major(bad), ShapeError);
  bad = valid;
  bad.weight = nullptr;
  EXPECT_THROW(column_major(bad), ShapeError);
  bad = valid;
  bad.out_dtype = DType::fp16;
  EXPECT_THROW(column_major(bad), ShapeError);
  bad = valid;
  bad.bias = memory;
  bad.out_dtype = DType::fp32;
  EXPECT_THROW(column_major(bad), ShapeError);
  bad = valid;
  bad.pre_gelu = memory;
  EXPECT_THROW(column_major(bad), ShapeError) << "no GELU asked for";
  bad.gelu = true;
  EXPECT_NO_THROW(column_major(bad));
  bad.pre_gelu_stride = 25;
  EXPECT_THROW(column_major(bad), ShapeError);
}

TEST(MatmulContract, TakesTheAlignmentFromThePointers) {
  alignas(16) char memory[32];
  MatmulForward a = valid_forward(memory);
  EXPECT_EQ(column_major(a).product.alignment, 16);
  a.in = memory + 2;
  EXPECT_EQ(column_major(a).product.alignment, 2);
  a.in = memory;
  a.out = memory + 8;
  EXPECT_EQ(column_major(a).product.alignment, 8);
}

TEST(MatmulContract, AnErrorSaysWhichProduct) {
  alignas(16) char memory[16];
  const std::string text = describe(column_major(valid_forward(memory)).product);
  EXPECT_NE(text.find("(24, 8; stride 24; bf16)"), std::string::npos) << text;
}

}  // namespace
}  // namespace gradus::cuda
