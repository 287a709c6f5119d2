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

}  // namespace gradus
