#pragma once

#include "core/executor.h"
#include "core/tensor.h"

namespace gradus {

/// out = 0.5 in (1 + tanh(√(2/π) (in + 0.044715 in³))), GPT-2's GELU (arXiv:1606.08415, section 2).
/// Same shape and dtype, contiguous. As the formula has it, NaN and -inf give NaN, +inf gives +inf:
/// an overflow stays visible. Throws ShapeError.
void gelu_forward(Executor& x, Tensor out, ConstTensor in);
/// din = dout · gelu'(in); gelu' is 0 and 1 at -inf and +inf. din may alias dout.
void gelu_backward(Executor& x, Tensor din, ConstTensor dout, ConstTensor in);

}  // namespace gradus
