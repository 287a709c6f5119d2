#pragma once

#include "core/dtype.h"

namespace gradus::test {

/// The dtypes of a preset, as they meet in the kernels of a block.
struct Precision {
  const char* name;
  DType residual;     ///< of the residual stream and its gradient
  DType activation;   ///< of activations, their gradients, and parameters
  DType accumulator;  ///< of gradients of parameters, and of statistics
};

inline constexpr Precision kFp64{"fp64", DType::fp64, DType::fp64, DType::fp64};
inline constexpr Precision kPrecisions[] = {
    kFp64,
    {"fp32", DType::fp32, DType::fp32, DType::fp32},
    {"bf16", DType::fp32, DType::bf16, DType::fp32},
    {"bf16_lean", DType::bf16, DType::bf16, DType::fp32},
};

}  // namespace gradus::test
