#pragma once

#include <cstdint>
#include <filesystem>

namespace gradus {

/// Bytes that the control groups of this process still grant it: the least over its group and all
/// that contain it, each of whose limits binds. Pages of files that the kernel would drop first
/// (inactive_file of memory.stat) count as free, although they are charged to the group: reading a
/// corpus fills them up to the limit. -1 when no limit is known.
///
/// Reads versions 2 and 1 (Linux, admin-guide/cgroup-v2 and cgroup-v1/memory) as they are mounted
/// by convention: proc/self/cgroup and sys/fs/cgroup under `root`, which is "/" but for tests.
int64_t control_group_headroom(const std::filesystem::path& root);

/// CPU time that control groups grant a process, whatever CPUs it may run on.
struct CpuQuota {
  double cpus = 0.0;   ///< CPU seconds a second; 0: no limit
  uint64_t group = 0;  ///< the group that limits; processes of a machine that share it agree

  bool limited() const { return cpus > 0.0; }
  /// Computing threads for each of `sharers` processes: the nearest number, at least one. More
  /// would be stopped for a part of every period while the others wait for them.
  int threads(int sharers) const;
};

/// The smallest quota of this process's groups: cpu.max of version 2, cpu.cfs_quota_us and
/// cpu.cfs_period_us of version 1, found as above.
CpuQuota control_group_cpus(const std::filesystem::path& root);

}  // namespace gradus
