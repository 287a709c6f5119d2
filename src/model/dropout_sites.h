#pragma once

#include <cstdint>

#include "core/rng.h"

namespace gradus {

/// Where a model draws dropout masks.
enum class DropoutSite : uint64_t {
  embedding,
  attention_weights,
  attention_residual,
  mlp_residual
};

/// Gives each site its masks for one micro-batch. p = 0 (evaluation, generation) draws none.
struct DropoutSites {
  double p = 0.0;
  uint64_t seed = 0;
  int64_t first_sample = 0;    ///< global sample number of the micro-batch's first sequence
  int64_t first_position = 0;  ///< that masks are drawn for, of this rank's tokens
  int64_t first_head = 0;      ///< of the heads that this rank holds

  Dropout at(int64_t layer, DropoutSite site) const {
    const uint64_t number = static_cast<uint64_t>(layer) * 8 + static_cast<uint64_t>(site);
    return {.p = p,
            .key = rng_key(seed, rng_site("dropout") ^ number),
            .first_sample = first_sample,
            .first_position = first_position,
            .first_head = first_head};
  }
};

}  // namespace gradus
