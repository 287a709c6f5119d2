#pragma once

#include <algorithm>
#include <cstdint>

#include "core/executor.h"
#include "core/flush_denormals.h"

namespace gradus {

/// Calls body(begin, end, thread) on consecutive, disjoint ranges that cover [0, count), at most
/// x.threads() of them, numbered by `thread`. Ranges start at multiples of `grain` and depend only
/// on count, grain and x.threads(), so results are the same from run to run, and the same where
/// OpenMP gives fewer threads than that: each range is done all the same, several by one thread.
/// Runs on the calling thread when there is one range. Denormals are flushed. body must not throw.
template <typename Body>
void parallel_ranges(const Executor& x, int64_t count, int64_t grain, Body&& body) {
  if (count <= 0) return;
  const int64_t chunks = (count + grain - 1) / grain;
  const int team = static_cast<int>(std::min<int64_t>(x.threads(), chunks));
  if (team <= 1) {
    const FlushDenormals flush;
    body(int64_t{0}, count, 0);
    return;
  }
  // Always all threads: libgomp ends and makes threads anew where the size of a team changes.
#pragma omp parallel for num_threads(x.threads()) schedule(static, 1)
  for (int thread = 0; thread < team; ++thread) {
    const int64_t begin = std::min(count, chunks * thread / team * grain);
    const int64_t end = std::min(count, chunks * (thread + 1) / team * grain);
    const FlushDenormals flush;
    body(begin, end, thread);
  }
}

/// Calls body(i) for each i in [0, count), in the ranges of parallel_ranges.
template <typename Body>
void parallel_for(const Executor& x, int64_t count, int64_t grain, Body&& body) {
  parallel_ranges(x, count, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

}  // namespace gradus
