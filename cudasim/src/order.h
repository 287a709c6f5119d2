#pragma once

#if defined(CUDASIM_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace cudasim {

// What ThreadSanitizer must know of who waits for whom: what a thread did before it released an
// object comes before what another does after it has acquired it.

inline void release([[maybe_unused]] void* object) {
#if defined(CUDASIM_TSAN)
  __tsan_release(object);
#endif
}
inline void acquire([[maybe_unused]] void* object) {
#if defined(CUDASIM_TSAN)
  __tsan_acquire(object);
#endif
}

}  // namespace cudasim
