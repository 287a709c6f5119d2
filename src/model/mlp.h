#pragma once

#include <string>

#include "core/executor.h"
#include "core/parameters.h"
#include "model/dropout_sites.h"
#include "model/layer_tensors.h"
#include "model/sizes.h"
#include "model/timeline.h"
#include "parallel/tensor_parallel.h"

namespace gradus {

/// Weights of the MLP half of a block, or their gradients.
struct MlpParams {
  Tensor ln2_w, ln2_b;    ///< (C)
  Tensor up_w, up_b;      ///< (F_tp, C), (F_tp): column-parallel, cut by hidden unit
  Tensor down_w, down_b;  ///< (C, F_tp), (C): row-parallel, the bias is added once

  /// view: &Parameter::value or &Parameter::grad.
  static MlpParams bind(const Parameters& parameters, const std::string& prefix, bool bias,
                        Tensor Parameter::*view);
};

/// Activations of the MLP half of a block, or their gradients; `_part` as in AttentionActs.
struct MlpActs {
  Tensor ln2_part;            ///< (B, T_part, C)
  Tensor ln2_mean, ln2_rstd;  ///< (B, T_part)
  Tensor ln2;                 ///< (B, T, C)
  Tensor up;                  ///< (B, T, F_tp), before GELU
  Tensor gelu;                ///< (B, T, F_tp); among gradients one with up
  Tensor down;                ///< (B, T, C): this rank's summand
  Tensor down_part;           ///< (B, T_part, C): its sum over ranks

  void declare(LayerTensors& layer, const Sizes& sizes, const Precision& precision, Keep keep,
               bool sequence_parallel);
  void declare_gradients(LayerTensors& layer, const Sizes& sizes, const Precision& precision,
                         bool sequence_parallel);
};

/// Steps 8 to 11 of a block: gelu(W_up layernorm(mid) + b), all that backward reads.
void mlp_hidden_forward(Executor& x, MlpActs& a, const MlpParams& w, const Tensor& mid_part,
                        TensorParallel& tp);
/// Steps 12 to 14: out = mid + dropout(W_down gelu + b).
void mlp_output_forward(Executor& x, const Tensor& out_part, MlpActs& a, const MlpParams& w,
                        const Tensor& mid_part, const DropoutSites& dropout, int64_t layer,
                        TensorParallel& tp);
/// dresidual: in, the gradient of out; out, that of mid. dw +=.
void mlp_backward(Executor& x, const Tensor& dresidual, MlpActs& da, const MlpParams& dw,
                  MlpActs& a, const MlpParams& w, const Tensor& mid_part, Keep keep,
                  const DropoutSites& dropout, int64_t layer, TensorParallel& tp);

}  // namespace gradus
