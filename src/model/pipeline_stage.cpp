#include "model/pipeline_stage.h"

#include <algorithm>
#include <limits>

#include "core/error.h"

namespace gradus {
namespace {

/// The head's operations in units of a block's; attention's own are left out, which is exact enough
/// to place whole layers.
double head_in_layers(const ModelConfig& model, int64_t vocabulary) {
  const auto C = static_cast<double>(model.channels);
  const auto F = static_cast<double>(resolved_mlp_width(model));
  return C * static_cast<double>(vocabulary) / (4 * C * C + 2 * C * F);
}

/// Layers of the last stage that leave the slowest stage the least to do; among equals the most.
int64_t layers_of_last(const ModelConfig& model, int64_t vocabulary, int64_t stages) {
  const double head = head_in_layers(model, vocabulary);
  int64_t best = 1;
  double least = std::numeric_limits<double>::infinity();
  for (int64_t last = 1; last <= model.layers - (stages - 1); ++last) {
    const int64_t others = (model.layers - last + stages - 2) / (stages - 1);
    const double slowest = std::max(static_cast<double>(others), static_cast<double>(last) + head);
    if (slowest > least) continue;
    least = slowest;
    best = last;
  }
  return best;
}

}  // namespace

PipelineStage whole_model(const ModelConfig& model) { return {.end_layer = model.layers}; }

PipelineStage pipeline_stage(const ModelConfig& model, int64_t vocabulary, int stage, int stages) {
  if (stages == 1) return whole_model(model);
  if (model.layers < stages) {
    throw ConfigError("model.layers {} are too few for pp {}: every stage needs one", model.layers,
                      stages);
  }
  const int64_t last = layers_of_last(model, vocabulary, stages);
  const int64_t others = stages - 1;
  const int64_t share = (model.layers - last) / others;
  const int64_t short_ones = others - (model.layers - last) % others;
  const auto begin = [&](int64_t s) { return share * s + std::max<int64_t>(0, s - short_ones); };
  PipelineStage part{.first_layer = begin(stage), .end_layer = begin(stage + 1)};
  part.first = stage == 0;
  part.last = stage == stages - 1;
  if (part.last) part.end_layer = model.layers;
  return part;
}

std::vector<Holding> bucket_holdings(const ModelConfig& model, const PipelineStage& stage) {
  std::vector<Holding> holdings(static_cast<size_t>(model.layers) + 2, Holding::none);
  std::fill(holdings.begin() + 1 + stage.first_layer, holdings.begin() + 1 + stage.end_layer,
            Holding::owner);
  if (stage.last) {
    holdings.back() = Holding::owner;
    if (model.tied_embeddings) holdings.front() = Holding::replica;
  }
  if (stage.first) holdings.front() = Holding::owner;
  return holdings;
}

}  // namespace gradus
