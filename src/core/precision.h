#pragma once

#include <string_view>

#include "core/dtype.h"

namespace gradus {

/// The dtype of each kind of number in training.
struct Precision {
  DType param = DType::fp32;       ///< weights as the products read them
  DType activation = DType::fp32;  ///< inputs and outputs of the products
  DType residual = DType::fp32;    ///< the residual stream and its gradient
  DType gradient = DType::fp32;    ///< weight gradients, accumulated over micro-batches
  DType reduce = DType::fp32;      ///< in which gradients are summed over ranks
  DType master = DType::fp32;      ///< the optimizer's weights and moments

  bool separate_master() const { return master != param; }
};

/// fp64 (the CPU's oracle), fp32, bf16 (arXiv:1710.03740's recipe with bfloat16, arXiv:1905.12322,
/// and the residual stream in fp32) and bf16_lean (the residual stream in bf16 too). fp16 needs a
/// GPU.
namespace precision {
inline constexpr Precision kFp64{DType::fp64, DType::fp64, DType::fp64,
                                 DType::fp64, DType::fp64, DType::fp64};
inline constexpr Precision kFp32{};
inline constexpr Precision kBf16{.param = DType::bf16, .activation = DType::bf16};
inline constexpr Precision kBf16Lean{
    .param = DType::bf16, .activation = DType::bf16, .residual = DType::bf16};
}  // namespace precision

}  // namespace gradus
