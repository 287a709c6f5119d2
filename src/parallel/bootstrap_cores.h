#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

namespace gradus {

/// CPUs (hardware threads, by the kernel's number), ascending.
using CpuSet = std::vector<int>;

/// What one rank runs on.
struct CoreShare {
  CpuSet cpus;          ///< to bind to: every hardware thread of its cores
  int threads = 1;      ///< computing threads: one a core
  bool shared = false;  ///< there are fewer CPUs than ranks, and others run on these too
};

/// Cuts up the CPUs among the ranks of one machine. Ranks that may run on the same set of CPUs
/// share it out by whole cores (both hardware threads of a core go to one rank; by hardware threads
/// where cores do not suffice), neighbours next to each other; a rank that its launcher has bound
/// by itself keeps what it has.
/// allowed: by local rank. core_of: CPU to a number that the hardware threads of one core share;
/// a CPU that is not listed is a core of its own.
CoreShare share_cores(std::span<const CpuSet> allowed, int local_rank,
                      const std::map<int, int>& core_of);

/// Of the sets that a launcher gave: "ranks 0 and 1 (CPUs 1)" for each two that are not the same
/// and yet have CPUs in common, which share_cores leaves them to; empty when there are none.
/// ranks: each set's, by its number in the job.
std::string overlaps_of(std::span<const CpuSet> allowed, std::span<const int> ranks);

/// CPUs that the calling thread may run on.
CpuSet affinity_of_thread();
/// Binds the calling thread, and threads it makes from now on. Throws IoError.
void set_affinity_of_thread(const CpuSet& cpus);
/// For share_cores, from /sys; empty where that is missing.
std::map<int, int> cores_of_machine(const CpuSet& cpus);

std::string to_string(const CpuSet& cpus);      ///< "0,1,4"
CpuSet parse_cpu_set(const std::string& text);  ///< of to_string's output

}  // namespace gradus
