#include "core/control_group.h"

#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
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

using VisitGroup = std::function<void(const std::filesystem::path& folder)>;

/// From the group `path` to the root of `mount`. In a container `path` may be the machine's name
/// of a group of which `mount` shows the inside only: folders that do not exist set no limit.
void visit_upwards(const std::filesystem::path& mount, const std::string& path,
                   const VisitGroup& visit) {
  // A group outside of the namespace is written with leading "..", which lead nowhere from "/".
  std::filesystem::path group = std::filesystem::path("/" + path).lexically_normal();
  while (true) {
    visit(mount / group.relative_path());
    if (!group.has_relative_path()) return;
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

/// The groups of this process that may limit what `controller` counts, innermost first.
void visit_groups(const std::filesystem::path& root, const std::string& controller,
                  const VisitGroup& version1, const VisitGroup& version2) {
  const std::filesystem::path mounts = root / "sys/fs/cgroup";
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
      for (const char* mount : {"", "unified"}) visit_upwards(mounts / mount, path, version2);
    } else if (lists(controllers, controller)) {
      visit_upwards(mounts / controller, path, version1);
    }
  }
}

uint64_t identity_of(const std::filesystem::path& folder) {
  struct stat status {};
  return stat(folder.c_str(), &status) == 0 ? status.st_ino : 0;
}

/// CPU microseconds in each `period`; a quota that is no number of 1 or more is no limit.
void limit_cpus(CpuQuota& least, const std::filesystem::path& folder, int64_t quota,
                int64_t period) {
  if (quota <= 0 || period <= 0) return;
  const double cpus = static_cast<double>(quota) / static_cast<double>(period);
  if (least.limited() && least.cpus <= cpus) return;
  least = {.cpus = cpus, .group = identity_of(folder)};
}

}  // namespace

int64_t control_group_headroom(const std::filesystem::path& root) {
  int64_t least = -1;
  const auto limit_by = [&least](const Version& version) {
    return [&least, &version](const std::filesystem::path& folder) {
      least = smaller(least, headroom_of(folder, version));
    };
  };
  visit_groups(root, "memory", limit_by(kVersion1), limit_by(kVersion2));
  return least;
}

CpuQuota control_group_cpus(const std::filesystem::path& root) {
  CpuQuota least;
  visit_groups(
      root, "cpu",
      [&](const std::filesystem::path& folder) {
        limit_cpus(least, folder, number_in(folder / "cpu.cfs_quota_us"),
                   number_in(folder / "cpu.cfs_period_us"));
      },
      [&](const std::filesystem::path& folder) {
        std::ifstream in(folder / "cpu.max");  // "150000 100000", "max 100000"
        int64_t quota = 0;
        int64_t period = 0;
        if (in >> quota >> period) limit_cpus(least, folder, quota, period);
      });
  return least;
}

int CpuQuota::threads(int sharers) const {
  return std::max(1, static_cast<int>(std::min(std::round(cpus / sharers), 1e6)));
}

}  // namespace gradus
