#include "train/verify_layouts.h"

#include <fmt/format.h>

namespace gradus {
namespace {

/// Why the model cannot be cut like this; empty when it can.
std::string obstacle(const Config& config, const MeshShape& mesh) {
  const ModelConfig& model = config.model;
  const int64_t mlp_width = resolved_mlp_width(model);
  const int64_t pass = config.train.micro_batch * mesh.dp;
  if (model.heads % mesh.tp != 0) {
    return fmt::format("model.heads {} are not divisible by tp {}", model.heads, mesh.tp);
  }
  if (mlp_width % mesh.tp != 0) {
    return fmt::format("model.mlp_width {} is not divisible by tp {}", mlp_width, mesh.tp);
  }
  if (model.layers < mesh.pp) {
    return fmt::format("model.layers {} are fewer than pp {}", model.layers, mesh.pp);
  }
  if (config.train.global_batch % pass != 0) {
    return fmt::format("train.global_batch {} is not divisible by micro_batch {} × dp {}",
                       config.train.global_batch, config.train.micro_batch, mesh.dp);
  }
  return {};
}

}  // namespace

std::string VerifiedLayout::name() const {
  return fmt::format("pp {} dp {} tp {}{}{}", mesh.pp, mesh.dp, mesh.tp,
                     sequence ? " sequence" : "", mesh.dp > 1 ? fmt::format(" zero {}", zero) : "");
}

VerifiedLayouts layouts_to_verify(const Config& config, int ranks) {
  VerifiedLayouts layouts;
  for (int tp = 1; tp <= ranks; ++tp) {
    for (int pp = 1; pp <= ranks / tp; ++pp) {
      if (ranks % (tp * pp) != 0) continue;
      const MeshShape mesh{.pp = pp, .dp = ranks / (tp * pp), .tp = tp};
      if (const std::string why = obstacle(config, mesh); !why.empty()) {
        layouts.left_out.push_back(fmt::format("pp {} dp {} tp {}: {}", pp, mesh.dp, tp, why));
        continue;
      }
      for (const bool sequence : {false, true}) {
        if (sequence && tp == 1) continue;
        if (sequence && config.model.context % tp != 0) {
          layouts.left_out.push_back(
              fmt::format("pp {} dp {} tp {} sequence: model.context {} is not divisible by tp {}",
                          pp, mesh.dp, tp, config.model.context, tp));
          continue;
        }
        for (int64_t zero = 0; zero <= (mesh.dp > 1 ? 2 : 0); ++zero) {
          layouts.fitting.push_back({mesh, sequence, zero});
        }
      }
    }
  }
  return layouts;
}

}  // namespace gradus
