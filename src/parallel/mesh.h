#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "parallel/bootstrap.h"
#include "parallel/communicator.h"

namespace gradus {

/// How the ranks are laid out: pipeline stages × data-parallel replicas × context-parallel parts ×
/// tensor-parallel parts.
struct MeshShape {
  int pp = 1, dp = 1, cp = 1, tp = 1;

  int size() const { return pp * dp * cp * tp; }
  bool operator==(const MeshShape&) const = default;
};

/// One rank's place in it.
struct MeshCoordinates {
  int pp = 0, dp = 0, cp = 0, tp = 0;

  bool operator==(const MeshCoordinates&) const = default;
};

/// "pp 2 × dp 1 × cp 1 × tp 4".
std::string to_string(const MeshShape& shape);

/// The shape for `ranks` ranks. dp nullopt: ranks / (pp · cp · tp). Throws ConfigError with the
/// arithmetic and with what would fit.
MeshShape resolve_mesh(int ranks, int64_t tp, int64_t pp, int64_t cp, std::optional<int64_t> dp);

/// rank = ((pp · DP + dp) · CP + cp) · TP + tp: tensor-parallel neighbours are neighbours in rank
/// (so in one node), pipeline stages are furthest apart.
MeshCoordinates coordinates_of(const MeshShape& shape, int rank);
int rank_of(const MeshShape& shape, const MeshCoordinates& at);

/// Refuses a size that does not divide, with the numbers and the ways out: "model.heads 12 are not
/// divisible by tp 8: use tp 1, 2, 3, 4, 6 or 12". `parts_name` is what `parts` counts.
void require_divisible(const std::string& what, int64_t total, const std::string& parts_name,
                       int64_t parts);

/// The mesh's process groups, seen from one rank.
class Mesh {
 public:
  /// Collective over the job. Throws ConfigError when shape.size() is not bootstrap.size().
  /// bootstrap must outlive it.
  Mesh(Bootstrap& bootstrap, const MeshShape& shape);

  const MeshShape& shape() const { return shape_; }
  const MeshCoordinates& at() const { return at_; }
  bool first_stage() const { return at_.pp == 0; }
  bool last_stage() const { return at_.pp == shape_.pp - 1; }

  /// Every rank.
  Communicator& world() { return *world_; }
  /// Ranks that differ from this one in that coordinate alone, ordered by it.
  Communicator& tp() { return *tp_; }
  Communicator& cp() { return *cp_; }
  Communicator& dp() { return *dp_; }
  Communicator& pp() { return *pp_; }
  /// First and last pipeline stage, which share the tied embedding; on a stage between, and
  /// without a pipeline, a group of this rank alone.
  Communicator& embedding() { return *embedding_; }

 private:
  MeshShape shape_;
  MeshCoordinates at_;
  std::unique_ptr<Communicator> world_, tp_, cp_, dp_, pp_, embedding_;
};

}  // namespace gradus
