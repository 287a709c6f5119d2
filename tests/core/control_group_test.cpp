#include "core/control_group.h"

#include <gtest/gtest.h>

#include <string>

#include "support/temp_dir.h"

namespace gradus {
namespace {

/// A root folder with the groups of a made-up machine.
class ControlGroup : public testing::Test {
 protected:
  void file(const std::string& path, const std::string& text) {
    const std::filesystem::path whole = root_ / path;
    std::filesystem::create_directories(whole.parent_path());
    test::write_file(whole, text);
  }
  void group2(const std::string& path, const std::string& limit, int64_t usage,
              const std::string& statistics) {
    file("sys/fs/cgroup/" + path + "/memory.max", limit + "\n");
    file("sys/fs/cgroup/" + path + "/memory.current", std::to_string(usage) + "\n");
    file("sys/fs/cgroup/" + path + "/memory.stat", statistics);
  }
  void group1(const std::string& path, int64_t limit, int64_t usage,
              const std::string& statistics) {
    file("sys/fs/cgroup/memory/" + path + "/memory.limit_in_bytes", std::to_string(limit));
    file("sys/fs/cgroup/memory/" + path + "/memory.usage_in_bytes", std::to_string(usage));
    file("sys/fs/cgroup/memory/" + path + "/memory.stat", statistics);
  }
  int64_t headroom() const { return control_group_headroom(root_.path()); }

  test::TempDir root_;
};

TEST_F(ControlGroup, NoGroupIsNoLimit) {
  EXPECT_EQ(headroom(), -1);
  file("proc/self/cgroup", "0::/\n");
  EXPECT_EQ(headroom(), -1);
  file("proc/self/cgroup", "0::/job\n");
  group2("job", "max", 500, "");
  EXPECT_EQ(headroom(), -1);
}

TEST_F(ControlGroup, DroppableFilePagesAreFree) {
  file("proc/self/cgroup", "0::/job\n");
  group2("job", "1000", 900, "anon 100\nfile 800\ninactive_anon 5\ninactive_file 700\n");
  EXPECT_EQ(headroom(), 800);
  // The counters are read one after another and may disagree for a moment.
  group2("job", "1000", 900, "inactive_file 950\n");
  EXPECT_EQ(headroom(), 1000);
  group2("job", "1000", 1200, "inactive_file 50\n");
  EXPECT_EQ(headroom(), 0);
  group2("job", "1000", 900, "");
  EXPECT_EQ(headroom(), 100);
}

TEST_F(ControlGroup, TheTightestOfAllThatContainItBinds) {
  file("proc/self/cgroup", "0::/user/job/step\n");
  group2("user/job/step", "max", 10, "");
  EXPECT_EQ(headroom(), -1);
  group2("user/job", "1000", 200, "inactive_file 50\n");
  EXPECT_EQ(headroom(), 850);
  group2("user", "600", 500, "inactive_file 0\n");
  EXPECT_EQ(headroom(), 100);
  group2("user/job/step", "70", 10, "");
  EXPECT_EQ(headroom(), 60);
  group2("user/other", "1", 1, "");
  group2("", "50", 1, "");  // the root of a namespace is a group as any other
  EXPECT_EQ(headroom(), 49);
}

TEST_F(ControlGroup, Version1) {
  file("proc/self/cgroup",
       "5:devices:/x\n4:cpu,memory,pids:/slice/job\n2:memory_of_others:/tight\n0::/\n");
  group1("tight", 1, 1, "");
  group1("slice/job", 9223372036854771712, 300, "inactive_file 1\ntotal_inactive_file 100\n");
  EXPECT_EQ(headroom(), 9223372036854771712 - 200);
  group1("slice", 1000, 300, "inactive_file 1\ntotal_inactive_file 100\n");
  EXPECT_EQ(headroom(), 800);
}

TEST_F(ControlGroup, InsideAContainerTheMountIsItsGroup) {
  file("proc/self/cgroup", "4:memory:/docker/0a1b2c\n0::/../elsewhere\n");
  group1("", 1000, 300, "total_inactive_file 100\n");
  EXPECT_EQ(headroom(), 800);
  // A folder of the machine beside the mount is none of its groups.
  group2("../outside", "1", 1, "");
  file("proc/self/cgroup", "0::/../outside\n");
  EXPECT_EQ(headroom(), -1);
}

// CPU time

class CpuQuotaOfGroups : public ControlGroup {
 protected:
  CpuQuota quota() const { return control_group_cpus(root_.path()); }
};

TEST_F(CpuQuotaOfGroups, NoGroupAndNoNumberIsNoLimit) {
  EXPECT_FALSE(quota().limited());
  file("proc/self/cgroup", "0::/job\n");
  EXPECT_FALSE(quota().limited());
  for (const char* text : {"max 100000\n", "", "0 100000\n", "150000\n", "-1 100000\n"}) {
    file("sys/fs/cgroup/job/cpu.max", text);
    EXPECT_FALSE(quota().limited()) << text;
  }
}

TEST_F(CpuQuotaOfGroups, TheSmallestOfAllThatContainItBinds) {
  file("proc/self/cgroup", "0::/user/job/step\n");
  file("sys/fs/cgroup/user/job/step/cpu.max", "max 100000\n");
  file("sys/fs/cgroup/user/job/cpu.max", "350000 100000\n");
  EXPECT_EQ(quota().cpus, 3.5);
  const uint64_t job = quota().group;
  EXPECT_NE(job, 0U);
  file("sys/fs/cgroup/user/cpu.max", "50000 25000\n");
  EXPECT_EQ(quota().cpus, 2.0);
  EXPECT_NE(quota().group, job);
  file("sys/fs/cgroup/user/job/step/cpu.max", "800000 100000\n");
  EXPECT_EQ(quota().cpus, 2.0);
  file("sys/fs/cgroup/user/other/cpu.max", "1000 100000\n");
  EXPECT_EQ(quota().cpus, 2.0);
}

TEST_F(CpuQuotaOfGroups, Version1) {
  file("proc/self/cgroup", "4:cpu,cpuacct:/slice/job\n2:cpuset:/tight\n0::/\n");
  file("sys/fs/cgroup/cpu/slice/job/cpu.cfs_quota_us", "-1\n");
  file("sys/fs/cgroup/cpu/slice/job/cpu.cfs_period_us", "100000\n");
  file("sys/fs/cgroup/cpu/tight/cpu.cfs_quota_us", "1\n");
  file("sys/fs/cgroup/cpu/tight/cpu.cfs_period_us", "100000\n");
  EXPECT_FALSE(quota().limited());
  file("sys/fs/cgroup/cpu/slice/cpu.cfs_quota_us", "250000\n");
  file("sys/fs/cgroup/cpu/slice/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(quota().cpus, 2.5);
}

TEST(CpuQuota, ThreadsAreTheNearestNumberOfEachShareAndAtLeastOne) {
  const auto threads = [](double cpus, int sharers) {
    return CpuQuota{.cpus = cpus}.threads(sharers);
  };
  EXPECT_EQ(threads(0.1, 1), 1);
  EXPECT_EQ(threads(1.4, 1), 1);
  EXPECT_EQ(threads(1.5, 1), 2);
  EXPECT_EQ(threads(4.0, 1), 4);
  EXPECT_EQ(threads(4.0, 2), 2);
  EXPECT_EQ(threads(4.0, 8), 1);
}

}  // namespace
}  // namespace gradus
