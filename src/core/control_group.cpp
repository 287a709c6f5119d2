#include "core/control_group.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>

namespace gradus {
namespace {

/// The files of one version that tell a group's memory.
struct Version {
  const char* limit;
  const char* usage;
  const char* reclaimable;  ///< in memory.stat, with what the groups inside hold
};

constexpr Version kVersion1 = {"memory.limit_in_bytes", "memory.usage_in_bytes",
                               "total_inactive_file"};
constexpr Version kVersion2 = {"memory.max", "memory.current", "inactive_file"};

int64_t number_in(const std::filesystem::path& file) {
  std::ifstream in(file);
  int64_t value = -1;
  return in >> value ? value : -1;  // "max" is no number: no limit
}

/// The number behind `name` in memory.stat; 0 when there is none.
int64_t statistic(const std::filesystem::path& file, std::string_view name) {
  std::ifstream in(file);
  std::string key;
  int64_t value = 0;
  while (in >> key >> value) {
    if (key == name) return std::max<int64_t>(0, value);
  }
  return 0;
}

/// -1 where the group has no limit.
int64_t headroom_of(const std::filesystem::path& group, const Version& version) {
  const int64_t limit = number_in(group / version.limit);
  const int64_t usage = number_in(group / version.usage);
  if (limit < 0 || usage < 0) return -1;
  const int64_t bound =
      usage - std::min(usage, statistic(group / "memory.stat", version.reclaimable));
  return std::max<int64_t>(0, limit - bound);
}

int64_t smaller(int64_t a, int64_t b) {
  if (a < 0) return b;
  return b < 0 ? a : std::min(a, b);
}

/// From the group `path` to the root of `mount`. In a container `path` may be the machine's name
/// of a group of which `mount` shows the inside only: folders that do not exist set no limit.
int64_t least_headroom(const std::filesystem::path& mount, const std::string& path,
                       const Version& version) {
  // A group outside of the namespace is written with leading "..", which lead nowhere from "/".
  std::filesystem::path group = std::filesystem::path("/" + path).lexically_normal();
  int64_t least = -1;
  while (true) {
    least = smaller(least, headroom_of(mount / group.relative_path(), version));
    if (!group.has_relative_path()) return least;
    group = group.parent_path();
  }
}

bool lists(const std::string& controllers, std::string_view wanted) {
  std::istringstream in(controllers);
  for (std::string name; std::getline(in, name, ',');) {
    if (name == wanted) return true;
  }
  return false;
}

}  // namespace

int64_t control_group_headroom(const std::filesystem::path& root) {
  const std::filesystem::path mounts = root / "sys/fs/cgroup";
  int64_t least = -1;
  // A line is "number:controllers:path"; version 2 is number 0 and lists no controllers.
  std::ifstream groups(root / "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (controllers.empty()) {
      // Beside version 1, version 2 is mounted a folder deeper.
      for (const char* mount : {"", "unified"}) {
        least = smaller(least, least_headroom(mounts / mount, path, kVersion2));
      }
    } else if (lists(controllers, "memory")) {
      least = smaller(least, least_headroom(mounts / "memory", path, kVersion1));
    }
  }
  return least;
}

}  // namespace gradus
