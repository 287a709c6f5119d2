#include "kernels/cpu/matmul.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/cpu/matmul_gemm.h"

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

}  // namespace

void matmul_forward(Executor& x, Tensor out, ConstTensor in, ConstTensor weight, ConstTensor bias) {
  gemm(x, forward_product(out, in, weight, bias));
}

void matmul_backward_input(Executor& x, Tensor din, ConstTensor dout, ConstTensor weight) {
  gemm(x, input_gradient(din, dout, weight));
}

void matmul_backward_weight(Executor& x, Tensor dweight, Tensor dbias, ConstTensor dout,
                            ConstTensor in) {
  gemm(x, weight_gradient(dweight, dout, in));
  if (dbias.defined()) {
    add_column_sums(x, dbias.data(), dout.data(), row_stride(dout), rows_of(dout), dout.size(-1),
                    dout.dtype());
  }
}

int64_t matmul_scratch(const Executor&, int64_t rows, int64_t in_features, int64_t out_features,
                       DType dtype) {
  // Only shapes matter here; the tensors have no memory.
  const Tensor narrow(nullptr, dtype, Device::cpu, {rows, in_features});
  const Tensor wide(nullptr, dtype, Device::cpu, {rows, out_features});
  const Tensor weight(nullptr, dtype, Device::cpu, {out_features, in_features});
  const Tensor dweight(nullptr, accumulator_of(dtype), Device::cpu, {out_features, in_features});
  return std::max({gemm_scratch(forward_product(wide, narrow, weight, ConstTensor())),
                   gemm_scratch(input_gradient(narrow, wide, weight)),
                   gemm_scratch(weight_gradient(dweight, wide, narrow))});
}

std::string matmul_implementation(DType dtype) {
  return fmt::format("gradus packed ({}), {} arithmetic", gemm_instruction_set(),
                     to_string(accumulator_of(dtype)));
}

}  // namespace gradus::cpu
