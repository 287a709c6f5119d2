#include "kernels/residual.h"

#include "kernels/cpu/residual.h"
#include "kernels/precision.h"

namespace gradus {

void residual_forward(Executor& x, Tensor out, ConstTensor in, ConstTensor bias,
                      ConstTensor residual, const Dropout& dropout) {
  constexpr const char* kName = "residual_forward";
  require_contiguous(kName, x, {{"out", out}, {"in", in}, {"residual", residual}});
  require_rank(kName, "residual", residual, 3);
  require_shape(kName, "out", out, residual.shape());
  require_shape(kName, "in", in, residual.shape());
  require_dtype(kName, "out", out, residual.dtype());
  require_precision(kName, residual, in);
  require_dropout(kName, dropout);
  if (bias.defined()) {
    require_contiguous(kName, x, {{"bias", bias}});
    require_shape(kName, "bias", bias, {residual.size(-1)});
    require_dtype(kName, "bias", bias, in.dtype());
  }
  cpu::residual_forward(x, out, in, bias, residual, dropout);
  x.completed(kName, {out});
}

void residual_backward(Executor& x, Tensor din, Tensor dbias, ConstTensor dout,
                       const Dropout& dropout) {
  constexpr const char* kName = "residual_backward";
  require_contiguous(kName, x, {{"din", din}, {"dout", dout}});
  require_rank(kName, "dout", dout, 3);
  require_shape(kName, "din", din, dout.shape());
  require_precision(kName, dout, din);
  require_dropout(kName, dropout);
  if (dbias.defined()) {
    require_contiguous(kName, x, {{"dbias", dbias}});
    require_shape(kName, "dbias", dbias, {dout.size(-1)});
    require_dtype(kName, "dbias", dbias, accumulator_of(dout.dtype()));
  }
  cpu::residual_backward(x, din, dbias, dout, dropout);
  x.completed(kName, {din, dbias});
}

int64_t residual_scratch(const Executor& x, int64_t channels, DType dtype) {
  return cpu::residual_scratch(x, channels, dtype);
}

}  // namespace gradus
