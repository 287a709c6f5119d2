#include "kernels/gelu.h"

#include "kernels/cpu/gelu.h"
#include "kernels/validate.h"

namespace gradus {

void gelu_forward(Executor& x, Tensor out, ConstTensor in) {
  require_contiguous("gelu_forward", x, {{"out", out}, {"in", in}});
  require_shape("gelu_forward", "out", out, in.shape());
  require_dtype("gelu_forward", "out", out, in.dtype());
  cpu::gelu_forward(x, out, in);
  x.completed("gelu_forward", {out});
}

void gelu_backward(Executor& x, Tensor din, ConstTensor dout, ConstTensor in) {
  require_contiguous("gelu_backward", x, {{"din", din}, {"dout", dout}, {"in", in}});
  require_shape("gelu_backward", "din", din, in.shape());
  require_dtype("gelu_backward", "din", din, in.dtype());
  require_shape("gelu_backward", "dout", dout, in.shape());
  require_dtype("gelu_backward", "dout", dout, in.dtype());
  cpu::gelu_backward(x, din, dout, in);
  x.completed("gelu_backward", {din});
}

}  // namespace gradus
