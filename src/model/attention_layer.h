#pragma once

#include <string>

#include "core/executor.h"
#include "core/parameters.h"
#include "kernels/attention.h"
#include "model/dropout_sites.h"
#include "model/kv_view.h"
#include "model/layer_tensors.h"
#include "model/sizes.h"
#include "model/timeline.h"
#include "parallel/tensor_parallel.h"

namespace gradus {

/// Weights of the attention half of a block, or their gradients (one type for both).
struct AttentionParams {
  Tensor ln1_w, ln1_b;  ///< (C)
  Tensor qkv_w, qkv_b;  ///< (3 C_tp, C), (3 C_tp): rows of Q, then K, then V; cut by head
  Tensor out_w, out_b;  ///< (C, C_tp), (C): row-parallel, the bias is added once

  /// view: &Parameter::value or &Parameter::grad.
  static AttentionParams bind(const Parameters& parameters, const std::string& prefix, bool bias,
                              Tensor Parameter::*view);
};

/// Activations of the attention half of a block, or their gradients. `_part`: this rank's tokens
/// only, under sequence parallelism; without it the part and the full tensor are one.
struct AttentionActs {
  Tensor in_part;             ///< (B, T_part, C) residual dtype: the residual stream entering
  Tensor ln1_part;            ///< (B, T_part, C)
  Tensor ln1_mean, ln1_rstd;  ///< (B, T_part)
  Tensor ln1;                 ///< (B, T, C)
  Tensor qkv;                 ///< (B, T, 3 C_tp)
  Tensor att;                 ///< (B, T, C_tp): softmax(QKᵀ/√D) V
  Tensor lse;                 ///< (B, H_tp, T)
  Tensor row_sum;             ///< (B, H_tp, T), in backward only
  Tensor proj;                ///< (B, T, C): this rank's summand of the output projection
  Tensor proj_part;           ///< (B, T_part, C): its sum over ranks
  Tensor mid_part;            ///< (B, T_part, C) residual dtype: the residual stream leaving

  /// (B, T, H_tp, D) views of the packed qkv.
  Tensor q(int64_t heads) const { return head_view(0, heads); }
  Tensor k(int64_t heads) const { return head_view(1, heads); }
  Tensor v(int64_t heads) const { return head_view(2, heads); }

  /// in_part is the caller's. Values, kept for backward as `keep` says.
  void declare(LayerTensors& layer, const Sizes& sizes, const Precision& precision, Keep keep,
               bool sequence_parallel);
  /// Gradients: all transient. The residual stream's gradient is the caller's.
  void declare_gradients(LayerTensors& layer, const Sizes& sizes, const Precision& precision,
                         bool sequence_parallel);

 private:
  Tensor head_view(int64_t which, int64_t heads) const;
};

struct AttentionLayerSpec {
  AttentionKind kind = AttentionKind::flash;
  int64_t heads_tp = 1;
  Keep keep = Keep::all;
};

/// Steps 1 to 7 of a block: mid = in + dropout(W_o attention(layernorm(in)) + b). kv: null, or a
/// cache that is read and extended (generation).
void attention_layer_forward(Executor& x, AttentionActs& a, const AttentionParams& w,
                             const AttentionLayerSpec& spec, const DropoutSites& dropout,
                             int64_t layer, TensorParallel& tp, KvView* kv = nullptr);
/// dresidual: in, the gradient of mid; out, that of in. dw +=.
void attention_layer_backward(Executor& x, const Tensor& dresidual, AttentionActs& da,
                              const AttentionParams& dw, AttentionActs& a, const AttentionParams& w,
                              const AttentionLayerSpec& spec, const DropoutSites& dropout,
                              int64_t layer, TensorParallel& tp);

}  // namespace gradus
