#include "kernels/matmul.h"

#include "kernels/cpu/matmul.h"
#include "kernels/validate.h"

namespace gradus {
namespace {

/// A (…, columns) argument whose leading axes can be walked as rows with one stride.
void require_rows(const char* operation, const char* argument, const Executor& x,
                  const ConstTensor& tensor) {
  require_on_device(operation, x, {{argument, tensor}});
  if (tensor.size(-1) == 0) {
    throw ShapeError("{}: {} {} has no features", operation, argument, describe(tensor));
  }
  if (tensor.numel() == 0) return;
  bool fits = tensor.size(-1) == 1 || tensor.stride(-1) == 1;
  int inner = -1;  // the innermost leading axis of more than one element so far
  for (int axis = tensor.rank() - 2; axis >= 0; --axis) {
    if (tensor.size(axis) == 1) continue;
    if (inner < 0) {
      fits = fits && tensor.stride(axis) >= tensor.size(-1);
    } else {
      fits = fits && tensor.stride(axis) == tensor.stride(inner) * tensor.size(inner);
    }
    inner = axis;
  }
  if (!fits) {
    throw ShapeError(
        "{}: {} {} is neither contiguous nor a column slice whose rows lie one stride apart",
        operation, argument, describe(tensor));
  }
}

int64_t rows_of(const ConstTensor& tensor) { return tensor.numel() / tensor.size(-1); }

void require_product(const char* operation, const Executor& x, const char* wide_name,
                     const ConstTensor& wide, const char* narrow_name, const ConstTensor& narrow,
                     const char* weight_name, const ConstTensor& weight) {
  require_rows(operation, wide_name, x, wide);
  require_rows(operation, narrow_name, x, narrow);
  require_contiguous(operation, x, {{weight_name, weight}});
  require_shape(operation, weight_name, weight, {wide.size(-1), narrow.size(-1)});
  if (rows_of(wide) != rows_of(narrow)) {
    throw ShapeError("{}: {} {} and {} {} differ in rows", operation, wide_name, describe(wide),
                     narrow_name, describe(narrow));
  }
}

void require_operands(const char* operation, const ConstTensor& first, const ConstTensor& second) {
  const DType dtype = first.dtype();
  const bool known = dtype == DType::fp64 || dtype == DType::fp32 || dtype == DType::bf16;
  if (!known || second.dtype() != dtype) refuse_dtypes(operation, {first, second});
}

/// The result of a product of `operand`s: their dtype or the type in which they are summed.
void require_result(const char* operation, const char* argument, const ConstTensor& result,
                    DType operand) {
  if (result.dtype() == operand || result.dtype() == accumulator_of(operand)) return;
  throw ShapeError("{}: {} is {}, expected {} or {}", operation, argument, describe(result),
                   to_string(operand), to_string(accumulator_of(operand)));
}

}  // namespace

void matmul_forward(Executor& x, Tensor out, ConstTensor in, ConstTensor weight, ConstTensor bias) {
  require_product("matmul_forward", x, "out", out, "in", in, "weight", weight);
  require_operands("matmul_forward", in, weight);
  require_result("matmul_forward", "out", out, in.dtype());
  if (bias.defined()) {
    require_contiguous("matmul_forward", x, {{"bias", bias}});
    require_shape("matmul_forward", "bias", bias, {out.size(-1)});
    require_dtype("matmul_forward", "bias", bias, in.dtype());
  }
  cpu::matmul_forward(x, out, in, weight, bias);
  x.completed("matmul_forward", {out});
}

void matmul_backward_input(Executor& x, Tensor din, ConstTensor dout, ConstTensor weight) {
  require_product("matmul_backward_input", x, "dout", dout, "din", din, "weight", weight);
  require_operands("matmul_backward_input", dout, weight);
  require_result("matmul_backward_input", "din", din, dout.dtype());
  cpu::matmul_backward_input(x, din, dout, weight);
  x.completed("matmul_backward_input", {din});
}

void matmul_backward_weight(Executor& x, Tensor dweight, Tensor dbias, ConstTensor dout,
                            ConstTensor in) {
  require_product("matmul_backward_weight", x, "dout", dout, "in", in, "dweight", dweight);
  require_operands("matmul_backward_weight", dout, in);
  require_dtype("matmul_backward_weight", "dweight", dweight, accumulator_of(in.dtype()));
  if (dbias.defined()) {
    require_contiguous("matmul_backward_weight", x, {{"dbias", dbias}});
    require_shape("matmul_backward_weight", "dbias", dbias, {dout.size(-1)});
    require_dtype("matmul_backward_weight", "dbias", dbias, accumulator_of(in.dtype()));
  }
  cpu::matmul_backward_weight(x, dweight, dbias, dout, in);
  x.completed("matmul_backward_weight", {dweight, dbias});
}

int64_t matmul_scratch(const Executor& x, int64_t rows, int64_t in_features, int64_t out_features,
                       DType dtype) {
  return cpu::matmul_scratch(x, rows, in_features, out_features, dtype);
}

int64_t matmul_forward_scratch(const Executor& x, int64_t max_rows, int64_t in_features,
                               int64_t out_features, DType dtype) {
  return cpu::matmul_forward_scratch(x, max_rows, in_features, out_features, dtype);
}

}  // namespace gradus
