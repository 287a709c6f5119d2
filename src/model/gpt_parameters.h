#pragma once

#include <vector>

#include "core/parameters.h"
#include "model/model_config.h"

namespace gradus {

/// Rows of the embedding in memory: V rounded up so that every rank of tp gets the same number of
/// rows and each matrix product whole vectors.
int64_t padded_vocabulary(int64_t vocabulary, int64_t tp);

/// The parameter table of a GPT, in the order of the computation. Weights are N(0, 0.02), those of
/// the projections onto the residual stream N(0, 0.02 / √(2L)) (GPT-2), layernorms 1 and 0, biases
/// 0.
std::vector<ParamSpec> gpt_parameters(const ModelConfig& model, int64_t vocabulary, int64_t tp);

}  // namespace gradus
