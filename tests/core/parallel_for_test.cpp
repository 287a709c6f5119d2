#include "core/parallel_for.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace gradus {
namespace {

struct Range {
  int64_t begin = -1;
  int64_t end = -1;
  std::thread::id thread;

  bool operator==(const Range& other) const { return begin == other.begin && end == other.end; }
};

/// The range of each thread number; calls counts how often each was given one.
std::vector<Range> ranges_of(const Executor& x, int64_t count, int64_t grain,
                             std::vector<int>& calls) {
  std::vector<Range> ranges(static_cast<size_t>(x.threads()));
  calls.assign(static_cast<size_t>(x.threads()), 0);
  parallel_ranges(x, count, grain, [&](int64_t begin, int64_t end, int thread) {
    ranges.at(static_cast<size_t>(thread)) = {begin, end, std::this_thread::get_id()};
    ++calls[static_cast<size_t>(thread)];
  });
  return ranges;
}

constexpr int kThreads[] = {1, 2, 3, 7};
constexpr int64_t kCounts[] = {1, 2, 5, 31, 32, 33, 97, 1000, 4099};
constexpr int64_t kGrains[] = {1, 7, 16, 64, 5000};

TEST(ParallelRanges, CoverEveryElementOnceInOrderAndEvenly) {
  for (const int threads : kThreads) {
    const Executor x(Device::cpu, threads);
    for (const int64_t count : kCounts) {
      for (const int64_t grain : kGrains) {
        SCOPED_TRACE(testing::Message() << threads << " threads, " << count << " by " << grain);
        std::vector<int> calls;
        const auto ranges = ranges_of(x, count, grain, calls);
        const int64_t chunks = (count + grain - 1) / grain;
        const auto team = static_cast<size_t>(std::min<int64_t>(threads, chunks));
        int64_t at = 0;
        for (size_t i = 0; i < team; ++i) {
          ASSERT_EQ(calls[i], 1);
          ASSERT_EQ(ranges[i].begin, at);
          ASSERT_GT(ranges[i].end, ranges[i].begin) << "an empty range";
          ASSERT_EQ(ranges[i].begin % grain, 0);
          // No thread has a chunk more than its even share.
          const auto most = (chunks + static_cast<int64_t>(team) - 1) / static_cast<int64_t>(team);
          ASSERT_LE(ranges[i].end - ranges[i].begin, most * grain);
          at = ranges[i].end;
        }
        ASSERT_EQ(at, count);
        for (size_t i = team; i < calls.size(); ++i) ASSERT_EQ(calls[i], 0);
      }
    }
  }
}

TEST(ParallelRanges, AreTheSameFromCallToCall) {
  const Executor x(Device::cpu, 3);
  std::vector<int> calls;
  const auto first = ranges_of(x, 4099, 16, calls);
  for (int i = 0; i < 20; ++i) EXPECT_EQ(ranges_of(x, 4099, 16, calls), first);
}

TEST(ParallelRanges, NothingToDoCallsNobody) {
  const Executor x(Device::cpu, 2);
  parallel_ranges(x, 0, 4, [](int64_t, int64_t, int) { ADD_FAILURE(); });
}

TEST(ParallelRanges, OneRangeRunsOnTheCallingThread) {
  const Executor x(Device::cpu, 4);
  std::vector<int> calls;
  EXPECT_EQ(ranges_of(x, 10, 10, calls)[0].thread, std::this_thread::get_id());
}

TEST(ParallelRanges, EveryThreadNumberIsAThread) {
  const Executor x(Device::cpu, 2);
  std::vector<int> calls;
  const auto ranges = ranges_of(x, 2, 1, calls);
  EXPECT_NE(ranges[0].thread, ranges[1].thread);
}

TEST(ParallelFor, VisitsEveryElementOnce) {
  for (const int threads : kThreads) {
    const Executor x(Device::cpu, threads);
    for (const int64_t count : kCounts) {
      std::vector<int> visits(static_cast<size_t>(count), 0);
      parallel_for(x, count, 3, [&](int64_t i) { ++visits.at(static_cast<size_t>(i)); });
      EXPECT_EQ(visits, std::vector<int>(static_cast<size_t>(count), 1));
    }
  }
}

}  // namespace
}  // namespace gradus
