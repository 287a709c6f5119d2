#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "core/dtype.h"
#include "core/rng.h"
#include "core/tensor.h"

namespace gradus::test {

/// Element i of rank `rank`'s input: a pure function, so every rank knows what the others hold.
/// Sums of these round, so that the order of adding shows.
template <typename T>
T rank_value(uint64_t round, int rank, int64_t i) {
  const uint64_t bits =
      rng_key(rng_key(round, static_cast<uint64_t>(rank)), static_cast<uint64_t>(i));
  const double unit = static_cast<double>(bits >> 11) * 0x1.0p-53;
  if constexpr (std::is_same_v<T, uint8_t>) {
    return static_cast<uint8_t>(bits >> 56);
  } else if constexpr (std::is_same_v<T, int32_t>) {
    return static_cast<int32_t>(bits >> 32);
  } else if constexpr (std::is_same_v<T, bf16>) {
    return bf16(static_cast<float>(2.0 * unit - 1.0));
  } else {
    return static_cast<T>(2.0 * unit - 1.0);
  }
}

/// A tensor of its own memory between guard zones, and a place to stand for it in comparisons.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : count_(count), bytes_(2 * kGuard + Size(count), kMark) {}

  Tensor tensor(const char* name = "buffer") {
    return {bytes_.data() + kGuard, kDTypeOf<T>, Device::cpu, Shape{count_}, name};
  }
  T* data() { return reinterpret_cast<T*>(bytes_.data() + kGuard); }
  T& operator[](int64_t i) { return data()[i]; }
  int64_t count() const { return count_; }

  void fill(uint64_t round, int rank) {
    for (int64_t i = 0; i < count_; ++i) data()[i] = rank_value<T>(round, rank, i);
  }
  bool guards_intact() const {
    for (size_t i = 0; i < kGuard; ++i) {
      if (bytes_[i] != kMark || bytes_[bytes_.size() - 1 - i] != kMark) return false;
    }
    return true;
  }
  /// First element whose bits differ from those of expected(i), or -1.
  template <typename Expected>
  int64_t first_difference(Expected&& expected) {
    for (int64_t i = 0; i < count_; ++i) {
      const T value = expected(i);
      if (std::memcmp(&value, &data()[i], sizeof(T)) != 0) return i;
    }
    return -1;
  }

 private:
  static constexpr size_t kGuard = 64;
  static constexpr std::byte kMark{0xA5};
  static size_t Size(int64_t count) { return static_cast<size_t>(count) * sizeof(T); }

  int64_t count_;
  std::vector<std::byte> bytes_;
};

}  // namespace gradus::test
