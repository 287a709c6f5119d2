#pragma once

#include "parallel/parallelism.h"
#include "train/config.h"

namespace gradus {

/// The mesh that a configuration asks for on so many ranks. Throws as resolve_mesh.
inline MeshShape mesh_of(const ParallelConfig& config, int ranks) {
  return resolve_mesh(ranks, config.tp, config.pp, config.cp, config.dp);
}

/// What it asks for within that mesh.
inline Parallelism::Options parallelism_options(const ParallelConfig& config) {
  return {.sequence = config.sequence, .zero = config.zero};
}

}  // namespace gradus
