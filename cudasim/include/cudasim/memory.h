#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "site.h"

// Loads and stores with a cache policy, and atomic operations. Both check alignment, as the device
// does.

namespace cudasim {

/// Ends the kernel with cudaErrorMisalignedAddress.
[[noreturn]] void misaligned(const void* pointer, size_t bytes, Site site);

inline void check_aligned(const volatile void* pointer, size_t bytes, Site site) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) [[unlikely]] {
    misaligned(const_cast<const void*>(pointer), bytes, site);
  }
}

template <typename T>
T checked_load(const T* pointer, Site site) {
  check_aligned(pointer, alignof(T), site);
  return *pointer;
}
template <typename T>
void checked_store(T* pointer, const std::type_identity_t<T>& value, Site site) {
  check_aligned(pointer, alignof(T), site);
  *pointer = value;
}

/// Puts change(old) in the place of old, and gives old. Atomic only so that ThreadSanitizer sees
/// it.
template <typename T, typename Change>
T exchange(T* pointer, Change change, Site site) {
  check_aligned(pointer, sizeof(T), site);
  T old;
  __atomic_load(pointer, &old, __ATOMIC_RELAXED);
  T changed = change(old);
  while (!__atomic_compare_exchange(pointer, &old, &changed, true, __ATOMIC_RELAXED,
                                    __ATOMIC_RELAXED)) {
    changed = change(old);
  }
  return old;
}

}  // namespace cudasim

#define CUDASIM_LOAD(name)                                               \
  template <typename T>                                                  \
  T name(const T* pointer, cudasim::Site site = cudasim::Site::here()) { \
    return cudasim::checked_load(pointer, site);                         \
  }
CUDASIM_LOAD(__ldg)
CUDASIM_LOAD(__ldcs)
CUDASIM_LOAD(__ldca)
CUDASIM_LOAD(__ldcg)
CUDASIM_LOAD(__ldcv)
CUDASIM_LOAD(__ldlu)
#undef CUDASIM_LOAD
#define CUDASIM_STORE(name)                               \
  template <typename T>                                   \
  void name(T* pointer, std::type_identity_t<T> value,    \
            cudasim::Site site = cudasim::Site::here()) { \
    cudasim::checked_store(pointer, value, site);         \
  }
CUDASIM_STORE(__stcs)
CUDASIM_STORE(__stcg)
CUDASIM_STORE(__stwb)
CUDASIM_STORE(__stwt)
#undef CUDASIM_STORE

#define CUDASIM_ATOMIC(name, expression)                                                          \
  template <typename T>                                                                           \
  T name(T* pointer, std::type_identity_t<T> value, cudasim::Site site = cudasim::Site::here()) { \
    return cudasim::exchange(                                                                     \
        pointer, [value](T old) { return static_cast<T>(expression); }, site);                    \
  }
CUDASIM_ATOMIC(atomicAdd, old + value)
CUDASIM_ATOMIC(atomicSub, old - value)
CUDASIM_ATOMIC(atomicExch, value)
CUDASIM_ATOMIC(atomicMin, value < old ? value : old)
CUDASIM_ATOMIC(atomicMax, old < value ? value : old)
CUDASIM_ATOMIC(atomicAnd, old& value)
CUDASIM_ATOMIC(atomicOr, old | value)
CUDASIM_ATOMIC(atomicXor, old ^ value)
CUDASIM_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
CUDASIM_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1)
#undef CUDASIM_ATOMIC
template <typename T>
T atomicCAS(T* pointer, std::type_identity_t<T> compare, std::type_identity_t<T> value,
            cudasim::Site site = cudasim::Site::here()) {
  return cudasim::exchange(
      pointer, [compare, value](T old) { return old == compare ? value : old; }, site);
}
