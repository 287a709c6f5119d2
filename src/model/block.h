#pragma once

#include <string>

#include "model/attention_layer.h"
#include "model/mlp.h"

namespace gradus {

struct BlockParams {
  AttentionParams attention;
  MlpParams mlp;

  /// view: &Parameter::value or &Parameter::grad.
  static BlockParams bind(const Parameters& parameters, int64_t layer, bool bias,
                          Tensor Parameter::*view);
};

/// Activations of one block, or their gradients.
struct BlockActs {
  AttentionActs attention;
  MlpActs mlp;
  Tensor out_part;  ///< (B, T_part, C) residual dtype: the next block's input

  void declare(LayerTensors& layer, const Sizes& sizes, const Precision& precision, Keep keep,
               bool sequence_parallel);
  void declare_gradients(LayerTensors& layer, const Sizes& sizes, const Precision& precision,
                         bool sequence_parallel);
};

/// out = mid + mlp(layernorm(mid)), mid = in + attention(layernorm(in)): a pre-LN transformer block
/// (arXiv:1706.03762, arXiv:2002.04745).
void block_forward(Executor& x, BlockActs& a, const BlockParams& w, const AttentionLayerSpec& spec,
                   const DropoutSites& dropout, int64_t layer, TensorParallel& tp,
                   KvView* kv = nullptr);
/// dresidual: in, the gradient of the block's output; out, that of its input. dw +=. Makes again
/// what spec.keep dropped, with the same functions that made it first.
void block_backward(Executor& x, const Tensor& dresidual, BlockActs& da, const BlockParams& dw,
                    BlockActs& a, const BlockParams& w, const AttentionLayerSpec& spec,
                    const DropoutSites& dropout, int64_t layer, TensorParallel& tp);

}  // namespace gradus
