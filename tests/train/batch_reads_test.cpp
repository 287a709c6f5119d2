// What one rank cannot read, or reads differently, is known to all before anything is computed.

#include "train/batch_reads.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/cross_entropy.h"
#include "mpi_job.h"
#include "parallel/mesh.h"
#include "support/temp_dir.h"

namespace gradus {
namespace {

using testing::HasSubstr;

constexpr int64_t kContext = 5;

class BatchReadsTest : public testing::Test {
 protected:
  static int rank() { return test::job().rank(); }
  static int size() { return test::job().size(); }

  /// This rank's own file, of 0, 1, 2, … and one other token behind the first windows at need.
  Loader loader(bool other_token = false) const {
    std::vector<int32_t> tokens(100);
    std::iota(tokens.begin(), tokens.end(), 0);
    if (other_token) tokens[50] = 7;
    TokenShardWriter writer(path_, 100, 1);
    writer.append(tokens);
    writer.publish();
    return Loader({.paths = {path_}, .context = kContext, .order = SampleOrder::kSequential});
  }

  void read(BatchReads& reads, const Loader& loader, int64_t first_sample) {
    reads.read(loader, first_sample, inputs_, targets_);
  }

  /// The error of agree(), which all ranks have alike; empty: none.
  std::string refusal(BatchReads& reads) {
    try {
      EXPECT_EQ(reads.agree(x_, 10), 10 * mesh_.dp().size());
    } catch (const UnusableBatch& error) {
      return error.what();
    }
    return "";
  }

  test::TempDir dir_;
  std::filesystem::path path_ = dir_ / "train.bin";
  Executor x_{Device::cpu, 1};
  // Two ranks are one replica, four are two.
  Mesh mesh_{test::job(), size() == 4 ? MeshShape{.dp = 2, .tp = 2} : MeshShape{.pp = size()}};
  Parallelism parallel_{mesh_, {}};
  std::vector<int32_t> inputs_ = std::vector<int32_t>(2 * kContext);
  std::vector<int32_t> targets_ = std::vector<int32_t>(2 * kContext);
};

TEST_F(BatchReadsTest, TargetsAreAddedOverReplicasAlone) {
  BatchReads reads(parallel_);
  EXPECT_EQ(reads.agree(x_, 3 + mesh_.dp().rank()), mesh_.dp().size() == 2 ? 7 : 3);
  const Loader data = loader();
  for (int64_t sample = 0; sample < 16; sample += 2) {
    read(reads, data, sample);
    read(reads, data, sample + mesh_.dp().rank());  // replicas may differ
    EXPECT_EQ(refusal(reads), "");
  }
  EXPECT_EQ(targets_.front(), inputs_.front() + 1);
}

TEST_F(BatchReadsTest, WhatOneRankCannotReadIsTheSameErrorOnAll) {
  BatchReads reads(parallel_);
  const Loader data = loader();
  const int broken = size() - 1;
  if (rank() == broken) std::filesystem::resize_file(path_, 100);
  read(reads, data, 0);
  read(reads, data, 10);
  if (rank() == broken) {
    EXPECT_THAT(targets_, testing::Each(kIgnoredTarget));
    EXPECT_THAT(inputs_, testing::Each(0));
  }
  const std::string error = refusal(reads);
  EXPECT_THAT(error, HasSubstr("100 bytes, and 264 when it was opened"));
  EXPECT_THAT(error, HasSubstr(size() > 1 ? "rank " + std::to_string(broken) + ": " : ""));
}

TEST_F(BatchReadsTest, OtherTokensOnOneRankOfAReplicaAreNamed) {
  if (size() == 1) return;  // has nobody to differ from
  for (int different = 0; different < size(); ++different) {
    BatchReads reads(parallel_);
    const Loader data = loader(rank() == different);
    read(reads, data, 0);
    EXPECT_EQ(refusal(reads), "") << "the first windows are the same";
    read(reads, data, 9);
    read(reads, data, 0);
    const int first = different / 2 * 2;
    EXPECT_THAT(refusal(reads), HasSubstr(fmt::format("rank {} reads other tokens than rank {},",
                                                      first + 1, first)));
  }
}

}  // namespace
}  // namespace gradus
