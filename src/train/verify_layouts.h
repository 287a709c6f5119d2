#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/mesh.h"
#include "train/config.h"

namespace gradus {

/// How a verification lays out its ranks.
struct VerifiedLayout {
  MeshShape mesh;
  bool sequence = false;
  int64_t zero = 0;

  /// "pp 1 dp 2 tp 2 sequence zero 1".
  std::string name() const;
};

/// Every way to lay out a number of ranks, except over context parallelism.
struct VerifiedLayouts {
  std::vector<VerifiedLayout> fitting;
  /// The meshes that the model or the batch cannot be cut for, each with the arithmetic.
  std::vector<std::string> left_out;
};

VerifiedLayouts layouts_to_verify(const Config& config, int ranks);

}  // namespace gradus
