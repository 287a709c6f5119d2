#include "model/attention_layer.h"

#include <cmath>

#include "kernels/elementwise.h"
#include "kernels/layernorm.h"
#include "kernels/matmul.h"
#include "kernels/residual.h"

namespace gradus {
namespace {

AttentionSpec attention_spec(const AttentionLayerSpec& spec, const Tensor& q,
                             const Dropout& dropout) {
  return {.kind = spec.kind,
          .scale = 1.0 / std::sqrt(static_cast<double>(q.size(3))),
          .dropout = dropout};
}

/// Step 4 with a cache: the new keys and values go behind the old ones, and queries see both.
void attention_forward_cached(Executor& x, AttentionActs& a, AttentionSpec spec, int64_t heads,
                              KvView& kv) {
  const Tensor q = a.q(heads);
  const int64_t length = kv.length + q.size(1);
  for (const auto& [cache, fresh] : {std::pair{kv.k, a.k(heads)}, std::pair{kv.v, a.v(heads)}}) {
    copy_strided(x, cache.slice(1, kv.length, q.size(1)), fresh);
  }
  spec.query_position = kv.length;
  attention_forward(x, a.att.split(2, heads), a.lse, q, kv.k.slice(1, 0, length),
                    kv.v.slice(1, 0, length), spec);
  kv.length = length;
}

}  // namespace

AttentionParams AttentionParams::bind(const Parameters& parameters, const std::string& prefix,
                                      bool bias, Tensor Parameter::*view) {
  const auto of = [&](const char* name) { return parameters[prefix + name].*view; };
  AttentionParams w{.ln1_w = of(".ln1.weight"),
                    .qkv_w = parameters.packed(prefix + ".attention.q.weight", 3, view),
                    .out_w = of(".attention.out.weight")};
  if (bias) {
    w.ln1_b = of(".ln1.bias");
    w.qkv_b = parameters.packed(prefix + ".attention.q.bias", 3, view);
    w.out_b = of(".attention.out.bias");
  }
  return w;
}

Tensor AttentionActs::head_view(int64_t which, int64_t heads) const {
  const int64_t width = qkv.size(2) / 3;
  return qkv.slice(2, which * width, width).split(2, heads);
}

void AttentionActs::declare(LayerTensors& layer, const Sizes& s, const Precision& precision,
                            Keep keep, bool sequence_parallel) {
  const DType act = precision.activation;
  const DType stat = accumulator_of(act);
  using Life = ActivationLife;
  const Life normed{.made = 1, .read = 3, .needed = 3, .remade = 3};
  const Life statistics{.made = 1, .read = 1, .needed = 1};
  ln1_part = layer.declare("ln1", act, {s.B, s.T_part, s.C}, normed.under(keep));
  ln1_mean = layer.declare("ln1_mean", stat, {s.B, s.T_part}, statistics.under(keep));
  ln1_rstd = layer.declare("ln1_rstd", stat, {s.B, s.T_part}, statistics.under(keep));
  ln1 = sequence_parallel
            ? layer.declare("ln1_full", act, {s.B, s.T, s.C},
                            Lifetime::transient({{instant::forward(2), instant::forward(3)},
                                                 {instant::recompute(2), instant::recompute(3)},
                                                 {instant::backward(3), instant::backward(3)}}))
            : ln1_part;
  qkv = layer.declare("qkv", act, {s.B, s.T, 3 * s.C_tp},
                      Life{.made = 3, .read = 4, .needed = 4}.under(keep));
  const Life attended{.made = 4, .read = 5, .needed = 4};
  att = layer.declare("att", act, {s.B, s.T, s.C_tp}, attended.under(keep));
  lse = layer.declare("lse", stat, {s.B, s.H_tp, s.T}, attended.under(keep));
  const Lifetime projected = Lifetime::transient(
      {{instant::forward(5), instant::forward(7)}, {instant::recompute(5), instant::recompute(7)}});
  proj = layer.declare("proj", act, {s.B, s.T, s.C}, projected);
  proj_part =
      sequence_parallel ? layer.declare("proj_part", act, {s.B, s.T_part, s.C}, projected) : proj;
  mid_part = layer.declare("mid", precision.residual, {s.B, s.T_part, s.C},
                           Life{.made = 7, .read = 14, .needed = 8}.under(keep));
}

void AttentionActs::declare_gradients(LayerTensors& layer, const Sizes& s,
                                      const Precision& precision, bool sequence_parallel) {
  const DType act = precision.activation;
  const auto during = [](int from, int to) {
    return Lifetime::transient({{instant::backward(from), instant::backward(to)}});
  };
  proj = layer.declare("d_proj", act, {s.B, s.T, s.C}, during(7, 5));
  proj_part = sequence_parallel
                  ? layer.declare("d_proj_part", act, {s.B, s.T_part, s.C}, during(7, 6))
                  : proj;
  att = layer.declare("d_att", act, {s.B, s.T, s.C_tp}, during(5, 4));
  row_sum = layer.declare("row_sum", accumulator_of(act), {s.B, s.H_tp, s.T}, during(4, 4));
  qkv = layer.declare("d_qkv", act, {s.B, s.T, 3 * s.C_tp}, during(4, 3));
  ln1 = layer.declare("d_ln1", act, {s.B, s.T, s.C}, during(3, 1));
  ln1_part = sequence_parallel
                 ? layer.declare("d_ln1_part", act, {s.B, s.T_part, s.C}, during(3, 1))
                 : ln1;
}

void attention_layer_forward(Executor& x, AttentionActs& a, const AttentionParams& w,
                             const AttentionLayerSpec& spec, const DropoutSites& dropout,
                             int64_t layer, TensorParallel& tp, KvView* kv) {
  const int64_t heads = spec.heads_tp;
  layernorm_forward(x, a.ln1_part, a.ln1_mean, a.ln1_rstd, a.in_part, w.ln1_w, w.ln1_b);  // 1
  tp.gather(x, a.ln1, a.ln1_part);                                                        // 2
  matmul_forward(x, a.qkv, a.ln1, w.qkv_w, w.qkv_b);  // 3 column-parallel
  const AttentionSpec attention =
      attention_spec(spec, a.q(heads), dropout.at(layer, DropoutSite::attention_weights));
  if (kv != nullptr) {
    attention_forward_cached(x, a, attention, heads, *kv);  // 4
  } else {
    attention_forward(x, a.att.split(2, heads), a.lse, a.q(heads), a.k(heads), a.v(heads),
                      attention);  // 4
  }
  matmul_forward(x, a.proj, a.att, w.out_w, {});  // 5 row-parallel
  tp.reduce_scatter(x, a.proj_part, a.proj);      // 6
  residual_forward(x, a.mid_part, a.proj_part, w.out_b, a.in_part,
                   dropout.at(layer, DropoutSite::attention_residual));  // 7
}

void attention_layer_backward(Executor& x, const Tensor& dresidual, AttentionActs& da,
                              const AttentionParams& dw, AttentionActs& a, const AttentionParams& w,
                              const AttentionLayerSpec& spec, const DropoutSites& dropout,
                              int64_t layer, TensorParallel& tp) {
  const int64_t heads = spec.heads_tp;
  residual_backward(x, da.proj_part, dw.out_b, dresidual,
                    dropout.at(layer, DropoutSite::attention_residual));  // 7
  tp.reduce_scatter_backward(x, da.proj, da.proj_part);                   // 6
  matmul_backward_input(x, da.att, da.proj, w.out_w);                     // 5a
  matmul_backward_weight(x, dw.out_w, {}, da.proj, a.att);                // 5b
  attention_backward(
      x, da.q(heads), da.k(heads), da.v(heads), da.row_sum, da.att.split(2, heads),
      a.att.split(2, heads), a.lse, a.q(heads), a.k(heads), a.v(heads),
      attention_spec(spec, a.q(heads), dropout.at(layer, DropoutSite::attention_weights)));  // 4
  matmul_backward_input(x, da.ln1, da.qkv, w.qkv_w);                                         // 3a
  auto pending = tp.gather_backward(x, da.ln1_part, da.ln1);  // 2 …
  if (spec.keep == Keep::selective) {
    layernorm_forward(x, a.ln1_part, a.ln1_mean, a.ln1_rstd, a.in_part, w.ln1_w, w.ln1_b);
  }
  if (tp.sequence_parallel()) tp.gather(x, a.ln1, a.ln1_part);
  matmul_backward_weight(x, dw.qkv_w, dw.qkv_b, da.qkv, a.ln1);  // 3b … hidden behind this
  pending.wait(x);
  layernorm_backward(x, dresidual, dw.ln1_w, dw.ln1_b, da.ln1_part, a.in_part, w.ln1_w, a.ln1_mean,
                     a.ln1_rstd);  // 1
}

}  // namespace gradus
