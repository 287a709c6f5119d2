#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <string>

#include "core/arena.h"
#include "core/control_group.h"
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

}  // namespace

int64_t available_memory() {
  const int64_t machine = field_in_kib("/proc/meminfo", "MemAvailable:");
  const int64_t group = control_group_headroom("/");
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
