#include "kernels/cpu/matmul.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstdlib>

#include "kernels/cpu/instruction_set.h"
#include "kernels/cpu/matmul_gemm.h"
#include "kernels/cpu/matmul_onednn.h"
#include "kernels/implementation.h"

namespace gradus::cpu {
namespace {

int64_t rows_of(const ConstTensor& tensor) { return tensor.numel() / tensor.size(-1); }

/// Elements between neighbouring rows of a (…, columns) tensor that may be a column slice.
int64_t row_stride(const ConstTensor& tensor) {
  for (int axis = tensor.rank() - 2; axis >= 0; --axis) {
    if (tensor.size(axis) != 1) return tensor.stride(axis);
  }
  return tensor.size(-1);
}

Gemm forward_product(const Tensor& out, const ConstTensor& in, const ConstTensor& weight,
                     const ConstTensor& bias) {
  return {.rows = rows_of(in),
          .columns = weight.size(0),
          .depth = weight.size(1),
          .dtype = in.dtype(),
          .c_dtype = out.dtype(),
          .a = {.data = in.data(), .stride = row_stride(in)},
          .b = {.data = weight.data(), .stride = weight.size(1), .transposed = true},
          .c = out.data(),
          .c_stride = row_stride(out),
          .bias = bias.defined() ? bias.data() : nullptr};
}

Gemm input_gradient(const Tensor& din, const ConstTensor& dout, const ConstTensor& weight) {
  return {.rows = rows_of(dout),
          .columns = weight.size(1),
          .depth = weight.size(0),
          .dtype = dout.dtype(),
          .c_dtype = din.dtype(),
          .a = {.data = dout.data(), .stride = row_stride(dout)},
          .b = {.data = weight.data(), .stride = weight.size(1)},
          .c = din.data(),
          .c_stride = row_stride(din)};
}

Gemm weight_gradient(const Tensor& dweight, const ConstTensor& dout, const ConstTensor& in) {
  return {.rows = dweight.size(0),
          .columns = dweight.size(1),
          .depth = rows_of(in),
          .dtype = in.dtype(),
          .c_dtype = dweight.dtype(),
          .a = {.data = dout.data(), .stride = row_stride(dout), .transposed = true},
          .b = {.data = in.data(), .stride = row_stride(in)},
          .c = dweight.data(),
          .c_stride = dweight.size(1),
          .accumulate = true};
}

/// The rule: oneDNN where it has better instructions than our own product, except for few rows,
/// where memory is the limit and our own product reads each operand once.
bool prefers_onednn(const Gemm& product) {
  return gemm_packs(product) && onednn_knows(product) && onednn_is_preferred(product.dtype);
}

void multiply(Executor& x, const Gemm& product) {
  if (prefers_onednn(product)) {
    if (onednn_gemm(x, product)) return;
    auto& refused = x.state<RefusedProducts>();
    if (refused.count++ == 0) {
      refused.dtype = product.dtype;
      refused.rows = product.rows;
      refused.columns = product.columns;
      refused.depth = product.depth;
    }
  }
  gemm(x, product);
}

/// ", limited by ONEDNN_MAX_CPU_ISA=AVX2", where oneDNN may do less than the processor can.
std::string onednn_limit() {
  for (const char* name : {"ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"}) {
    const char* value = std::getenv(name);
    if (value != nullptr) return fmt::format("; oneDNN is limited by {}={}", name, value);
  }
  return {};
}

/// Enough for either: which of the two serves a product with strided rows is known when it comes.
int64_t product_scratch(const Executor& x, const Gemm& product) {
  const int64_t own = gemm_scratch(product);
  return prefers_onednn(product) ? std::max(own, onednn_scratch(x, product)) : own;
}

}  // namespace

void matmul_forward(Executor& x, Tensor out, ConstTensor in, ConstTensor weight, ConstTensor bias) {
  multiply(x, forward_product(out, in, weight, bias));
}

void matmul_backward_input(Executor& x, Tensor din, ConstTensor dout, ConstTensor weight) {
  multiply(x, input_gradient(din, dout, weight));
}

void matmul_backward_weight(Executor& x, Tensor dweight, Tensor dbias, ConstTensor dout,
                            ConstTensor in) {
  multiply(x, weight_gradient(dweight, dout, in));
  if (dbias.defined()) {
    add_column_sums(x, dbias.data(), dout.data(), row_stride(dout), rows_of(dout), dout.size(-1),
                    dout.dtype());
  }
}

int64_t matmul_scratch(const Executor& x, int64_t rows, int64_t in_features, int64_t out_features,
                       DType dtype) {
  // Only shapes and whether there is a bias matter here; the tensors' memory is never touched.
  std::byte place{};
  const DType sums = accumulator_of(dtype);
  const auto tensor = [&](DType type, int64_t first, int64_t second) {
    return Tensor(&place, type, Device::cpu, {first, second});
  };
  const Tensor in = tensor(dtype, rows, in_features);
  const Tensor dout = tensor(dtype, rows, out_features);
  const Tensor weight = tensor(dtype, out_features, in_features);
  const Tensor dweight = tensor(sums, out_features, in_features);
  int64_t bytes = product_scratch(x, weight_gradient(dweight, dout, in));
  for (const DType result : {dtype, sums}) {
    const Tensor out = tensor(result, rows, out_features);
    const Tensor din = tensor(result, rows, in_features);
    bytes = std::max({bytes, product_scratch(x, forward_product(out, in, weight, ConstTensor())),
                      product_scratch(x, forward_product(out, in, weight, weight)),
                      product_scratch(x, input_gradient(din, dout, weight))});
  }
  return bytes;
}

int64_t matmul_forward_scratch(const Executor& x, int64_t max_rows, int64_t in_features,
                               int64_t out_features, DType dtype) {
  std::byte place{};
  const auto tensor = [&](DType type, int64_t first, int64_t second) {
    return Tensor(&place, type, Device::cpu, {first, second});
  };
  const auto fewer = [](int64_t rows) {
    return static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(rows - 1)));
  };
  const Tensor weight = tensor(dtype, out_features, in_features);
  int64_t bytes = 0;
  // Our own product needs the more the more rows there are, so that max_rows alone would do.
  // oneDNN's need follows its choice of blocks, which need not grow with the rows; its largest at
  // the powers of two is taken, and a row count that asks for more goes to our own product
  // (onednn_gemm).
  for (int64_t rows = max_rows; rows > 0; rows = fewer(rows)) {
    for (const DType result : {dtype, accumulator_of(dtype)}) {
      const Tensor in = tensor(dtype, rows, in_features);
      const Tensor out = tensor(result, rows, out_features);
      for (const ConstTensor& bias : {ConstTensor(), ConstTensor(weight)}) {
        bytes = std::max(bytes, product_scratch(x, forward_product(out, in, weight, bias)));
      }
    }
  }
  return bytes;
}

std::string matmul_implementation(DType dtype) {
  if (onednn_is_preferred(dtype)) {
    return fmt::format("oneDNN {} ({}){}", onednn_version(), onednn_instruction_set(),
                       onednn_limit());
  }
  return fmt::format("packed product ({}), {} arithmetic{}", vector_instruction_set(),
                     to_string(accumulator_of(dtype)), dtype == DType::fp64 ? "" : onednn_limit());
}

}  // namespace gradus::cpu
