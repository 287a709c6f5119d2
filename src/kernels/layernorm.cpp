#include "kernels/layernorm.h"

#include "kernels/cpu/layernorm.h"
#include "kernels/precision.h"

namespace gradus {
namespace {

/// What forward and backward have in common: in, and the other tensor of its shape in the
/// activation dtype; the statistics of its rows; the weight.
void require_rows(const char* operation, Executor& x, const ConstTensor& in,
                  const ConstTensor& activation, const ConstTensor& weight, const ConstTensor& mean,
                  const ConstTensor& rstd) {
  require_contiguous(operation, x,
                     {{"in", in},
                      {"out or dout", activation},
                      {"weight", weight},
                      {"mean", mean},
                      {"rstd", rstd}});
  require_precision(operation, in, activation);
  const int64_t channels = in.size(-1);
  if (channels == 0) throw ShapeError("{}: {} has no channels", operation, describe(in));
  require_shape(operation, "weight", weight, {channels});
  require_dtype(operation, "weight", weight, activation.dtype());
  for (const ConstTensor& statistic : {mean, rstd}) {
    require_dtype(operation, "a statistic", statistic, accumulator_of(in.dtype()));
    if (statistic.numel() * channels != in.numel()) {
      throw ShapeError("{}: {} does not hold one value for each row of {}", operation,
                       describe(statistic), describe(in));
    }
  }
}

}  // namespace

void layernorm_forward(Executor& x, Tensor out, Tensor mean, Tensor rstd, ConstTensor in,
                       ConstTensor weight, ConstTensor bias, double epsilon) {
  constexpr const char* kName = "layernorm_forward";
  require_rows(kName, x, in, out, weight, mean, rstd);
  require_shape(kName, "out", out, in.shape());
  if (bias.defined()) {
    require_contiguous(kName, x, {{"bias", bias}});
    require_shape(kName, "bias", bias, weight.shape());
    require_dtype(kName, "bias", bias, weight.dtype());
  }
  cpu::layernorm_forward(x, out, mean, rstd, in, weight, bias, epsilon);
  x.completed(kName, {out, mean, rstd});
}

void layernorm_backward(Executor& x, Tensor din, Tensor dweight, Tensor dbias, ConstTensor dout,
                        ConstTensor in, ConstTensor weight, ConstTensor mean, ConstTensor rstd) {
  constexpr const char* kName = "layernorm_backward";
  require_rows(kName, x, in, dout, weight, mean, rstd);
  require_contiguous(kName, x, {{"din", din}, {"dweight", dweight}});
  require_shape(kName, "dout", dout, in.shape());
  require_shape(kName, "din", din, in.shape());
  require_dtype(kName, "din", din, in.dtype());
  require_shape(kName, "dweight", dweight, weight.shape());
  require_dtype(kName, "dweight", dweight, accumulator_of(in.dtype()));
  if (dbias.defined()) {
    require_contiguous(kName, x, {{"dbias", dbias}});
    require_shape(kName, "dbias", dbias, weight.shape());
    require_dtype(kName, "dbias", dbias, accumulator_of(in.dtype()));
  }
  cpu::layernorm_backward(x, din, dweight, dbias, dout, in, weight, mean, rstd);
  x.completed(kName, {din, dweight, dbias});
}

int64_t layernorm_scratch(const Executor& x, int64_t channels, DType dtype) {
  return cpu::layernorm_scratch(x, channels, dtype);
}

}  // namespace gradus
