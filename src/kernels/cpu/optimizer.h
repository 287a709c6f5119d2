#pragma once

#include "kernels/optimizer.h"

/// The CPU's implementations; arguments were checked by kernels/optimizer.cpp.
namespace gradus::cpu {

/// One step's numbers, computed once in fp64.
struct AdamWScalars {
  double clip_scale;
  double beta1;
  double beta2;
  double epsilon;
  double step_size;      ///< lr / (1 - β1^t)
  double second_factor;  ///< 1 / √(1 - β2^t)
  double decay;          ///< lr · weight_decay
};

void sum_of_squares(Executor& x, Tensor partials, ConstTensor in);
void sum_partials(Tensor out, ConstTensor partials);
void raise_to_largest(Executor& x, Tensor out, ConstTensor in);
void decide_step(Tensor state, Tensor largest, ConstTensor partials, ConstTensor loss,
                 const StepDecision& decision);
void adamw_step(Executor& x, Tensor param, Tensor master, Tensor m, Tensor v, Tensor largest,
                ConstTensor grad, ConstTensor state, const AdamW& options);

}  // namespace gradus::cpu
