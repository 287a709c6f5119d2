#pragma once

#include <cstdint>
#include <string>

// For tests of cudasim and of programs on it.

namespace cudasim {

/// Begins anew with `seed`, which orders warps, copies and streams (GRADUS_CUDASIM_SEED at the
/// start).
void set_seed(uint64_t seed);

/// What the last fault was, in words, with where it was; empty if there was none since the last
/// cudaDeviceReset, which makes the device whole again.
std::string last_fault();

/// Device and pinned memory, streams and events that stand open, one a line; empty if none.
std::string open_resources();

}  // namespace cudasim
