#pragma once

#include <cstdint>
#include <string>

#include "parallel/data_parallel.h"
#include "parallel/mesh.h"
#include "parallel/pipeline_parallel.h"
#include "parallel/tensor_parallel.h"

namespace gradus {

/// One rank's part in every kind of parallelism.
struct Parallelism {
  struct Options {
    bool sequence = false;  ///< sequence parallelism along tp
    int64_t zero = 1;
  };

  /// A rank alone.
  Parallelism() = default;
  /// Of a running mesh, which must outlive this.
  Parallelism(Mesh& mesh, const Options& options)
      : tp(mesh.tp(), options.sequence),
        dp(mesh.dp(), options.zero),
        pp(mesh.pp(), mesh.embedding()),
        world(&mesh.world()) {}
  /// Of a rank that is only planned for.
  Parallelism(const MeshShape& shape, const MeshCoordinates& at, const Options& options)
      : tp(at.tp, shape.tp, options.sequence),
        dp(at.dp, shape.dp, options.zero),
        pp(at.pp, shape.pp) {}

  int ranks() const { return tp.size() * dp.size() * pp.stages(); }

  TensorParallel tp{0, 1, false};
  DataParallel dp;
  PipelineParallel pp;
  Communicator* world = nullptr;  ///< all ranks; null: this one alone, or only planned for
};

/// "8 ranks: pp 2 × dp 2 × tp 2, sequence parallel, ZeRO-1".
std::string describe(const Parallelism& parallel);

}  // namespace gradus
