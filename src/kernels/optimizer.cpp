#include "kernels/optimizer.h"

#include "kernels/cpu/optimizer.h"
#include "kernels/validate.h"

namespace gradus {
namespace {

void require_state(const char* operation, const ConstTensor& state) {
  require_dtype(operation, "state", state, DType::u8);
  require_shape(operation, "state", state, {static_cast<int64_t>(sizeof(StepState))});
}

void require_largest(const char* operation, const ConstTensor& largest) {
  require_dtype(operation, "largest", largest, DType::fp64);
  require_shape(operation, "largest", largest, {static_cast<int64_t>(Largest::count)});
}

}  // namespace

void sum_of_squares(Executor& x, Tensor partials, ConstTensor in) {
  constexpr const char* kName = "sum_of_squares";
  require_contiguous(kName, x, {{"partials", partials}, {"in", in}});
  require_dtype(kName, "partials", partials, DType::fp64);
  require_shape(kName, "partials", partials, {norm_chunks(in.numel())});
  cpu::sum_of_squares(x, partials, in);
  x.completed(kName, {partials});
}

void sum_partials(Executor& x, Tensor out, ConstTensor partials) {
  constexpr const char* kName = "sum_partials";
  require_contiguous(kName, x, {{"out", out}, {"partials", partials}});
  require_dtype(kName, "out", out, DType::fp64);
  require_shape(kName, "out", out, {1});
  require_dtype(kName, "partials", partials, DType::fp64);
  cpu::sum_partials(out, partials);
  x.completed(kName, {out});
}

void raise_to_largest(Executor& x, Tensor out, ConstTensor in) {
  constexpr const char* kName = "raise_to_largest";
  require_contiguous(kName, x, {{"out", out}, {"in", in}});
  require_dtype(kName, "out", out, DType::fp64);
  require_shape(kName, "out", out, {1});
  cpu::raise_to_largest(x, out, in);
  x.completed(kName, {out});
}

void decide_step(Executor& x, Tensor state, Tensor largest, ConstTensor partials, ConstTensor loss,
                 const StepDecision& decision) {
  constexpr const char* kName = "decide_step";
  require_contiguous(
      kName, x, {{"state", state}, {"partials", partials}, {"loss", loss}, {"largest", largest}});
  require_state(kName, state);
  require_dtype(kName, "partials", partials, DType::fp64);
  require_dtype(kName, "loss", loss, DType::fp64);
  require_shape(kName, "loss", loss, {1});
  require_largest(kName, largest);
  cpu::decide_step(state, largest, partials, loss, decision);
  x.completed(kName, {state});
}

void adamw_step(Executor& x, Tensor param, Tensor master, Tensor m, Tensor v, Tensor largest,
                ConstTensor grad, ConstTensor state, const AdamW& options) {
  constexpr const char* kName = "adamw_step";
  require_contiguous(kName, x,
                     {{"param", param},
                      {"m", m},
                      {"v", v},
                      {"largest", largest},
                      {"grad", grad},
                      {"state", state}});
  require_state(kName, state);
  require_largest(kName, largest);
  const DType weights = accumulator_of(param.dtype());
  if (master.defined()) {
    require_contiguous(kName, x, {{"master", master}});
    require_shape(kName, "master", master, param.shape());
    if (param.dtype() != DType::bf16 || master.dtype() != DType::fp32) {
      refuse_dtypes(kName, {param, master});
    }
  } else if (param.dtype() != weights) {
    throw ShapeError("{}: {} has no master weights; only fp32 and fp64 can be updated in place",
                     kName, describe(param));
  }
  for (const ConstTensor& tensor : {ConstTensor(m), ConstTensor(v), grad}) {
    require_shape(kName, "a moment or gradient", tensor, param.shape());
    require_dtype(kName, "a moment or gradient", tensor, weights);
  }
  cpu::adamw_step(x, param, master, m, v, largest, grad, state, options);
  x.completed(kName, {param, master, m, v});
}

}  // namespace gradus
