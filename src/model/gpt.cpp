#include "model/gpt.h"

#include <algorithm>

#include "core/error.h"
#include "kernels/layernorm.h"
#include "kernels/matmul.h"
#include "kernels/residual.h"
#include "model/gpt_parameters.h"
#include "parallel/mesh.h"

namespace gradus {
Sizes gpt_sizes(const Gpt::Options& options, const TensorParallel& tp) {
  const ModelConfig& model = options.model;
  const int64_t n = tp.size();
  Sizes s;
  s.B = options.B;
  s.T = options.T;
  s.C = model.channels;
  s.H = model.heads;
  s.D = s.C / s.H;
  s.F = resolved_mlp_width(model);
  s.V = options.vocabulary;
  s.L = model.layers;
  if (s.C % s.H != 0)
    throw ShapeError("channels {} are not divisible by heads {}: change one of them", s.C, s.H);
  if (s.T > model.context) {
    throw ShapeError("sequences of {} tokens do not fit in a context of {}", s.T, model.context);
  }
  require_divisible("model.heads", s.H, "tp", n);
  require_divisible("model.mlp_width", s.F, "tp", n);
  if (tp.sequence_parallel()) require_divisible("tokens of a sequence", s.T, "tp", n);
  s.V_padded = padded_vocabulary(s.V, n);
  s.T_part = tp.sequence_parallel() ? s.T / n : s.T;
  s.C_tp = s.C / n;
  s.H_tp = s.H / n;
  s.F_tp = s.F / n;
  s.V_tp = s.V_padded / n;
  return s;
}

double training_flops(const Sizes& s, int64_t tokens) {
  const double products =
      2.0 * static_cast<double>(s.L * (4 * s.C * s.C + 2 * s.C * s.F) + s.C * s.V);
  // q·k and p·v, each 2·C·(T+1)/2 a token under the causal mask.
  const double attention = 2.0 * static_cast<double>(s.L * s.C * (s.T + 1));
  return 3.0 * (products + attention) * static_cast<double>(tokens);
}

Gpt::Gpt(const Options& options, TensorParallel& tp)
    : options_(options),
      tp_(tp),
      sizes_(gpt_sizes(options, tp)),
      stage_(options.stage.value_or(whole_model(options.model))),
      attention_{.kind = options.model.attention, .heads_tp = sizes_.H_tp, .keep = options.keep} {}

void Gpt::bind(const Parameters& parameters) {
  const bool backward = options_.keep != Keep::nothing;
  const bool bias = options_.model.bias;
  const auto bind_all = [&](EmbeddingParams& embedding, std::vector<BlockParams>& blocks,
                            HeadParams& head, Tensor Parameter::*view) {
    if (stage_.first) embedding = EmbeddingParams::bind(parameters, view);
    blocks.clear();
    for (int64_t l = stage_.first_layer; l < stage_.end_layer; ++l) {
      blocks.push_back(BlockParams::bind(parameters, l, bias, view));
    }
    if (stage_.last) head = HeadParams::bind(parameters, bias, view);
  };
  bind_all(embedding_, blocks_, head_, &Parameter::value);
  if (backward) bind_all(d_embedding_, d_blocks_, d_head_, &Parameter::grad);
}

void Gpt::declare(TensorVisitor& visitor, const Parameters& parameters, const Executor& x) {
  const Sizes& s = sizes_;
  const Precision& precision = options_.precision;
  const bool sequence = tp_.sequence_parallel();
  const bool backward = options_.keep != Keep::nothing;
  bind(parameters);

  LayerTensors layers(visitor);
  slots_.assign(static_cast<size_t>(options_.slots), {});
  for (int64_t i = 0; i < options_.slots; ++i) {
    declare_slot(layers, slots_[static_cast<size_t>(i)], i);
  }
  const auto full_residual = [&](const char* name, int instant) {
    return visitor.declare(name, precision.residual, {s.B, s.T, s.C},
                           Lifetime::transient({{instant, instant}}));
  };
  if (stage_.first && sequence)
    embedded_full_ = full_residual("embedded_full", instant::kEmbedding);
  if (stage_.last) head_acts_.declare(visitor, s, precision, tp_, backward);
  if (backward) {
    d_residual_ =
        visitor.declare("d_residual", precision.residual, {s.B, s.T_part, s.C},
                        Lifetime::transient({{instant::kHead, instant::kEmbeddingBackward}}));
    d_residual_full_ = stage_.first && sequence
                           ? full_residual("d_embedded_full", instant::kEmbeddingBackward)
                           : d_residual_;
    layers.begin_layer("gradients");
    d_acts_.declare_gradients(layers, s, precision, sequence);
  }
  declare_scratch(visitor, x);
}

void Gpt::declare_slot(LayerTensors& layers, Slot& slot, int64_t index) const {
  const Sizes& s = sizes_;
  // Without backward the residual stream is one tensor that every block updates in place.
  const Lifetime stream = options_.keep != Keep::nothing
                              ? Lifetime::saved()
                              : Lifetime::transient({{instant::kEmbedding, instant::kHeadEnd}});
  const auto begin_layer = [&](const std::string& name) {
    layers.begin_layer(options_.slots == 1 ? name : fmt::format("slot.{}.{}", index, name));
  };
  const auto residual = [&] {
    return layers.declare("residual", options_.precision.residual, {s.B, s.T_part, s.C}, stream);
  };
  begin_layer(stage_.first ? "embedding" : "input");
  slot.in = residual();
  Tensor in = slot.in;
  for (int64_t l = stage_.first_layer; l < stage_.end_layer; ++l) {
    begin_layer(fmt::format("block.{}", l));
    BlockActs a;
    a.attention.in_part = in;
    a.declare(layers, s, options_.precision, options_.keep, tp_.sequence_parallel());
    a.out_part = residual();
    in = a.out_part;
    slot.acts.push_back(a);
  }
}

void Gpt::declare_scratch(TensorVisitor& visitor, const Executor& x) const {
  const Sizes& s = sizes_;
  const DType act = options_.precision.activation;
  const auto declare = [&](const char* name, int64_t bytes) {
    visitor.declare(std::string("scratch.") + name, DType::u8, {bytes}, Lifetime::scratch());
  };
  declare("qkv", matmul_scratch(x, s.rows(), s.C, 3 * s.C_tp, act));
  declare("proj", matmul_scratch(x, s.rows(), s.C_tp, s.C, act));
  declare("up", matmul_scratch(x, s.rows(), s.C, s.F_tp, act));
  declare("down", matmul_scratch(x, s.rows(), s.F_tp, s.C, act));
  if (stage_.last) {
    // Chunks of logits come in two sizes: whole ones and the rest.
    const int64_t chunk = head_chunk_rows(s);
    declare("head", matmul_scratch(x, chunk, s.C, s.V_tp, act));
    if (s.rows() % chunk != 0) {
      declare("head_rest", matmul_scratch(x, s.rows() % chunk, s.C, s.V_tp, act));
    }
  }
  declare("attention", attention_scratch(x, attention_.kind, s.T, s.T, s.D, act));
  declare("layernorm", layernorm_scratch(x, s.C, act));
  declare("residual", residual_scratch(x, s.C, act));
}

DropoutSites Gpt::local(const DropoutSites& dropout) const {
  DropoutSites sites = dropout;
  sites.first_head = tp_.rank() * sizes_.H_tp;
  sites.first_position = tp_.sequence_parallel() ? tp_.rank() * sizes_.T_part : 0;
  return sites;
}

/// A tied head reads the token embedding's weights, which lie in bucket 0.
void Gpt::acquire_head(LayerHooks& hooks) const {
  if (reads_embedding()) hooks.acquire(0);
  hooks.acquire(head_bucket());
}

void Gpt::release_head(LayerHooks& hooks) const {
  hooks.release(head_bucket());
  if (reads_embedding()) hooks.release(0);
}

void Gpt::forward(Executor& x, const MicroBatch& batch, LayerHooks& hooks) {
  forward_stage(x, batch, hooks, 0);
  if (!stage_.last) return;
  acquire_head(hooks);
  head_forward(x, batch.loss_sum, head_acts_, head_, output(0), batch.targets, sizes_, tp_);
  release_head(hooks);
}

void Gpt::forward_backward(Executor& x, const MicroBatch& batch, LayerHooks& hooks) {
  forward_stage(x, batch, hooks, 0);
  backward_stage(x, batch, hooks, 0);
}

void Gpt::forward_stage(Executor& x, const MicroBatch& batch, LayerHooks& hooks, int64_t slot) {
  Slot& s = slots_[static_cast<size_t>(slot)];
  const DropoutSites dropout = local(batch.dropout);
  if (stage_.first) {
    hooks.acquire(0);
    embedding_forward(x, s.in, tp_.sequence_parallel() ? embedded_full_ : s.in, batch.tokens,
                      embedding_, 0, dropout, tp_);
    hooks.release(0);
  }
  for (int64_t l = stage_.first_layer; l < stage_.end_layer; ++l) {
    const auto i = static_cast<size_t>(l - stage_.first_layer);
    hooks.acquire(bucket_of(l));
    block_forward(x, s.acts[i], blocks_[i], attention_, dropout, l, tp_);
    hooks.release(bucket_of(l));
  }
}

void Gpt::backward_stage(Executor& x, const MicroBatch& batch, LayerHooks& hooks, int64_t slot) {
  Slot& s = slots_[static_cast<size_t>(slot)];
  const DropoutSites dropout = local(batch.dropout);
  if (stage_.last) {
    acquire_head(hooks);
    hooks.gradients_begin(head_bucket());
    if (reads_embedding()) hooks.gradients_begin(0);
    head_forward_backward(x, batch.loss_sum, d_residual_, d_head_, head_acts_, head_, output(slot),
                          batch.targets, batch.gradient_scale, sizes_, tp_);
    release_head(hooks);
    hooks.gradients_ready(head_bucket());
    if (reads_embedding() && !stage_.first) hooks.gradients_ready(0);
  }
  for (int64_t l = stage_.end_layer - 1; l >= stage_.first_layer; --l) {
    const auto i = static_cast<size_t>(l - stage_.first_layer);
    hooks.acquire(bucket_of(l));
    hooks.gradients_begin(bucket_of(l));
    block_backward(x, d_residual_, d_acts_, d_blocks_[i], s.acts[i], blocks_[i], attention_,
                   dropout, l, tp_);
    hooks.release(bucket_of(l));
    hooks.gradients_ready(bucket_of(l));
  }
  if (stage_.first) {
    if (!reads_embedding()) hooks.gradients_begin(0);
    embedding_backward(x, d_embedding_, d_residual_, d_residual_full_, batch.tokens, 0, dropout,
                       tp_);
    hooks.gradients_ready(0);
  }
}

}  // namespace gradus
