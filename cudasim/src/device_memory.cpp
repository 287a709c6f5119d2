#include "device_memory.h"

#include <sys/mman.h>
#include <unistd.h>

namespace cudasim {
namespace {

/// Address space, which costs nothing until it is used.
constexpr size_t kReserved = size_t{1} << 42;

struct Reserve {
  std::byte* begin = nullptr;
  size_t used = 0;
};

Reserve& reserve() {
  static Reserve instance = [] {
    void* begin =
        mmap(nullptr, kReserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return Reserve{begin == MAP_FAILED ? nullptr : static_cast<std::byte*>(begin), 0};
  }();
  return instance;
}

size_t page_bytes() {
  static const auto bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace

size_t DevicePages::round_up(size_t bytes) {
  return (bytes + page_bytes() - 1) / page_bytes() * page_bytes();
}

std::byte* DevicePages::allocate(size_t bytes) {
  Reserve& all = reserve();
  const size_t needed = page_bytes() + round_up(bytes);
  if (all.begin == nullptr || needed + page_bytes() > kReserved - all.used) {
    return nullptr;
  }
  std::byte* pages = all.begin + all.used + page_bytes();
  all.used += needed;
  allow(pages, bytes, true);
  return pages;
}

void DevicePages::release(std::byte* pages, size_t bytes) {
  madvise(pages, round_up(bytes), MADV_DONTNEED);
  allow(pages, bytes, false);
}

void DevicePages::allow(std::byte* pages, size_t bytes, bool allowed) {
  mprotect(pages, round_up(bytes), allowed ? PROT_READ | PROT_WRITE : PROT_NONE);
}

bool DevicePages::hold(const void* address) {
  const Reserve& all = reserve();
  const auto at = reinterpret_cast<uintptr_t>(address);
  const auto begin = reinterpret_cast<uintptr_t>(all.begin);
  return all.begin != nullptr && at >= begin && at < begin + all.used + page_bytes();
}

}  // namespace cudasim
