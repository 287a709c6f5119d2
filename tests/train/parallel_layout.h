#pragma once

#include <ostream>

#include "parallel/mesh.h"
#include "parallel/parallelism.h"

namespace gradus::test {

/// How a test lays its ranks out.
struct ParallelLayout {
  MeshShape mesh;
  bool sequence = false;
  int64_t zero = 1;

  Parallelism on(Mesh& groups) const {
    return Parallelism(groups, {.sequence = sequence, .zero = zero});
  }
};

inline std::ostream& operator<<(std::ostream& out, const ParallelLayout& layout) {
  return out << to_string(layout.mesh) << (layout.sequence ? ", sequence" : "") << ", ZeRO-"
             << layout.zero;
}

}  // namespace gradus::test
