#pragma once

#include <vector>

#include "core/executor.h"
#include "core/parameters.h"
#include "model/block.h"
#include "model/embedding_layer.h"
#include "model/head.h"
#include "model/layer_hooks.h"
#include "model/model_config.h"
#include "model/sizes.h"
#include "parallel/tensor_parallel.h"

namespace gradus {

/// One micro-batch on its way through the model.
struct MicroBatch {
  ConstTensor tokens;           ///< i32 (B, T)
  ConstTensor targets;          ///< i32 (B, T), kIgnoredTarget where nothing is to be predicted
  Tensor loss_sum;              ///< fp64 (1), += Σ cross-entropy in nats
  double gradient_scale = 1.0;  ///< on the summed loss: 1 / the step's count of targets
  DropoutSites dropout;
};

/// A pre-LN GPT (GPT-2's architecture) with hand-written backward passes. It owns no memory:
/// everything is declared to a visitor, and each layer's weights are reached between its hooks'
/// calls.
class Gpt {
 public:
  struct Options {
    ModelConfig model;
    int64_t vocabulary = 0;  ///< V, unpadded
    Precision precision;
    Keep keep = Keep::all;
    int64_t B = 1;
    int64_t T = 1;  ///< at most model.context
  };
  /// tp must outlive the model. Throws ShapeError or, when tp does not divide
  /// heads, MLP width or T, ConfigError with the arithmetic.
  Gpt(const Options& options, TensorParallel& tp);

  /// Declares activations, gradients of activations and scratch. `parameters` (already declared to
  /// the same visitor) gives the weights.
  void declare(TensorVisitor& visitor, const Parameters& parameters, const Executor& x);

  const Sizes& sizes() const { return sizes_; }
  const Options& options() const { return options_; }

  /// loss_sum += only.
  void forward(Executor& x, const MicroBatch& batch, LayerHooks& hooks);
  /// loss_sum += and every parameter's gradient +=.
  void forward_backward(Executor& x, const MicroBatch& batch, LayerHooks& hooks);

 private:
  void declare_scratch(TensorVisitor& visitor, const Executor& x) const;
  void blocks_forward(Executor& x, const MicroBatch& batch, LayerHooks& hooks);
  DropoutSites local(const DropoutSites& dropout) const;
  void acquire_head(LayerHooks& hooks) const;
  void release_head(LayerHooks& hooks) const;
  int head_bucket() const { return static_cast<int>(1 + sizes_.L); }

  Options options_;
  TensorParallel& tp_;
  Sizes sizes_;
  AttentionLayerSpec attention_;

  EmbeddingParams embedding_, d_embedding_;
  std::vector<BlockParams> blocks_, d_blocks_;
  HeadParams head_, d_head_;

  std::vector<BlockActs> acts_;  // one a layer; the saved ones of a micro-batch
  BlockActs d_acts_;
  HeadActs head_acts_;
  Tensor embedded_;         // (B, T_part, C): the first block's input
  Tensor embedded_full_;    // (B, T, C)
  Tensor d_residual_;       // (B, T_part, C)
  Tensor d_residual_full_;  // (B, T, C)
};

/// Sizes of a model cut over tp ranks. Throws as Gpt's constructor.
Sizes gpt_sizes(const Gpt::Options& options, const TensorParallel& tp);

/// Floating-point operations of one training step over `tokens` tokens: 2 for each multiply-add of
/// the matrix products, forward and backward, attention counted for the causal half
/// (arXiv:2204.02311, appendix B). Recomputation is not counted.
double training_flops(const Sizes& sizes, int64_t tokens);

}  // namespace gradus
