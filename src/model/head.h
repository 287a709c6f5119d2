#pragma once

#include "core/executor.h"
#include "core/parameters.h"
#include "model/layer_tensors.h"
#include "model/sizes.h"
#include "parallel/tensor_parallel.h"

namespace gradus {

/// Weights of the final layernorm and the head, or their gradients.
struct HeadParams {
  Tensor ln_w, ln_b;  ///< (C)
  Tensor weight;      ///< (V_tp, C), cut by vocabulary; the token embedding's when tied

  /// view: &Parameter::value or &Parameter::grad.
  static HeadParams bind(const Parameters& parameters, bool bias, Tensor Parameter::*view);
};

/// Memory of the head. Logits exist for one chunk of rows at a time.
struct HeadActs {
  Tensor ln_part;           ///< (B, T_part, C): final layernorm's output
  Tensor ln_mean, ln_rstd;  ///< (B, T_part)
  Tensor ln;                ///< (B, T, C)
  Tensor dln;               ///< (B, T, C)
  Tensor dln_part;          ///< (B, T_part, C)
  Tensor logits;            ///< (R, V_tp) fp32 (fp64 for fp64)
  Tensor dlogits;  ///< (R, V_tp) in the activation dtype; one with logits when the dtypes agree
  Tensor row_max, row_sum, target_logit, lse;  ///< (R)
  Tensor whole_max;  ///< (R): row_max over all ranks; one with row_max on one

  /// backward: whether gradients will be asked for.
  void declare(TensorVisitor& visitor, const Sizes& sizes, const Precision& precision,
               const TensorParallel& tp, bool backward);
};

/// Rows of a chunk of logits, R.
int64_t head_chunk_rows(const Sizes& sizes);

/// loss_sum (1) fp64 += Σ cross-entropy of the targets (B, T) that are not ignored. Forward only.
void head_forward(Executor& x, const Tensor& loss_sum, HeadActs& a, const HeadParams& w,
                  const ConstTensor& in_part, const ConstTensor& targets, const Sizes& sizes,
                  TensorParallel& tp);
/// Forward and backward together, so that no logits are kept: dresidual =, the gradient of
/// gradient_scale · loss by in_part; dw +=.
void head_forward_backward(Executor& x, const Tensor& loss_sum, const Tensor& dresidual,
                           const HeadParams& dw, HeadActs& a, const HeadParams& w,
                           const ConstTensor& in_part, const ConstTensor& targets,
                           double gradient_scale, const Sizes& sizes, TensorParallel& tp);

}  // namespace gradus
