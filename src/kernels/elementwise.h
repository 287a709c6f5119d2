#pragma once

#include "core/executor.h"
#include "core/tensor.h"

namespace gradus {

/// out = value everywhere. Any floating dtype, contiguous.
void fill(Executor& x, Tensor out, double value);
/// out = in, converted (round to nearest even). Same number of elements, contiguous.
void copy(Executor& x, Tensor out, ConstTensor in);
/// out = in for strided views of the same shape and dtype whose last axis is contiguous.
void copy_strided(Executor& x, Tensor out, ConstTensor in);
/// out += in. Same shape and dtype, contiguous.
void add(Executor& x, Tensor out, ConstTensor in);
/// inout *= factor. Any floating dtype, contiguous.
void scale(Executor& x, Tensor inout, double factor);
/// Whether every element is finite.
bool all_finite(Executor& x, ConstTensor in);

}  // namespace gradus
