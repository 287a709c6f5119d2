#include "model/mlp.h"

#include "kernels/gelu.h"
#include "kernels/layernorm.h"
#include "kernels/matmul.h"
#include "kernels/residual.h"

namespace gradus {

MlpParams MlpParams::bind(const Parameters& parameters, const std::string& prefix, bool bias,
                          Tensor Parameter::*view) {
  const auto of = [&](const char* name) { return parameters[prefix + name].*view; };
  MlpParams w{
      .ln2_w = of(".ln2.weight"), .up_w = of(".mlp.up.weight"), .down_w = of(".mlp.down.weight")};
  if (bias) {
    w.ln2_b = of(".ln2.bias");
    w.up_b = of(".mlp.up.bias");
    w.down_b = of(".mlp.down.bias");
  }
  return w;
}

void MlpActs::declare(LayerTensors& layer, const Sizes& s, const Precision& precision, Keep keep,
                      bool sequence_parallel) {
  const DType act = precision.activation;
  const DType stat = accumulator_of(act);
  using Life = ActivationLife;
  const Life normed{.made = 8, .read = 10, .needed = 10, .remade = 10};
  const Life statistics{.made = 8, .read = 8, .needed = 8};
  ln2_part = layer.declare("ln2", act, {s.B, s.T_part, s.C}, normed.under(keep));
  ln2_mean = layer.declare("ln2_mean", stat, {s.B, s.T_part}, statistics.under(keep));
  ln2_rstd = layer.declare("ln2_rstd", stat, {s.B, s.T_part}, statistics.under(keep));
  ln2 = sequence_parallel
            ? layer.declare("ln2_full", act, {s.B, s.T, s.C},
                            Lifetime::transient({{instant::forward(9), instant::forward(10)},
                                                 {instant::recompute(9), instant::recompute(10)},
                                                 {instant::backward(10), instant::backward(10)}}))
            : ln2_part;
  up = layer.declare("up", act, {s.B, s.T, s.F_tp},
                     Life{.made = 10, .read = 11, .needed = 11}.under(keep));
  gelu = layer.declare("gelu", act, {s.B, s.T, s.F_tp},
                       Life{.made = 11, .read = 12, .needed = 12, .remade = 12}.under(keep));
  const Lifetime output = Lifetime::transient({{instant::forward(12), instant::forward(14)}});
  down = layer.declare("down", act, {s.B, s.T, s.C}, output);
  down_part =
      sequence_parallel ? layer.declare("down_part", act, {s.B, s.T_part, s.C}, output) : down;
}

void MlpActs::declare_gradients(LayerTensors& layer, const Sizes& s, const Precision& precision,
                                bool sequence_parallel) {
  const DType act = precision.activation;
  const auto during = [](int from, int to) {
    return Lifetime::transient({{instant::backward(from), instant::backward(to)}});
  };
  down = layer.declare("d_down", act, {s.B, s.T, s.C}, during(14, 12));
  down_part = sequence_parallel
                  ? layer.declare("d_down_part", act, {s.B, s.T_part, s.C}, during(14, 13))
                  : down;
  gelu = layer.declare("d_up", act, {s.B, s.T, s.F_tp}, during(12, 10));
  up = gelu;
  ln2 = layer.declare("d_ln2", act, {s.B, s.T, s.C}, during(10, 8));
  ln2_part = sequence_parallel
                 ? layer.declare("d_ln2_part", act, {s.B, s.T_part, s.C}, during(10, 8))
                 : ln2;
}

void mlp_hidden_forward(Executor& x, MlpActs& a, const MlpParams& w, const Tensor& mid_part,
                        TensorParallel& tp) {
  layernorm_forward(x, a.ln2_part, a.ln2_mean, a.ln2_rstd, mid_part, w.ln2_w, w.ln2_b);  // 8
  tp.gather(x, a.ln2, a.ln2_part);                                                       // 9
  matmul_forward(x, a.up, a.ln2, w.up_w, w.up_b);  // 10 column-parallel
  gelu_forward(x, a.gelu, a.up);                   // 11
}

void mlp_output_forward(Executor& x, const Tensor& out_part, MlpActs& a, const MlpParams& w,
                        const Tensor& mid_part, const DropoutSites& dropout, int64_t layer,
                        TensorParallel& tp) {
  matmul_forward(x, a.down, a.gelu, w.down_w, {});  // 12 row-parallel
  tp.reduce_scatter(x, a.down_part, a.down);        // 13
  residual_forward(x, out_part, a.down_part, w.down_b, mid_part,
                   dropout.at(layer, DropoutSite::mlp_residual));  // 14
}

void mlp_backward(Executor& x, const Tensor& dresidual, MlpActs& da, const MlpParams& dw,
                  MlpActs& a, const MlpParams& w, const Tensor& mid_part, Keep keep,
                  const DropoutSites& dropout, int64_t layer, TensorParallel& tp) {
  residual_backward(x, da.down_part, dw.down_b, dresidual,
                    dropout.at(layer, DropoutSite::mlp_residual));  // 14
  tp.reduce_scatter_backward(x, da.down, da.down_part);             // 13
  matmul_backward_input(x, da.gelu, da.down, w.down_w);             // 12a
  if (keep == Keep::selective) gelu_forward(x, a.gelu, a.up);
  matmul_backward_weight(x, dw.down_w, {}, da.down, a.gelu);  // 12b
  gelu_backward(x, da.up, da.gelu, a.up);                     // 11
  matmul_backward_input(x, da.ln2, da.up, w.up_w);            // 10a
  auto pending = tp.gather_backward(x, da.ln2_part, da.ln2);  // 9 …
  if (keep == Keep::selective) {
    layernorm_forward(x, a.ln2_part, a.ln2_mean, a.ln2_rstd, mid_part, w.ln2_w, w.ln2_b);
  }
  if (tp.sequence_parallel()) tp.gather(x, a.ln2, a.ln2_part);
  matmul_backward_weight(x, dw.up_w, dw.up_b, da.up, a.ln2);  // 10b … hidden behind this
  pending.wait(x);
  layernorm_backward(x, dresidual, dw.ln2_w, dw.ln2_b, da.ln2_part, mid_part, w.ln2_w, a.ln2_mean,
                     a.ln2_rstd);  // 8
}

}  // namespace gradus
