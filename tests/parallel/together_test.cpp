#include "parallel/together.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "core/error.h"
#include "mpi_job.h"
#include "parallel/mesh.h"

namespace gradus {
namespace {

using testing::EndsWith;
using testing::StartsWith;

/// What this rank is told when the ranks from `first` on cannot do their part; empty: nothing.
std::string told(Executor& x, Communicator& world, int first, const std::string& reason) {
  try {
    together(x, world, [&] {
      if (world.rank() >= first) throw IoError("{} of rank {}", reason, world.rank());
    });
  } catch (const IoError& error) {
    return error.what();
  }
  return "";
}

TEST(Together, WhatOneRankCannotDoIsTheSameErrorOnAll) {
  Mesh mesh(test::job(), {.dp = test::job().size()});
  Executor x(Device::cpu, 1);
  const int size = test::job().size();
  EXPECT_EQ(told(x, mesh.world(), size, ""), "");
  for (int first = 0; first < size; ++first) {
    EXPECT_EQ(told(x, mesh.world(), first, "file: full disk"),
              fmt::format("rank {0}: file: full disk of rank {0}", first));
  }
  EXPECT_EQ(told(x, mesh.world(), size, ""), "") << "and the ranks are still in step";
}

TEST(Together, ALongMessageIsCutAndNotRefused) {
  Mesh mesh(test::job(), {.dp = test::job().size()});
  Executor x(Device::cpu, 1);
  const std::string message = told(x, mesh.world(), 0, std::string(5000, 'x'));
  EXPECT_THAT(message, StartsWith("rank 0: xxx"));
  EXPECT_THAT(message, EndsWith("xxx"));
}

TEST(Together, AnotherErrorStaysOnItsRank) {
  if (test::job().size() > 1) return;  // it ends the job there: parallel.failure.throw
  Mesh mesh(test::job(), {.dp = 1});
  Executor x(Device::cpu, 1);
  EXPECT_THROW(together(x, mesh.world(), [] { throw CheckpointError("other"); }), CheckpointError);
}

}  // namespace
}  // namespace gradus
