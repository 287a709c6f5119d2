#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <thread>

#include "parallel/bootstrap_cores.h"

namespace gradus {
namespace {

CpuSet range(int begin, int end) {
  CpuSet cpus(static_cast<size_t>(end - begin));
  std::iota(cpus.begin(), cpus.end(), begin);
  return cpus;
}

TEST(Cores, RanksWithOneMaskShareItOutWithoutOverlap) {
  for (const int ranks : {1, 2, 3, 4, 7, 8}) {
    const std::vector<CpuSet> allowed(static_cast<size_t>(ranks), range(4, 12));
    std::multiset<int> given;
    for (int rank = 0; rank < ranks; ++rank) {
      const CoreShare share = share_cores(allowed, rank, {});
      EXPECT_FALSE(share.shared);
      EXPECT_EQ(share.threads, static_cast<int>(share.cpus.size()));
      EXPECT_GE(share.threads, 8 / ranks);
      given.insert(share.cpus.begin(), share.cpus.end());
    }
    EXPECT_TRUE(std::ranges::equal(given, range(4, 12))) << ranks;
  }
}

TEST(Cores, HardwareThreadsOfACoreStayTogether) {
  // Four cores; CPU i and i + 4 are one core, as Linux usually numbers them.
  std::map<int, int> core_of;
  for (int cpu = 0; cpu < 8; ++cpu) core_of[cpu] = cpu % 4;
  const std::vector<CpuSet> two(2, range(0, 8));
  EXPECT_EQ(share_cores(two, 0, core_of).cpus, (CpuSet{0, 1, 4, 5}));
  EXPECT_EQ(share_cores(two, 1, core_of).cpus, (CpuSet{2, 3, 6, 7}));
  EXPECT_EQ(share_cores(two, 1, core_of).threads, 2);
  // More ranks than cores, but not than hardware threads.
  const std::vector<CpuSet> six(6, range(0, 8));
  std::multiset<int> given;
  for (int rank = 0; rank < 6; ++rank) {
    const CoreShare share = share_cores(six, rank, core_of);
    EXPECT_FALSE(share.shared);
    given.insert(share.cpus.begin(), share.cpus.end());
  }
  EXPECT_TRUE(std::ranges::equal(given, range(0, 8)));
}

TEST(Cores, ALaunchersOwnBindingIsKept) {
  const std::vector<CpuSet> allowed = {{0, 1}, {2, 3}, {0, 1}, {5}};
  EXPECT_EQ(share_cores(allowed, 0, {}).cpus, (CpuSet{0}));
  EXPECT_EQ(share_cores(allowed, 1, {}).cpus, (CpuSet{2, 3}));
  EXPECT_EQ(share_cores(allowed, 2, {}).cpus, (CpuSet{1}));
  EXPECT_EQ(share_cores(allowed, 3, {}).cpus, (CpuSet{5}));
}

TEST(Cores, MoreRanksThanCpusShareThemWithOneThreadEach) {
  const std::vector<CpuSet> allowed(3, range(0, 2));
  for (int rank = 0; rank < 3; ++rank) {
    const CoreShare share = share_cores(allowed, rank, {});
    EXPECT_TRUE(share.shared);
    EXPECT_EQ(share.threads, 1);
    EXPECT_EQ(share.cpus, range(0, 2));
  }
}

TEST(Cores, AffinityIsReadAndSet) {
  const CpuSet all = affinity_of_thread();
  ASSERT_FALSE(all.empty());
  EXPECT_EQ(parse_cpu_set(to_string(all)), all);
  EXPECT_EQ(cores_of_machine(all).size() % all.size(), 0u);
  std::thread([&] {
    set_affinity_of_thread({all.back()});
    EXPECT_EQ(affinity_of_thread(), CpuSet{all.back()});
  }).join();
  EXPECT_EQ(affinity_of_thread(), all);
}

TEST(Cores, SetsThatOverlapAreSaid) {
  const std::vector<int> in_order = {0, 1, 2};
  const std::vector<int> cyclic = {1, 4, 7};  // of the second of three machines
  EXPECT_EQ(overlaps_of(std::vector<CpuSet>{{0, 1}, {0, 1}, {2}}, in_order), "");
  EXPECT_EQ(overlaps_of(std::vector<CpuSet>{{0, 1}, {1, 2}, {3}}, cyclic),
            "ranks 1 and 4 (CPUs 1)");
  EXPECT_EQ(overlaps_of(std::vector<CpuSet>{{0, 1, 2}, {1, 2}, {2}}, in_order),
            "ranks 0 and 1 (CPUs 1,2), ranks 0 and 2 (CPUs 2), ranks 1 and 2 (CPUs 2)");
}

}  // namespace
}  // namespace gradus
