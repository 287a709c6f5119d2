#pragma once

#include "core/executor.h"
#include "core/tensor.h"

namespace gradus {

/// out = value everywhere. Any floating dtype, contiguous.
void fill(Executor& x, Tensor out, double value);
/// out = in, converted (round to nearest even). Same number of elements, contiguous.
void copy(Executor& x, Tensor out, ConstTensor in);
/// out += in. Same shape and dtype, contiguous.
void add(Executor& x, Tensor out, ConstTensor in);
/// Whether every element is finite.
bool all_finite(Executor& x, ConstTensor in);

}  // namespace gradus
