#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

#include "core/arena.h"
#include "core/control_group.h"
#include "core/error.h"
#include "core/memory_limit.h"

namespace gradus {
namespace {

/// The number of a "Name:  123 kB" line, in bytes; -1 when there is none.
int64_t field_in_kib(const char* file, const std::string& name) {
  std::ifstream in(file);
  std::string word;
  while (in >> word) {
    if (word == name) {
      int64_t kib = -1;
      in >> kib;
      return kib < 0 ? -1 : kib * 1024;
    }
  }
  return -1;
}

/// Of a resource limit, what `used` in /proc/self/status leaves; -1 without a limit.
int64_t headroom(decltype(RLIMIT_AS) resource, const char* used) {
  rlimit limit{};
  if (::getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return -1;
  const auto bytes =
      static_cast<int64_t>(std::min<rlim_t>(limit.rlim_cur, std::numeric_limits<int64_t>::max()));
  return std::max<int64_t>(0,
                           bytes - std::max<int64_t>(0, field_in_kib("/proc/self/status", used)));
}

}  // namespace

MemoryLimit least(const MemoryLimit& a, const MemoryLimit& b) {
  if (a.bytes < 0) return b;
  return b.bytes < 0 || a.bytes <= b.bytes ? a : b;
}

MemoryLimit shared_memory_limit() {
  return least({field_in_kib("/proc/meminfo", "MemAvailable:"), "this machine's free memory"},
               {control_group_headroom("/"), "the limit of the control group (container, job)"});
}

MemoryLimit process_memory_limit() {
  return least({headroom(RLIMIT_AS, "VmSize:"), "the limit of address space (ulimit -v)"},
               {headroom(RLIMIT_DATA, "VmData:"), "the limit of data (ulimit -d)"});
}

int64_t available_memory() { return least(shared_memory_limit(), process_memory_limit()).bytes; }

int64_t resident_memory() { return field_in_kib("/proc/self/status", "VmRSS:"); }

int64_t peak_resident_memory() { return field_in_kib("/proc/self/status", "VmHWM:"); }

std::string format_bytes(int64_t bytes) {
  if (bytes < 1024) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes);
  const char* unit = "B";
  for (const char* larger : {"KiB", "MiB", "GiB", "TiB"}) {
    if (value < 1024.0) break;
    value /= 1024.0;
    unit = larger;
  }
  return fmt::format("{:.2f} {}", value, unit);
}

}  // namespace gradus
