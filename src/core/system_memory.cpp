#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <string>

#include "core/arena.h"
#include "core/error.h"

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

int64_t number_in(const char* file) {
  std::ifstream in(file);
  int64_t value = -1;
  return in >> value ? value : -1;  // "max" is no number: no limit
}

/// What the control group of this process still grants (version 2, then version 1); -1: no limit
/// known.
int64_t control_group_headroom() {
  for (const auto& [limit_file, usage_file] :
       {std::pair{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
        std::pair{"/sys/fs/cgroup/memory/memory.limit_in_bytes",
                  "/sys/fs/cgroup/memory/memory.usage_in_bytes"}}) {
    const int64_t limit = number_in(limit_file);
    const int64_t usage = number_in(usage_file);
    if (limit >= 0 && usage >= 0) return std::max<int64_t>(0, limit - usage);
  }
  return -1;
}

}  // namespace

int64_t available_memory() {
  const int64_t machine = field_in_kib("/proc/meminfo", "MemAvailable:");
  const int64_t group = control_group_headroom();
  if (machine < 0) return group;
  return group < 0 ? machine : std::min(machine, group);
}

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
