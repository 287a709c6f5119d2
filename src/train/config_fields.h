#pragma once

#include "train/config.h"
#include "train/config_field.h"

/// The one list of keys. A key is added to its struct and here; the parser, the checks, to_yaml,
/// config_differences and docs/configuration.md follow.

namespace gradus {

template <>
inline constexpr auto kFields<RunConfig> = std::tuple{
    Field{"dir", &RunConfig::dir, kAnyValue,
          "Folder of the run's metrics, checkpoints and resolved configuration; created at need."},
};

template <>
inline constexpr auto kFields<ModelConfig> = std::tuple{
    Field{"layers", &ModelConfig::layers, between(1, 100000), "Transformer blocks (L)."},
    Field{"channels", &ModelConfig::channels, at_least(1),
          "Width of the residual stream (C); a multiple of `model.heads`."},
    Field{"heads", &ModelConfig::heads, at_least(1),
          "Attention heads (H), each of channels / heads; a multiple of `parallel.tp`."},
    Field{"context", &ModelConfig::context, at_least(1),
          "Tokens of a training sequence, and the longest the model can attend over (T)."},
    Field{"mlp_width", &ModelConfig::mlp_width, at_least(1),
          "Hidden units of each MLP (F); auto: 4 × channels."},
    // Kept elements are scaled by 1 / (1 - p), at most 1000: p next to 1 would leave only noise.
    Field{"dropout", &ModelConfig::dropout, between(0, 0.999),
          "Probability of dropping an element of the embeddings, the attention weights and the "
          "residual branches during training."},
    Field{"bias", &ModelConfig::bias, kAnyValue,
          "Whether linear layers and layernorms add a bias."},
    Field{"tied_embeddings", &ModelConfig::tied_embeddings, kAnyValue,
          "Whether the output head shares its weight with the token embedding."},
    Field{"attention", &ModelConfig::attention, kAnyValue,
          "`flash` keeps O(T) memory by an online softmax and recomputes in backward; `plain` "
          "holds the T × T weights. Same result within rounding."},
    // Token ids are int32.
    Field{
        "vocab_size", &ModelConfig::vocab_size, between(1, 2147483647),
        "Tokens the model knows (V), before padding; auto: the size of the data's tokenizer. More "
        "than 128 × `parallel.tp` and a quarter above that is warned of: such rows are trained "
        "for nothing."},
};

template <>
inline constexpr auto kFields<DataConfig> = std::tuple{
    Field{
        "train", &DataConfig::train, at_least(1),
        "Folders made by `gradus data prepare`, or shards in them, to train on; each counts by its "
        "length, and one that is named twice is read twice an epoch."},
    Field{"val", &DataConfig::val, at_least(0),
          "Folders to evaluate on; empty: the validation split of the folders of `data.train`."},
    Field{"tokenizer", &DataConfig::tokenizer, kAnyValue,
          "The tokenizer the data must have been prepared with; auto: whichever it was."},
    Field{"changed", &DataConfig::changed, kAnyValue,
          "What becomes of a run that goes on while the tokens of its shards, or their order, are "
          "not those of its checkpoint: `refuse` stops, `allow` says so and goes on."},
};

template <>
inline constexpr auto kFields<OptimConfig> = std::tuple{
    // Kernels take rates and eps as fp32: the bounds keep them from becoming infinite or 0 there.
    Field{"lr", &OptimConfig::lr, above(0, 1000),
          "Peak learning rate, reached at the end of warmup."},
    Field{"min_lr", &OptimConfig::min_lr, between(0, 1000),
          "Learning rate of the last step; without effect when the schedule is constant."},
    Field{
        "warmup_steps", &OptimConfig::warmup_steps, at_least(0),
        "Steps over which the learning rate rises linearly from 0; fewer than `train.steps`, or as "
        "many where nothing follows: schedule constant, or `optim.min_lr` equal to `optim.lr`."},
    Field{"schedule", &OptimConfig::schedule, kAnyValue,
          "Course of the learning rate from the end of warmup to the last step; `wsd` "
          "(warmup-stable-decay) stays at `optim.lr` and decays over the last "
          "`optim.decay_steps`. All but `constant` need a step after warmup to reach "
          "`optim.min_lr`."},
    Field{"decay_steps", &OptimConfig::decay_steps, at_least(1),
          "Steps of the decay at the end of schedule wsd, and of no other; auto: 20% of "
          "`train.steps`, rounded up."},
    Field{"weight_decay", &OptimConfig::weight_decay, at_least(0),
          "Decoupled weight decay, of matrices only (no biases, no layernorms)."},
    Field{"beta1", &OptimConfig::beta1, from_below(0, 1), "AdamW's decay of the first moment."},
    Field{"beta2", &OptimConfig::beta2, from_below(0, 1), "AdamW's decay of the second moment."},
    Field{"eps", &OptimConfig::eps, between(1e-30, 1),
          "AdamW's addend to the root of the second moment."},
    Field{"clip_norm", &OptimConfig::clip_norm, at_least(0),
          "Gradients of a larger global norm are scaled down to it; 0: never."},
};

template <>
inline constexpr auto kFields<TrainConfig> = std::tuple{
    Field{"steps", &TrainConfig::steps, at_least(1), "Optimizer steps of the whole run."},
    Field{"micro_batch", &TrainConfig::micro_batch, at_least(1),
          "Sequences of one forward and backward pass on one data-parallel rank."},
    Field{"global_batch", &TrainConfig::global_batch, at_least(1),
          "Sequences of one optimizer step over all ranks; a multiple of micro_batch × dp, the "
          "quotient is the number of accumulated passes."},
    Field{"precision", &TrainConfig::precision, kAnyValue,
          "Dtypes of weights, activations, gradients and sums; `fp64` is the oracle of the "
          "gradient checks. `fp16` is not part of this build."},
    Field{"recompute", &TrainConfig::recompute, kAnyValue,
          "Activations that backward recomputes to save memory; gradients are bitwise the same."},
    Field{
        "max_skipped_steps", &TrainConfig::max_skipped_steps, at_least(1),
        "The run stops when this many steps in a row changed nothing, since loss, gradient norm or "
        "update were not finite."},
    Field{"threads", &TrainConfig::threads, between(1, 1024),
          "CPU threads of one rank; auto: every core the process may run on."},
};

template <>
inline constexpr auto kFields<ParallelConfig> = std::tuple{
    Field{"tp", &ParallelConfig::tp, at_least(1), "Tensor-parallel ranks."},
    Field{"pp", &ParallelConfig::pp, at_least(1),
          "Pipeline stages (one forward, one backward; arXiv:2104.04473)."},
    Field{"dp", &ParallelConfig::dp, at_least(1),
          "Data-parallel ranks; auto: all ranks / (tp × pp × cp)."},
    Field{"cp", &ParallelConfig::cp, at_least(1),
          "Context-parallel ranks. Only 1 is part of this build."},
    Field{"sequence", &ParallelConfig::sequence, kAnyValue,
          "Whether activations between tensor-parallel regions are cut along the sequence "
          "(arXiv:2205.05198)."},
    Field{"zero", &ParallelConfig::zero, between(0, 3),
          "What data-parallel ranks divide among them (arXiv:1910.02054): 0 nothing, 1 optimizer "
          "state, 2 also gradients, 3 also weights. 3 is not part of this build; none has an "
          "effect at dp 1."},
    Field{"check_replicas", &ParallelConfig::check_replicas, at_least(0),
          "Steps between comparisons of what several ranks hold copies of, which end the run where "
          "copies differ; also at the start and before each checkpoint. 0: never."},
};

template <>
inline constexpr auto kFields<CheckpointConfig> = std::tuple{
    Field{"every", &CheckpointConfig::every, at_least(0),
          "Steps between checkpoints; 0: only at the end and when the run is stopped."},
    Field{"keep", &CheckpointConfig::keep, at_least(1),
          "Newest checkpoints that are kept; older ones are deleted."},
    Field{"resume", &CheckpointConfig::resume, kAnyValue,
          "`auto` goes on from the newest whole checkpoint in `run.dir` if there is one; `never` "
          "starts afresh; a path names a checkpoint, or another run's folder, to start from. The "
          "path is for the first start: once `run.dir` holds checkpoints, the run goes on from the "
          "newest of them."},
};

template <>
inline constexpr auto kFields<EvalConfig> = std::tuple{
    Field{"every", &EvalConfig::every, at_least(0), "Steps between evaluations; 0: never."},
    Field{"tokens", &EvalConfig::tokens, at_least(1),
          "Tokens of validation text in one evaluation, from its beginning on, rounded up to whole "
          "sequences of `model.context`; all: the whole text. The same text whatever the batches "
          "and the layout."},
};

template <>
inline constexpr auto kFields<LogConfig> = std::tuple{
    Field{"every", &LogConfig::every, at_least(1),
          "Steps between reports on the console and in metrics.jsonl; the first and the last step "
          "are always among them."},
};

template <>
inline constexpr auto kFields<Config> = std::tuple{
    Field{"device", &Config::device, kAnyValue,
          "Where the run computes; auto: the best device of this build. `cuda` is not part of "
          "this build."},
    Field{"seed", &Config::seed, at_least(0), "Seed of weights, sample order and dropout masks."},
    Field{"run", &Config::run, kAnyValue, "Where the run lives."},
    Field{"model", &Config::model, kAnyValue, "Shape of the GPT."},
    Field{"data", &Config::data, kAnyValue, "What it reads."},
    Field{"optim", &Config::optim, kAnyValue,
          "AdamW, its learning-rate schedule and gradient clipping."},
    Field{"train", &Config::train, kAnyValue,
          "Length, batches and arithmetic. Batches are counted in sequences of `model.context` "
          "tokens."},
    Field{"parallel", &Config::parallel, kAnyValue,
          "How ranks share the work: ranks = pp × dp × cp × tp."},
    Field{"checkpoint", &Config::checkpoint, kAnyValue, "Saving and resuming."},
    Field{"eval", &Config::eval, kAnyValue, "Loss on held-out data during training."},
    Field{"log", &Config::log, kAnyValue, "What is reported while training."},
};

}  // namespace gradus
