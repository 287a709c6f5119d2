#pragma once

#include <cstdint>
#include <string>

namespace gradus {

/// A limit on the memory that can still be taken.
struct MemoryLimit {
  int64_t bytes = -1;  ///< -1: none, or unknown
  std::string name;    ///< "the limit of address space (ulimit -v)"
};

/// What the machine, or a control group around this process, still has: for all its ranks together.
MemoryLimit shared_memory_limit();
/// What this process may still take, by its resource limits (RLIMIT_AS, RLIMIT_DATA).
MemoryLimit process_memory_limit();
/// The one that binds.
MemoryLimit least(const MemoryLimit& a, const MemoryLimit& b);

}  // namespace gradus
