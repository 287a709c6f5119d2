#pragma once

#include <cstdint>

#include "core/executor.h"
#include "core/parameters.h"

namespace gradus {

/// Writes a parameter's initial values, as its spec says, into `into`: n consecutive elements of
/// its memory on this rank from `first` on, fp32 or fp64, CPU memory. Normal numbers are drawn by
/// logical element (Box-Muller in fp64 on Philox, keyed by the seed and the parameter's name), so
/// that every layout starts from the same weights. Padding rows become 0.
void initialize_parameter(Executor& x, const Parameter& parameter, int64_t first,
                          const Tensor& into, uint64_t seed);

}  // namespace gradus
