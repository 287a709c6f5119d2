#include "kernels/cuda/matmul.h"

#include <algorithm>
#include <bit>
#include <initializer_list>
#include <utility>

#include "core/error.h"
#include "kernels/cuda/check.h"

// A row-major matrix is, read column-major, its transpose. So each product is handed over as its
// transpose, operands swapped, and no memory is transposed:
//   out  (rows, N) = in (rows, K) · Wᵀ    becomes  outᵀ = W · inᵀ     W is read transposed
//   din  (rows, K) = dout (rows, N) · W   becomes  dinᵀ = Wᵀ · doutᵀ
//   dW   (N, K)    = doutᵀ · in           becomes  dWᵀ  = inᵀ · dout  dout is read transposed
// The library's bias runs along the rows of its result, which are our columns, as it should.

namespace gradus::cuda {
namespace {

constexpr int kLargestAlignment = 16;  // bytes: no algorithm asks for more
constexpr int kAuxiliaryStride = 8;    // elements: the library's rule for GELU's auxiliary matrix
constexpr int kTimedRuns = 5;

/// The largest power of two, up to 16, that divides all addresses.
int alignment_of(std::initializer_list<const void*> pointers) {
  uintptr_t bits = kLargestAlignment;
  for (const void* pointer : pointers) bits |= reinterpret_cast<uintptr_t>(pointer);
  return 1 << std::countr_zero(bits);
}

int64_t stride_or(int64_t stride, int64_t contiguous) { return stride != 0 ? stride : contiguous; }

struct Sizes {
  int64_t rows, in_features, out_features;
};

void require_sizes(const char* operation, const Sizes& sizes) {
  if (sizes.rows < 0 || sizes.in_features <= 0 || sizes.out_features <= 0) {
    throw ShapeError("{}: {} rows, {} features in, {} out", operation, sizes.rows,
                     sizes.in_features, sizes.out_features);
  }
}

void require_stride(const char* operation, const char* argument, int64_t stride, int64_t columns) {
  if (stride < columns) {
    throw ShapeError("{}: the rows of {} lie {} elements apart, but have {}", operation, argument,
                     stride, columns);
  }
}

void require_given(const char* operation,
                   std::initializer_list<std::pair<const char*, const void*>> arguments) {
  for (const auto& [name, pointer] : arguments) {
    if (pointer == nullptr) throw ShapeError("{}: {} has no memory", operation, name);
  }
}

void require_result(const char* operation, const char* argument, DType result, DType operand) {
  if (result != operand && result != DType::fp32) {
    throw ShapeError("{}: {} is of {}, expected {} or fp32", operation, argument, to_string(result),
                     to_string(operand));
  }
}

void require_auxiliary(const char* operation, const void* pre_gelu, int64_t stride) {
  if (stride % kAuxiliaryStride != 0 || alignment_of({pre_gelu}) < kLargestAlignment) {
    throw ShapeError(
        "{}: the rows of pre_gelu lie {} elements apart, expected a multiple of {}, the first "
        "aligned to {} bytes; apply GELU on its own instead",
        operation, stride, kAuxiliaryStride, kLargestAlignment);
  }
}

cublasLtEpilogue_t epilogue_of(const MatmulForward& a) {
  if (!a.gelu) return a.bias != nullptr ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
  if (a.pre_gelu == nullptr) {
    return a.bias != nullptr ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
  }
  return a.bias != nullptr ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
}

class Event {
 public:
  Event() { GRADUS_CUDA_CHECK(cudaEventCreate(&event_)); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace

CublasLtCall column_major(const MatmulForward& a, bool tf32) {
  constexpr const char* kOperation = "matmul_forward";
  require_sizes(kOperation, {a.rows, a.in_features, a.out_features});
  const int64_t out_stride = stride_or(a.out_stride, a.out_features);
  const int64_t in_stride = stride_or(a.in_stride, a.in_features);
  const int64_t pre_gelu_stride = stride_or(a.pre_gelu_stride, a.out_features);
  require_given(kOperation, {{"weight", a.weight}});
  if (a.rows > 0) require_given(kOperation, {{"out", a.out}, {"in", a.in}});
  require_stride(kOperation, "out", out_stride, a.out_features);
  require_stride(kOperation, "in", in_stride, a.in_features);
  require_result(kOperation, "out", a.out_dtype, a.dtype);
  if ((a.bias != nullptr || a.gelu) && a.out_dtype != a.dtype) {
    throw ShapeError("{}: with a bias or GELU out is of {}, expected {} as in", kOperation,
                     to_string(a.out_dtype), to_string(a.dtype));
  }
  if (a.pre_gelu != nullptr) {
    if (!a.gelu) throw ShapeError("{}: pre_gelu is given, but no GELU asked for", kOperation);
    require_stride(kOperation, "pre_gelu", pre_gelu_stride, a.out_features);
    require_auxiliary(kOperation, a.pre_gelu, pre_gelu_stride);
  }
  return {
      .product = {.m = a.out_features,
                  .n = a.rows,
                  .k = a.in_features,
                  .transpose_a = true,
                  .stride_a = a.in_features,
                  .stride_b = in_stride,
                  .stride_d = out_stride,
                  .operand = a.dtype,
                  .result = a.out_dtype,
                  .tf32 = tf32,
                  .epilogue = epilogue_of(a),
                  .stride_auxiliary = a.pre_gelu != nullptr ? pre_gelu_stride : 0,
                  .alignment = alignment_of({a.out, a.in, a.weight, a.bias})},
      .operands = {.a = a.weight, .b = a.in, .d = a.out, .bias = a.bias, .auxiliary = a.pre_gelu}};
}

CublasLtCall column_major(const MatmulBackwardInput& a, bool tf32) {
  constexpr const char* kOperation = "matmul_backward_input";
  require_sizes(kOperation, {a.rows, a.in_features, a.out_features});
  const int64_t din_stride = stride_or(a.din_stride, a.in_features);
  const int64_t dout_stride = stride_or(a.dout_stride, a.out_features);
  const int64_t pre_gelu_stride = stride_or(a.pre_gelu_stride, a.in_features);
  require_given(kOperation, {{"weight", a.weight}});
  if (a.rows > 0) require_given(kOperation, {{"din", a.din}, {"dout", a.dout}});
  require_stride(kOperation, "din", din_stride, a.in_features);
  require_stride(kOperation, "dout", dout_stride, a.out_features);
  require_result(kOperation, "din", a.din_dtype, a.dtype);
  if (a.pre_gelu != nullptr) {
    if (a.din_dtype != a.dtype) {
      throw ShapeError("{}: through GELU din is of {}, expected {} as dout", kOperation,
                       to_string(a.din_dtype), to_string(a.dtype));
    }
    require_stride(kOperation, "pre_gelu", pre_gelu_stride, a.in_features);
    require_auxiliary(kOperation, a.pre_gelu, pre_gelu_stride);
  }
  return {.product = {.m = a.in_features,
                      .n = a.rows,
                      .k = a.out_features,
                      .stride_a = a.in_features,
                      .stride_b = dout_stride,
                      .stride_d = din_stride,
                      .operand = a.dtype,
                      .result = a.din_dtype,
                      .tf32 = tf32,
                      .epilogue = a.pre_gelu != nullptr ? CUBLASLT_EPILOGUE_DGELU
                                                        : CUBLASLT_EPILOGUE_DEFAULT,
                      .stride_auxiliary = a.pre_gelu != nullptr ? pre_gelu_stride : 0,
                      .alignment = alignment_of({a.din, a.dout, a.weight})},
          .operands = {.a = a.weight, .b = a.dout, .d = a.din, .auxiliary = a.pre_gelu}};
}

CublasLtCall column_major(const MatmulBackwardWeight& a, bool tf32) {
  constexpr const char* kOperation = "matmul_backward_weight";
  require_sizes(kOperation, {a.rows, a.in_features, a.out_features});
  const int64_t dout_stride = stride_or(a.dout_stride, a.out_features);
  const int64_t in_stride = stride_or(a.in_stride, a.in_features);
  require_given(kOperation, {{"dweight", a.dweight}});
  if (a.rows > 0) require_given(kOperation, {{"dout", a.dout}, {"in", a.in}});
  require_stride(kOperation, "dout", dout_stride, a.out_features);
  require_stride(kOperation, "in", in_stride, a.in_features);
  require_result(kOperation, "dweight", a.dweight_dtype, a.dtype);
  return {.product = {.m = a.in_features,
                      .n = a.out_features,
                      .k = a.rows,
                      .transpose_b = true,
                      .stride_a = in_stride,
                      .stride_b = dout_stride,
                      .stride_d = a.in_features,
                      .operand = a.dtype,
                      .result = a.dweight_dtype,
                      .accumulate = a.accumulate,
                      .tf32 = tf32,
                      .alignment = alignment_of({a.dweight, a.dout, a.in})},
          .operands = {.a = a.in, .b = a.dout, .d = a.dweight}};
}

void Matmul::run(const CublasLtCall& call, cudaStream_t stream) {
  auto found = plans_.find(call.product);
  if (found == plans_.end()) {
    CublasLtPlan plan(call.product);
    const auto algorithms = plan.candidates(library_, workspace_.bytes, 1);
    found = plans_.emplace(call.product, Plan{std::move(plan), algorithms.front()}).first;
  }
  Plan& plan = found->second;
  plan.plan.run(library_, plan.algorithm, call.operands, workspace_, stream);
}

std::vector<double> Matmul::tune(const CublasLtCall& call, cudaStream_t stream, int candidates) {
  CublasLtPlan plan(call.product);
  const auto algorithms = plan.candidates(library_, workspace_.bytes, candidates);
  const Event start;
  const Event stop;
  std::vector<double> microseconds;
  for (const cublasLtMatmulAlgo_t& algorithm : algorithms) {
    plan.run(library_, algorithm, call.operands, workspace_, stream);  // loads the kernel
    double least = 0.0;
    for (int run = 0; run < kTimedRuns; ++run) {
      GRADUS_CUDA_CHECK(cudaEventRecord(start.get(), stream));
      plan.run(library_, algorithm, call.operands, workspace_, stream);
      GRADUS_CUDA_CHECK(cudaEventRecord(stop.get(), stream));
      GRADUS_CUDA_CHECK(cudaEventSynchronize(stop.get()));
      float milliseconds = 0.0f;
      GRADUS_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, start.get(), stop.get()));
      const double time = static_cast<double>(milliseconds) * 1e3;
      least = run == 0 ? time : std::min(least, time);
    }
    microseconds.push_back(least);
  }
  const auto best = std::min_element(microseconds.begin(), microseconds.end());
  plans_.insert_or_assign(
      call.product,
      Plan{std::move(plan), algorithms[static_cast<size_t>(best - microseconds.begin())]});
  return microseconds;
}

void Matmul::forward(const MatmulForward& arguments, cudaStream_t stream) {
  const CublasLtCall product = column_major(arguments, tf32_);
  if (arguments.rows > 0) run(product, stream);
}

void Matmul::backward_input(const MatmulBackwardInput& arguments, cudaStream_t stream) {
  const CublasLtCall product = column_major(arguments, tf32_);
  if (arguments.rows > 0) run(product, stream);
}

void Matmul::backward_weight(const MatmulBackwardWeight& arguments, cudaStream_t stream) {
  const CublasLtCall product = column_major(arguments, tf32_);
  if (arguments.rows > 0) return run(product, stream);
  if (arguments.accumulate) return;
  const int64_t count = arguments.in_features * arguments.out_features;
  const auto bytes = static_cast<size_t>(count * size_of(arguments.dweight_dtype));
  GRADUS_CUDA_CHECK(cudaMemsetAsync(arguments.dweight, 0, bytes, stream));
}

std::vector<double> Matmul::tune(const MatmulForward& arguments, cudaStream_t stream,
                                 int candidates) {
  if (arguments.rows == 0) return {};
  return tune(column_major(arguments, tf32_), stream, candidates);
}

std::vector<double> Matmul::tune(const MatmulBackwardInput& arguments, cudaStream_t stream,
                                 int candidates) {
  if (arguments.rows == 0) return {};
  return tune(column_major(arguments, tf32_), stream, candidates);
}

std::vector<double> Matmul::tune(const MatmulBackwardWeight& arguments, cudaStream_t stream,
                                 int candidates) {
  if (arguments.rows == 0) return {};
  return tune(column_major(arguments, tf32_), stream, candidates);
}

}  // namespace gradus::cuda
