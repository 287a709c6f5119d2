#include "core/thread_team.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <atomic>
#include <vector>

#include "core/parallel_for.h"
#include "support/thread_teams.h"

namespace gradus {
namespace {

using testing::HasSubstr;

TEST(ThreadTeam, EveryRangeIsDoneOnceWhateverTeamThereIs) {
  for (const int threads : {2, 3, 7}) {
    const Executor x(Device::cpu, threads);
    std::vector<std::pair<int64_t, int64_t>> first;
    test::for_each_team([&] {
      std::vector<std::pair<int64_t, int64_t>> ranges(static_cast<size_t>(threads));
      std::vector<std::atomic<int>> calls(static_cast<size_t>(threads));
      parallel_ranges(x, 4099, 16, [&](int64_t begin, int64_t end, int part) {
        ranges[static_cast<size_t>(part)] = {begin, end};
        ++calls[static_cast<size_t>(part)];
      });
      for (const std::atomic<int>& count : calls) EXPECT_EQ(count, 1);
      if (first.empty()) first = ranges;
      EXPECT_EQ(ranges, first);
    });
  }
}

TEST(ThreadTeam, WhatCannotBeHadIsSaidWithTheSettingThatLimitsIt) {
  EXPECT_EQ(obtainable_threads(1), 1);
  EXPECT_EQ(obtainable_threads(3), 3);
  EXPECT_EQ(thread_shortage(3), "");
  EXPECT_EQ(thread_shortage(1), "");
  const int levels = omp_get_max_active_levels();
  omp_set_max_active_levels(0);
  EXPECT_EQ(obtainable_threads(3), 1);
  EXPECT_EQ(thread_shortage(1), "");
  EXPECT_THAT(thread_shortage(3), HasSubstr("3 threads were asked for and OpenMP gives 1 "
                                            "(OMP_MAX_ACTIVE_LEVELS is 0)"));
  omp_set_max_active_levels(levels);
}

}  // namespace
}  // namespace gradus
