#pragma once

// CUDA C++'s qualifiers, for a C++ compiler that knows none. What AddressSanitizer puts fences
// around is static memory, not a thread's own; blocks run on one OS thread, so that either will do.

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static
#else
#define __shared__ static thread_local
#endif
