#pragma once

#include <driver_types.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>

namespace cudasim {

enum class Space { device, pinned, registered };

/// What the program has allocated. Device memory begins as NaNs, has fences around it that are
/// looked at after every operation (AddressSanitizer's where it is there, bytes otherwise), and can
/// be touched only while the device works.
class MemoryBook {
 public:
  struct Allocation {
    size_t bytes = 0;
    Space space = Space::device;
    uint64_t number = 0;        ///< of the allocations so far
    std::byte* base = nullptr;  ///< of the memory with its fences
    size_t base_bytes = 0;
  };

  void* allocate(size_t bytes, Space space);
  /// False where `pointer` is no open allocation of this space.
  bool release(void* pointer, Space space);
  bool add_registered(void* pointer, size_t bytes);

  /// The space of the allocation that holds the byte at `pointer`.
  std::optional<Space> space_of(const void* pointer) const;
  /// Whether bytes [pointer, +bytes) are all of one device allocation.
  bool is_device_range(const void* pointer, size_t bytes) const;

  /// Device memory may be touched from the first of these on to the last.
  void open_device();
  void close_device();

  /// A description of the first fence that was written to, and its repair; empty if all stand.
  std::string broken_fence();
  /// What lies at an address of device memory, in words.
  std::string describe(const void* pointer) const;
  /// One line for each allocation that is open.
  std::string open() const;
  size_t device_bytes() const { return device_bytes_; }

 private:
  using Entry = std::pair<const uintptr_t, Allocation>;
  const Entry* find(const void* pointer) const;
  void allow_device(bool allowed);

  std::map<uintptr_t, Allocation> allocations_;
  std::map<uintptr_t, Allocation> given_back_;  ///< by their pages, which are not used again
  size_t device_bytes_ = 0;
  uint64_t count_ = 0;
  int opened_ = 0;
};

/// The time for which the device works.
class DeviceOpen {
 public:
  explicit DeviceOpen(MemoryBook& memory) : memory_(memory) { memory_.open_device(); }
  ~DeviceOpen() { memory_.close_device(); }
  DeviceOpen(const DeviceOpen&) = delete;
  DeviceOpen& operator=(const DeviceOpen&) = delete;

 private:
  MemoryBook& memory_;
};

}  // namespace cudasim
