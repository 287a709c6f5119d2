#include "kernels/elementwise.h"

#include "kernels/cpu/elementwise.h"
#include "kernels/validate.h"

namespace gradus {

void fill(Executor& x, Tensor out, double value) {
  require_contiguous("fill", x, {out});
  cpu::fill(x, out, value);
  x.completed("fill", {out});
}

void copy(Executor& x, Tensor out, ConstTensor in) {
  require_contiguous("copy", x, {out, in});
  if (out.numel() != in.numel()) {
    throw ShapeError("copy: {} and {} differ in size", describe(out), describe(in));
  }
  cpu::copy(x, out, in);
  x.completed("copy", {out});
}

void add(Executor& x, Tensor out, ConstTensor in) {
  require_contiguous("add", x, {out, in});
  require_shape("add", "in", in, out.shape());
  require_dtype("add", "in", in, out.dtype());
  cpu::add(x, out, in);
  x.completed("add", {out});
}

bool all_finite(Executor& x, ConstTensor in) {
  require_contiguous("all_finite", x, {in});
  return cpu::all_finite(x, in);
}

}  // namespace gradus
