#include "model/block.h"

#include <fmt/format.h>

namespace gradus {
BlockParams BlockParams::bind(const Parameters& parameters, int64_t layer, bool bias,
                              Tensor Parameter::*view) {
  const std::string prefix = fmt::format("block.{}", layer);
  return {.attention = AttentionParams::bind(parameters, prefix, bias, view),
          .mlp = MlpParams::bind(parameters, prefix, bias, view)};
}

void BlockActs::declare(LayerTensors& layer, const Sizes& sizes, const Precision& precision,
                        Keep keep, bool sequence_parallel) {
  attention.declare(layer, sizes, precision, keep, sequence_parallel);
  mlp.declare(layer, sizes, precision, keep, sequence_parallel);
}

void BlockActs::declare_gradients(LayerTensors& layer, const Sizes& sizes,
                                  const Precision& precision, bool sequence_parallel) {
  attention.declare_gradients(layer, sizes, precision, sequence_parallel);
  mlp.declare_gradients(layer, sizes, precision, sequence_parallel);
}

void block_forward(Executor& x, BlockActs& a, const BlockParams& w, const AttentionLayerSpec& spec,
                   const DropoutSites& dropout, int64_t layer, TensorParallel& tp, KvView* kv) {
  attention_layer_forward(x, a.attention, w.attention, spec, dropout, layer, tp, kv);
  mlp_hidden_forward(x, a.mlp, w.mlp, a.attention.mid_part, tp);
  mlp_output_forward(x, a.out_part, a.mlp, w.mlp, a.attention.mid_part, dropout, layer, tp);
}

void block_backward(Executor& x, const Tensor& dresidual, BlockActs& da, const BlockParams& dw,
                    BlockActs& a, const BlockParams& w, const AttentionLayerSpec& spec,
                    const DropoutSites& dropout, int64_t layer, TensorParallel& tp) {
  if (spec.keep == Keep::inputs) {
    attention_layer_forward(x, a.attention, w.attention, spec, dropout, layer, tp);
    mlp_hidden_forward(x, a.mlp, w.mlp, a.attention.mid_part, tp);
  }
  mlp_backward(x, dresidual, da.mlp, dw.mlp, a.mlp, w.mlp, a.attention.mid_part, spec.keep, dropout,
               layer, tp);
  attention_layer_backward(x, dresidual, da.attention, dw.attention, a.attention, w.attention, spec,
                           dropout, layer, tp);
}

}  // namespace gradus
