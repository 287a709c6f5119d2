#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/executor.h"
#include "core/parameters.h"
#include "model/block.h"
#include "model/embedding_layer.h"
#include "model/head.h"
#include "model/layer_hooks.h"
#include "model/model_config.h"
#include "model/pipeline_stage.h"
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

/// A pre-LN GPT (GPT-2's architecture) with hand-written backward passes, or one pipeline stage of
/// it. It owns no memory: everything is declared to a visitor, and each layer's weights are reached
/// between its hooks' calls.
class Gpt {
 public:
  struct Options {
    ModelConfig model;
    int64_t vocabulary = 0;  ///< V, unpadded
    Precision precision;
    Keep keep = Keep::all;
    int64_t B = 1;
    int64_t T = 1;                            ///< at most model.context
    std::optional<PipelineStage> stage = {};  ///< none: the whole model
    int64_t slots = 1;  ///< micro-batches between forward and backward at the same time
  };
  /// tp must outlive the model. Throws ShapeError or, when tp does not divide
  /// heads, MLP width or T, ConfigError with the arithmetic.
  Gpt(const Options& options, TensorParallel& tp);

  /// Declares activations, gradients of activations and scratch. `parameters` (already declared to
  /// the same visitor) gives the weights.
  void declare(TensorVisitor& visitor, const Parameters& parameters, const Executor& x);

  const Sizes& sizes() const { return sizes_; }
  const Options& options() const { return options_; }

  const PipelineStage& stage() const { return stage_; }

  /// Everything forward: loss_sum += only.
  void forward(Executor& x, const MicroBatch& batch, LayerHooks& hooks);
  /// Both passes of one micro-batch: loss_sum += and every parameter's gradient +=.
  void forward_backward(Executor& x, const MicroBatch& batch, LayerHooks& hooks);

  /// The two halves of these on a pipeline stage. Forward, from input(slot) (on the first stage:
  /// from the batch's tokens) to output(slot).
  void forward_stage(Executor& x, const MicroBatch& batch, LayerHooks& hooks, int64_t slot);
  /// Backward of what forward_stage left in the slot: gradient() holds the gradient of output(slot)
  /// (on the last stage it is made, with the loss) and becomes that of input(slot).
  void backward_stage(Executor& x, const MicroBatch& batch, LayerHooks& hooks, int64_t slot);

  /// (B, T_part, C) in the residual dtype.
  const Tensor& input(int64_t slot) const { return slots_[static_cast<size_t>(slot)].in; }
  const Tensor& output(int64_t slot) const {
    return slots_[static_cast<size_t>(slot)].acts.back().out_part;
  }
  const Tensor& gradient() const { return d_residual_; }

 private:
  /// What a micro-batch keeps from forward to backward.
  struct Slot {
    Tensor in;                    // (B, T_part, C): the first block's input
    std::vector<BlockActs> acts;  // one a layer
  };
  void bind(const Parameters& parameters);
  void declare_slot(LayerTensors& layers, Slot& slot, int64_t index) const;
  void declare_scratch(TensorVisitor& visitor, const Executor& x) const;
  DropoutSites local(const DropoutSites& dropout) const;
  void acquire_head(LayerHooks& hooks) const;
  void release_head(LayerHooks& hooks) const;
  bool reads_embedding() const { return stage_.last && options_.model.tied_embeddings; }
  int bucket_of(int64_t layer) const { return static_cast<int>(1 + layer); }
  int head_bucket() const { return bucket_of(sizes_.L); }

  Options options_;
  TensorParallel& tp_;
  Sizes sizes_;
  PipelineStage stage_;
  AttentionLayerSpec attention_;

  EmbeddingParams embedding_, d_embedding_;
  std::vector<BlockParams> blocks_, d_blocks_;  // of this stage's layers
  HeadParams head_, d_head_;

  std::vector<Slot> slots_;
  BlockActs d_acts_;
  HeadActs head_acts_;
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
