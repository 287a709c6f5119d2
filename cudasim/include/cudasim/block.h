#pragma once

#include <vector_types.h>

#include <cstddef>

#include "site.h"

// What a thread knows of itself and its block.

extern constinit thread_local uint3 threadIdx;
extern constinit thread_local uint3 blockIdx;
extern constinit thread_local dim3 blockDim;
extern constinit thread_local dim3 gridDim;
inline constexpr int warpSize = 32;

namespace cudasim {

enum class Barrier { plain, count, conjunction, disjunction };

/// A barrier of the whole block. Returns what `kind` makes of the threads' predicates.
int block_barrier(Barrier kind, int predicate, Site site);

/// The block's dynamic shared memory.
void* dynamic_shared();

/// Ends the kernel as a trap does.
[[noreturn]] void trap(Site site);

}  // namespace cudasim

inline void __syncthreads(cudasim::Site site = cudasim::Site::here()) {
  cudasim::block_barrier(cudasim::Barrier::plain, 0, site);
}
inline int __syncthreads_count(int predicate, cudasim::Site site = cudasim::Site::here()) {
  return cudasim::block_barrier(cudasim::Barrier::count, predicate, site);
}
inline int __syncthreads_and(int predicate, cudasim::Site site = cudasim::Site::here()) {
  return cudasim::block_barrier(cudasim::Barrier::conjunction, predicate, site);
}
inline int __syncthreads_or(int predicate, cudasim::Site site = cudasim::Site::here()) {
  return cudasim::block_barrier(cudasim::Barrier::disjunction, predicate, site);
}
[[noreturn]] inline void __trap(cudasim::Site site = cudasim::Site::here()) { cudasim::trap(site); }

// Threads of a block run on one OS thread, and blocks one after another: memory is always in order.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
