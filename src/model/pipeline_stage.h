#pragma once

#include <cstdint>
#include <vector>

#include "core/parameters.h"
#include "model/model_config.h"

namespace gradus {

/// What one stage of a pipeline computes: layers [first_layer, end_layer), the embeddings on the
/// first stage, final layernorm and head on the last.
struct PipelineStage {
  int64_t first_layer = 0;
  int64_t end_layer = 0;
  bool first = true;  ///< has the embeddings
  bool last = true;   ///< has the head

  int64_t layers() const { return end_layer - first_layer; }
};

/// The whole model on one stage.
PipelineStage whole_model(const ModelConfig& model);

/// Stage `stage` of `stages`. The last stage gets as many layers fewer as its head costs in
/// operations; of the others, which differ by one layer at most, later ones get the longer share,
/// for they keep fewer micro-batches. Every stage has a layer at least. Throws ConfigError when
/// there are fewer layers than stages.
PipelineStage pipeline_stage(const ModelConfig& model, int64_t vocabulary, int stage, int stages);

/// The buckets of a stage. With tied embeddings the last stage has a replica of the first's.
std::vector<Holding> bucket_holdings(const ModelConfig& model, const PipelineStage& stage);

}  // namespace gradus
