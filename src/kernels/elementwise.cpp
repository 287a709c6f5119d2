#include "kernels/elementwise.h"

#include "kernels/cpu/elementwise.h"
#include "kernels/validate.h"

namespace gradus {

void fill(Executor& x, Tensor out, double value) {
  require_contiguous("fill", x, {{"out", out}});
  cpu::fill(x, out, value);
  x.completed("fill", {out});
}

void copy(Executor& x, Tensor out, ConstTensor in) {
  require_contiguous("copy", x, {{"out", out}, {"in", in}});
  if (out.numel() != in.numel()) {
    throw ShapeError("copy: {} and {} differ in size", describe(out), describe(in));
  }
  cpu::copy(x, out, in);
  x.completed("copy", {out});
}

void copy_strided(Executor& x, Tensor out, ConstTensor in) {
  require_on_device("copy_strided", x, {{"out", out}, {"in", in}});
  require_shape("copy_strided", "in", in, out.shape());
  require_dtype("copy_strided", "in", in, out.dtype());
  if (out.numel() > 0 && (out.stride(-1) != 1 || in.stride(-1) != 1)) {
    throw ShapeError("copy_strided: the last axes of {} and {} must be contiguous", describe(out),
                     describe(in));
  }
  cpu::copy_strided(x, out, in);
  x.completed("copy_strided", {out});
}

void add(Executor& x, Tensor out, ConstTensor in) {
  require_contiguous("add", x, {{"out", out}, {"in", in}});
  require_shape("add", "in", in, out.shape());
  require_dtype("add", "in", in, out.dtype());
  cpu::add(x, out, in);
  x.completed("add", {out});
}

void scale(Executor& x, Tensor inout, double factor) {
  require_contiguous("scale", x, {{"inout", inout}});
  cpu::scale(x, inout, factor);
  x.completed("scale", {inout});
}

bool all_finite(Executor& x, ConstTensor in) {
  require_contiguous("all_finite", x, {{"in", in}});
  return cpu::all_finite(x, in);
}

}  // namespace gradus
