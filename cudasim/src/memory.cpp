#include "memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>

#include "device_memory.h"

namespace cudasim {
namespace {

/// NaN in every floating-point type, -1 in integers.
constexpr int kPoison = 0xff;
constexpr size_t kAlignment = 256;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kFence = 0;
#else
constexpr size_t kFence = 256;
#endif

std::byte* bytes_at(uintptr_t address) { return reinterpret_cast<std::byte*>(address); }

/// The first byte in [begin, begin + kFence) that is not the fence's, or kFence.
size_t first_broken(const std::byte* begin) {
  const auto* end = begin + kFence;
  return static_cast<size_t>(
      std::find_if(begin, end, [](std::byte b) { return b != std::byte{kPoison}; }) - begin);
}
/// The last one in [end - kFence, end), counted backwards from `end`; 0 if all stand.
size_t last_broken(const std::byte* end) {
  for (size_t distance = 1; distance <= kFence; ++distance) {
    if (*(end - distance) != std::byte{kPoison}) {
      return distance;
    }
  }
  return 0;
}

const char* name_of(Space space) {
  switch (space) {
    case Space::device:
      return "device memory";
    case Space::pinned:
      return "pinned host memory";
    case Space::registered:
      return "registered host memory";
  }
  return "";
}

std::string text_of(const MemoryBook::Allocation& allocation) {
  return "allocation " + std::to_string(allocation.number) + " (" +
         std::to_string(allocation.bytes) + " bytes of " + name_of(allocation.space) + ")";
}

bool has_own_pages(const MemoryBook::Allocation& allocation) {
  return kOwnPages && allocation.space == Space::device;
}

}  // namespace

void* MemoryBook::allocate(size_t bytes, Space space) {
  Allocation allocation{.bytes = bytes, .space = space, .number = count_ + 1};
  size_t offset = kFence;
  if (has_own_pages(allocation)) {
    // At the end of its pages, so that what is far behind cannot be touched.
    const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    allocation.base_bytes = DevicePages::round_up(kFence + rounded + kFence);
    allocation.base = DevicePages::allocate(allocation.base_bytes);
    offset = allocation.base_bytes - kFence - rounded;
  } else {
    allocation.base_bytes = kFence + std::max<size_t>(bytes, 1) + kFence;
    void* base = nullptr;
    if (posix_memalign(&base, kAlignment, allocation.base_bytes) == 0) {
      allocation.base = static_cast<std::byte*>(base);
    }
  }
  if (allocation.base == nullptr) {
    return nullptr;
  }
  std::memset(allocation.base, kPoison, allocation.base_bytes);
  if (has_own_pages(allocation) && opened_ == 0) {
    DevicePages::allow(allocation.base, allocation.base_bytes, false);
  }
  ++count_;
  if (space == Space::device) {
    device_bytes_ += bytes;
  }
  void* pointer = allocation.base + offset;
  allocations_[reinterpret_cast<uintptr_t>(pointer)] = allocation;
  return pointer;
}

bool MemoryBook::release(void* pointer, Space space) {
  const auto found = allocations_.find(reinterpret_cast<uintptr_t>(pointer));
  if (found == allocations_.end() || found->second.space != space) {
    return false;
  }
  const Allocation allocation = found->second;
  allocations_.erase(found);
  if (space == Space::device) {
    device_bytes_ -= allocation.bytes;
  }
  if (has_own_pages(allocation)) {
    DevicePages::release(allocation.base, allocation.base_bytes);
    given_back_[reinterpret_cast<uintptr_t>(allocation.base)] = allocation;
  } else if (space != Space::registered) {
    std::memset(allocation.base, kPoison, allocation.base_bytes);
    std::free(allocation.base);
  }
  return true;
}

bool MemoryBook::add_registered(void* pointer, size_t bytes) {
  return allocations_
      .try_emplace(reinterpret_cast<uintptr_t>(pointer),
                   Allocation{.bytes = bytes, .space = Space::registered, .number = ++count_})
      .second;
}

const MemoryBook::Entry* MemoryBook::find(const void* pointer) const {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  auto above = allocations_.upper_bound(address);
  if (above == allocations_.begin()) {
    return nullptr;
  }
  const auto& candidate = *--above;
  return address < candidate.first + std::max<size_t>(candidate.second.bytes, 1) ? &candidate
                                                                                 : nullptr;
}

std::optional<Space> MemoryBook::space_of(const void* pointer) const {
  const auto* found = find(pointer);
  return found == nullptr ? std::nullopt : std::optional(found->second.space);
}

bool MemoryBook::is_device_range(const void* pointer, size_t bytes) const {
  const auto* found = find(pointer);
  return found != nullptr && found->second.space == Space::device &&
         reinterpret_cast<uintptr_t>(pointer) + bytes <= found->first + found->second.bytes;
}

void MemoryBook::open_device() {
  if (opened_++ == 0) {
    allow_device(true);
  }
}

void MemoryBook::close_device() {
  if (--opened_ == 0) {
    allow_device(false);
  }
}

void MemoryBook::allow_device(bool allowed) {
  for (const auto& [address, allocation] : allocations_) {
    if (has_own_pages(allocation)) {
      DevicePages::allow(allocation.base, allocation.base_bytes, allowed);
    }
  }
}

std::string MemoryBook::broken_fence() {
  if (kFence == 0) {
    return {};
  }
  const DeviceOpen open(*this);
  for (auto& [address, allocation] : allocations_) {
    if (allocation.space == Space::registered) {
      continue;
    }
    std::byte* begin = bytes_at(address);
    std::byte* end = begin + allocation.bytes;
    const size_t before = last_broken(begin);
    const size_t behind = first_broken(end);
    if (before == 0 && behind == kFence) {
      continue;
    }
    std::memset(begin - kFence, kPoison, kFence);
    std::memset(end, kPoison, kFence);
    return behind < kFence
               ? "byte " + std::to_string(allocation.bytes + behind) + " of " + text_of(allocation)
               : "byte " + std::to_string(before) + " before " + text_of(allocation);
  }
  return {};
}

std::string MemoryBook::describe(const void* pointer) const {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  const auto later = given_back_.upper_bound(address);
  if (later != given_back_.begin()) {
    const auto& [begin, allocation] = *std::prev(later);
    if (address < begin + allocation.base_bytes) {
      return text_of(allocation) + ", which was given back";
    }
  }
  const auto above = allocations_.upper_bound(address);
  if (above != allocations_.begin()) {
    const auto& [begin, allocation] = *std::prev(above);
    if (address < begin + allocation.bytes) {
      return "byte " + std::to_string(address - begin) + " of " + text_of(allocation);
    }
    if (address < begin + allocation.bytes + (size_t{1} << 20)) {
      return std::to_string(address - begin - allocation.bytes) + " bytes behind " +
             text_of(allocation);
    }
  }
  if (above != allocations_.end() && above->first - address < (size_t{1} << 20)) {
    return std::to_string(above->first - address) + " bytes before " + text_of(above->second);
  }
  return "memory that is not the device's";
}

std::string MemoryBook::open() const {
  std::string text;
  for (const auto& [address, allocation] : allocations_) {
    text += text_of(allocation) + "\n";
  }
  return text;
}

}  // namespace cudasim
