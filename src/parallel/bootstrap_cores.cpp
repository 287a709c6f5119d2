#include "parallel/bootstrap_cores.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>

#include "core/error.h"

namespace gradus {
namespace {

/// Consecutive items [begin, end) of `count` for part `index` of `parts`.
struct Part {
  size_t begin = 0, end = 0;
};
Part part_of(size_t count, size_t index, size_t parts) {
  return {count * index / parts, count * (index + 1) / parts};
}

}  // namespace

CoreShare share_cores(std::span<const CpuSet> allowed, int local_rank,
                      const std::map<int, int>& core_of) {
  const CpuSet& mine = allowed[static_cast<size_t>(local_rank)];
  size_t sharers = 0;
  size_t index = 0;
  for (size_t rank = 0; rank < allowed.size(); ++rank) {
    if (allowed[rank] != mine) continue;
    if (rank < static_cast<size_t>(local_rank)) ++index;
    ++sharers;
  }
  std::map<int, CpuSet> cores;
  for (const int cpu : mine) {
    const auto known = core_of.find(cpu);
    // Negative: not a number of core_of's.
    cores[known == core_of.end() ? -1 - cpu : known->second].push_back(cpu);
  }
  std::vector<CpuSet> in_order;
  for (auto& [number, cpus] : cores) in_order.push_back(std::move(cpus));
  std::ranges::sort(in_order);

  CoreShare share;
  if (in_order.size() >= sharers) {
    const auto [begin, end] = part_of(in_order.size(), index, sharers);
    for (size_t core = begin; core < end; ++core) {
      share.cpus.insert(share.cpus.end(), in_order[core].begin(), in_order[core].end());
    }
    share.threads = static_cast<int>(end - begin);
  } else if (mine.size() >= sharers) {
    CpuSet by_core;
    for (const CpuSet& cpus : in_order) by_core.insert(by_core.end(), cpus.begin(), cpus.end());
    const auto [begin, end] = part_of(by_core.size(), index, sharers);
    share.cpus.assign(by_core.begin() + static_cast<std::ptrdiff_t>(begin),
                      by_core.begin() + static_cast<std::ptrdiff_t>(end));
    share.threads = static_cast<int>(end - begin);
  } else {
    share.cpus = mine;
    share.shared = true;
  }
  std::ranges::sort(share.cpus);
  return share;
}

std::string overlaps_of(std::span<const CpuSet> allowed, std::span<const int> ranks) {
  constexpr size_t kMost = 4;  // named; more say no more
  std::vector<std::string> overlaps;
  for (size_t a = 0; a < allowed.size(); ++a) {
    for (size_t b = a + 1; b < allowed.size() && overlaps.size() < kMost; ++b) {
      if (allowed[a] == allowed[b]) continue;
      CpuSet common;
      std::ranges::set_intersection(allowed[a], allowed[b], std::back_inserter(common));
      if (common.empty()) continue;
      overlaps.push_back(
          fmt::format("ranks {} and {} (CPUs {})", ranks[a], ranks[b], to_string(common)));
    }
  }
  return fmt::format("{}", fmt::join(overlaps, ", "));
}

CpuSet affinity_of_thread() {
  // Twice the size until the kernel's mask fits: machines with more than 1024 CPUs exist.
  for (int cpus = CPU_SETSIZE; cpus <= (1 << 20); cpus *= 2) {
    cpu_set_t* set = CPU_ALLOC(cpus);
    const size_t bytes = CPU_ALLOC_SIZE(cpus);
    CPU_ZERO_S(bytes, set);
    const bool read = sched_getaffinity(0, bytes, set) == 0;
    CpuSet out;
    for (int cpu = 0; read && cpu < cpus; ++cpu) {
      if (CPU_ISSET_S(static_cast<size_t>(cpu), bytes, set)) out.push_back(cpu);
    }
    CPU_FREE(set);
    if (read) return out;
    if (errno != EINVAL) break;
  }
  throw IoError("the CPUs of this process cannot be read: {}", std::strerror(errno));
}

void set_affinity_of_thread(const CpuSet& cpus) {
  const int limit = cpus.empty() ? 1 : cpus.back() + 1;
  cpu_set_t* set = CPU_ALLOC(limit);
  const size_t bytes = CPU_ALLOC_SIZE(limit);
  CPU_ZERO_S(bytes, set);
  for (const int cpu : cpus) CPU_SET_S(static_cast<size_t>(cpu), bytes, set);
  const int code = sched_setaffinity(0, bytes, set);
  const int error = errno;
  CPU_FREE(set);
  if (code != 0) {
    throw IoError("this rank cannot be bound to CPUs {}: {}", to_string(cpus),
                  std::strerror(error));
  }
}

std::map<int, int> cores_of_machine(const CpuSet& cpus) {
  std::map<int, int> core_of;
  for (const int cpu : cpus) {
    // "3,67" or "6-7": the lowest of a core's hardware threads names the core.
    std::ifstream file(
        fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", cpu));
    int lowest = 0;
    if (file >> lowest) core_of[cpu] = lowest;
  }
  return core_of;
}

std::string to_string(const CpuSet& cpus) { return fmt::format("{}", fmt::join(cpus, ",")); }

CpuSet parse_cpu_set(const std::string& text) {
  CpuSet cpus;
  std::istringstream in(text);
  for (std::string item; std::getline(in, item, ',');) cpus.push_back(std::stoi(item));
  return cpus;
}

}  // namespace gradus
