#pragma once

#include "kernels/elementwise.h"

/// The CPU's implementations; arguments were checked by kernels/elementwise.cpp.
namespace gradus::cpu {

void fill(Executor& x, Tensor out, double value);
void copy(Executor& x, Tensor out, ConstTensor in);
void copy_strided(Executor& x, Tensor out, ConstTensor in);
void add(Executor& x, Tensor out, ConstTensor in);
void scale(Executor& x, Tensor inout, double factor);
bool all_finite(Executor& x, ConstTensor in);

}  // namespace gradus::cpu
