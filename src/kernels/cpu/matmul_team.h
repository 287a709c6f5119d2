#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "core/flush_denormals.h"

namespace gradus::cpu {

/// A thread's place among those that compute one product together.
struct TeamMember {
  int thread = 0;
  int threads = 1;

  /// This member's share of [0, count): consecutive, disjoint, as even as can be.
  std::pair<int64_t, int64_t> share(int64_t count) const {
    return {count * thread / threads, count * (thread + 1) / threads};
  }
  /// Waits for the whole team.
  void barrier() const {
    if (threads > 1) {
#pragma omp barrier
    }
  }
};

/// Calls body(member) once on each thread of a team, which may meet at member.barrier(). `threads`
/// are asked for; member.threads is how many came, and body must do the whole work, to the same
/// bits, whatever that is. Denormals are flushed. body must not throw. Beside core/parallel_for.h
/// because a product's threads pack together, wait and then multiply, and a barrier costs less than
/// ending and starting a parallel region.
template <typename Body>
void run_team(int threads, Body&& body) {
  if (threads <= 1) {
    const FlushDenormals flush;
    body(TeamMember{});
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    const FlushDenormals flush;
    body(TeamMember{omp_get_thread_num(), omp_get_num_threads()});
  }
}

/// A matrix of tiles cut over a team: rows_of × columns_of members.
struct TeamGrid {
  int rows_of = 1;
  int columns_of = 1;
};

/// The grid that leaves the busiest member the fewest tiles; among equals the one with most rows,
/// whose members share the packed columns.
inline TeamGrid team_grid(int threads, int64_t row_tiles, int64_t column_tiles) {
  TeamGrid best;
  int64_t fewest = -1;
  for (int columns_of = 1; columns_of <= threads; ++columns_of) {
    if (threads % columns_of != 0) continue;
    const int rows_of = threads / columns_of;
    const int64_t most =
        ((row_tiles + rows_of - 1) / rows_of) * ((column_tiles + columns_of - 1) / columns_of);
    if (fewest < 0 || most < fewest) {
      fewest = most;
      best = {rows_of, columns_of};
    }
  }
  return best;
}

}  // namespace gradus::cpu
