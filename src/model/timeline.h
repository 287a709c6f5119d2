#pragma once

#include "core/arena.h"
#include "model/model_config.h"

namespace gradus {

/// The instants of one micro-batch, on which the lifetimes of transient tensors are stated. Blocks
/// run one after another through the same instants, so their transients share memory. The steps are
/// those numbered in attention_layer.cpp (1 to 7) and mlp.cpp (8 to 14).
namespace instant {
inline constexpr int kEmbedding = 0;
constexpr int forward(int step) { return step; }
inline constexpr int kHead = 15;       ///< final layernorm, logits, loss and their gradients
inline constexpr int kHeadChunk = 16;  ///< one chunk of tokens through logits and back
inline constexpr int kHeadEnd = 17;
constexpr int recompute(int step) { return 20 + step; }
constexpr int backward(int step) { return 60 - step; }
inline constexpr int kEmbeddingBackward = 60;
}  // namespace instant

/// What becomes of activations between forward and backward.
enum class Keep {
  all,        ///< train.recompute: none
  selective,  ///< what is cheap to make again (layernorm and GELU outputs) is dropped
  inputs,     ///< train.recompute: full; only each block's input is kept
  nothing,    ///< no backward will come
};

constexpr Keep keep_for(Recompute recompute) {
  switch (recompute) {
    case Recompute::none:
      return Keep::all;
    case Recompute::selective:
      return Keep::selective;
    case Recompute::full:
      return Keep::inputs;
  }
  return Keep::all;
}

/// The life of an activation made in forward step `made` and read up to forward step `read` and,
/// going down, up to backward step `needed`. A cheap one is made again in backward step `remade`
/// when Keep::selective.
struct ActivationLife {
  int made = 0;
  int read = 0;
  int needed = 0;
  int remade = 0;  ///< 0: not cheap

  Lifetime under(Keep keep) const {
    const Span forward{instant::forward(made), instant::forward(read)};
    switch (keep) {
      case Keep::all:
        return Lifetime::saved();
      case Keep::selective:
        if (remade == 0) return Lifetime::saved();
        return Lifetime::transient(
            {forward, {instant::backward(remade), instant::backward(needed)}});
      case Keep::inputs:
        return Lifetime::transient(
            {forward, {instant::recompute(made), instant::backward(needed)}});
      case Keep::nothing:
        return Lifetime::transient({forward});
    }
    return Lifetime::saved();
  }
};

}  // namespace gradus
