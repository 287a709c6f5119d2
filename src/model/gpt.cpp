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
      attention_{.kind = options.model.attention, .heads_tp = sizes_.H_tp, .keep = options.keep} {}

void Gpt::declare(TensorVisitor& visitor, const Parameters& parameters, const Executor& x) {
  const Sizes& s = sizes_;
  const Precision& precision = options_.precision;
  const bool bias = options_.model.bias;
  const bool sequence = tp_.sequence_parallel();
  const bool backward = options_.keep != Keep::nothing;

  embedding_ = EmbeddingParams::bind(parameters, &Parameter::value);
  head_ = HeadParams::bind(parameters, bias, &Parameter::value);
  blocks_.clear();
  for (int64_t l = 0; l < s.L; ++l) {
    blocks_.push_back(BlockParams::bind(parameters, l, bias, &Parameter::value));
  }
  if (backward) {
    d_embedding_ = EmbeddingParams::bind(parameters, &Parameter::grad);
    d_head_ = HeadParams::bind(parameters, bias, &Parameter::grad);
    d_blocks_.clear();
    for (int64_t l = 0; l < s.L; ++l) {
      d_blocks_.push_back(BlockParams::bind(parameters, l, bias, &Parameter::grad));
    }
  }

  // Without backward the residual stream is one tensor that every block updates in place.
  LayerTensors layers(visitor);
  const Lifetime stream = backward
                              ? Lifetime::saved()
                              : Lifetime::transient({{instant::kEmbedding, instant::kHeadEnd}});
  const Shape residual_shape{s.B, s.T_part, s.C};
  layers.begin_layer("embedding");
  embedded_ = layers.declare("residual", precision.residual, residual_shape, stream);
  embedded_full_ =
      sequence ? layers.declare("embedded_full", precision.residual, {s.B, s.T, s.C},
                                Lifetime::transient({{instant::kEmbedding, instant::kEmbedding}}))
               : embedded_;
  acts_.assign(static_cast<size_t>(s.L), {});
  Tensor in = embedded_;
  for (int64_t l = 0; l < s.L; ++l) {
    BlockActs& a = acts_[static_cast<size_t>(l)];
    layers.begin_layer(fmt::format("block.{}", l));
    a.attention.in_part = in;
    a.declare(layers, s, precision, options_.keep, sequence);
    a.out_part = layers.declare("residual", precision.residual, residual_shape, stream);
    in = a.out_part;
  }
  head_acts_.declare(visitor, s, precision, tp_, backward);
  if (backward) {
    d_residual_ =
        visitor.declare("d_residual", precision.residual, residual_shape,
                        Lifetime::transient({{instant::kHead, instant::kEmbeddingBackward}}));
    d_residual_full_ =
        sequence
            ? visitor.declare(
                  "d_embedded_full", precision.residual, {s.B, s.T, s.C},
                  Lifetime::transient({{instant::kEmbeddingBackward, instant::kEmbeddingBackward}}))
            : d_residual_;
    layers.begin_layer("gradients");
    d_acts_.declare_gradients(layers, s, precision, sequence);
  }
  declare_scratch(visitor, x);
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
  // Chunks of logits come in two sizes: whole ones and the rest.
  const int64_t chunk = head_chunk_rows(s);
  declare("head", matmul_scratch(x, chunk, s.C, s.V_tp, act));
  if (s.rows() % chunk != 0) {
    declare("head_rest", matmul_scratch(x, s.rows() % chunk, s.C, s.V_tp, act));
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

void Gpt::blocks_forward(Executor& x, const MicroBatch& batch, LayerHooks& hooks) {
  const DropoutSites dropout = local(batch.dropout);
  hooks.acquire(0);
  embedding_forward(x, embedded_, embedded_full_, batch.tokens, embedding_, 0, dropout, tp_);
  hooks.release(0);
  for (int64_t l = 0; l < sizes_.L; ++l) {
    const auto i = static_cast<size_t>(l);
    const int bucket = static_cast<int>(1 + l);
    hooks.acquire(bucket);
    block_forward(x, acts_[i], blocks_[i], attention_, dropout, l, tp_);
    hooks.release(bucket);
  }
}

/// A tied head reads the token embedding's weights, which lie in bucket 0.
void Gpt::acquire_head(LayerHooks& hooks) const {
  if (options_.model.tied_embeddings) hooks.acquire(0);
  hooks.acquire(head_bucket());
}

void Gpt::release_head(LayerHooks& hooks) const {
  hooks.release(head_bucket());
  if (options_.model.tied_embeddings) hooks.release(0);
}

void Gpt::forward(Executor& x, const MicroBatch& batch, LayerHooks& hooks) {
  blocks_forward(x, batch, hooks);
  acquire_head(hooks);
  head_forward(x, batch.loss_sum, head_acts_, head_, acts_.back().out_part, batch.targets, sizes_,
               tp_);
  release_head(hooks);
}

void Gpt::forward_backward(Executor& x, const MicroBatch& batch, LayerHooks& hooks) {
  blocks_forward(x, batch, hooks);

  acquire_head(hooks);
  head_forward_backward(x, batch.loss_sum, d_residual_, d_head_, head_acts_, head_,
                        acts_.back().out_part, batch.targets, batch.gradient_scale, sizes_, tp_);
  release_head(hooks);
  hooks.gradients_ready(head_bucket());

  const DropoutSites dropout = local(batch.dropout);
  for (int64_t l = sizes_.L - 1; l >= 0; --l) {
    const auto i = static_cast<size_t>(l);
    const int bucket = static_cast<int>(1 + l);
    hooks.acquire(bucket);
    block_backward(x, d_residual_, d_acts_, d_blocks_[i], acts_[i], blocks_[i], attention_, dropout,
                   l, tp_);
    hooks.release(bucket);
    hooks.gradients_ready(bucket);
  }
  embedding_backward(x, d_embedding_, d_residual_, d_residual_full_, batch.tokens, 0, dropout, tp_);
  hooks.gradients_ready(0);
}

}  // namespace gradus
