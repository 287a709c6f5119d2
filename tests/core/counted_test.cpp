#include "core/counted.h"

#include <gtest/gtest.h>

namespace gradus {
namespace {

TEST(Counted, OneIsSingular) {
  EXPECT_EQ(counted(1, "thread"), "1 thread");
  EXPECT_EQ(counted(0, "thread"), "0 threads");
  EXPECT_EQ(counted(2, "thread"), "2 threads");
  EXPECT_EQ(counted(1, "micro-batch"), "1 micro-batch");
  EXPECT_EQ(counted(12, "micro-batch"), "12 micro-batches");
  EXPECT_EQ(counted(-1, "step"), "-1 steps");
}

TEST(Counted, PluralIsTheNounAlone) {
  EXPECT_EQ(plural(1, "rank"), "rank");
  EXPECT_EQ(plural(2, "rank"), "ranks");
  EXPECT_EQ(plural(3, "batch"), "batches");
}

}  // namespace
}  // namespace gradus
