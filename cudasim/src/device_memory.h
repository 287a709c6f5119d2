#pragma once

#include <cstddef>
#include <cstdint>

namespace cudasim {

#if defined(__SANITIZE_ADDRESS__) || defined(CUDASIM_TSAN)
/// A sanitizer watches the memory of the heap.
inline constexpr bool kOwnPages = false;
#else
inline constexpr bool kOwnPages = true;
#endif

/// Pages for device memory. No address is used twice, and what was given back cannot be touched any
/// more.
class DevicePages {
 public:
  /// Whole pages for `bytes`, between two that nobody may touch; null where there are none.
  static std::byte* allocate(size_t bytes);
  static void release(std::byte* pages, size_t bytes);
  /// Whether the program may touch them.
  static void allow(std::byte* pages, size_t bytes, bool allowed);
  static size_t round_up(size_t bytes);
  /// Whether `address` was ever handed out.
  static bool hold(const void* address);
};

}  // namespace cudasim
