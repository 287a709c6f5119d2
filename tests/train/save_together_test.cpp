// Ranks that write one checkpoint, each through a cache of pages that it writes back whole and
// late: what is read back is what they had, and what is not is found out.

#include "train/save_together.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <random>
#include <string>
#include <vector>

#include "../checkpoint/example_checkpoint.h"
#include "../checkpoint/random_bytes.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/checkpoint_folder.h"
#include "client_cache.h"
#include "core/error.h"
#include "mpi_job.h"
#include "parallel/mesh.h"
#include "support/temp_dir.h"

namespace gradus {
namespace {

using test::ClientCache;
using test::RandomBytes;
using testing::AllOf;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr int64_t kPageBytes = 4096;

/// Tensors that all ranks know, cut over them by rows, by columns, and by ranges that end anywhere.
class Tensors {
 public:
  explicit Tensors(int64_t ranks)
      : rows_(rng_, {12 * ranks, 131}, DType::fp32),
        columns_(rng_, {200, 7 * ranks}, DType::fp64),
        flat_(rng_, {101, 103}, DType::bf16),
        of_one_(rng_, {17, 19}, DType::i32) {}

  std::vector<NamedTensor> of(int64_t rank, int64_t ranks) {
    const int64_t numel = 101 * 103;
    const int64_t begin = numel * rank / ranks;
    const int64_t count = numel * (rank + 1) / ranks - begin;
    std::vector<NamedTensor> tensors = {{"flat", DType::bf16, {101, 103}, {}},
                                        {"rows", DType::fp32, {12 * ranks, 131}, {}},
                                        {"columns", DType::fp64, {200, 7 * ranks}, {}},
                                        {"of_one", DType::i32, {17, 19}, {}},
                                        {"empty", DType::fp32, {0, 3}, {}}};
    const Tensor flat = flat_.tensor().reshape({-1});
    tensors[0].pieces = {ConstTensorPiece::range(begin, flat.slice(0, begin, count))};
    tensors[1].pieces = {
        ConstTensorPiece::box({12 * rank, 0}, rows_.tensor().slice(0, 12 * rank, 12))};
    tensors[2].pieces = {
        ConstTensorPiece::box({0, 7 * rank}, columns_.tensor().slice(1, 7 * rank, 7))};
    if (rank == ranks - 1) tensors[3].pieces = {ConstTensorPiece::whole(of_one_.tensor())};
    return tensors;
  }

  void expect_in(const SafetensorsFile& file) const {
    const auto expect = [&](const char* name, const RandomBytes& expected) {
      const auto bytes = file.bytes(*file.find(name));
      EXPECT_EQ(std::vector<std::byte>(bytes.begin(), bytes.end()), expected.bytes()) << name;
    };
    expect("rows", rows_);
    expect("columns", columns_);
    expect("flat", flat_);
    expect("of_one", of_one_);
  }

 private:
  std::mt19937_64 rng_{42};  // the same on all ranks
  RandomBytes rows_;
  RandomBytes columns_;
  RandomBytes flat_;
  RandomBytes of_one_;
};

class SaveTogether : public testing::Test {
 protected:
  SaveTogether() {
    std::string text = own_.path().string();
    text.resize(4096);
    world().broadcast(x_, Tensor(text.data(), DType::u8, Device::cpu, {4096}), 0).wait(x_);
    run_ = text.c_str();
  }
  void TearDown() override { world().barrier(x_).wait(x_); }  // before the first's folder goes

  Communicator& world() { return mesh_.world(); }
  int rank() { return world().rank(); }
  int ranks() { return world().size(); }
  std::filesystem::path checkpoints() const { return run_ / kCheckpointsName; }

  SaveResult save(int64_t step, int64_t block_bytes = kPageBytes) {
    CheckpointContents contents;
    contents.step = step;
    contents.state = {{"samples", 3}};
    contents.files = {{"config.yaml", "seed: 1\n"}};
    contents.model = tensors_.of(rank(), ranks());
    contents.optimizer = tensors_.of(rank(), ranks());
    return save_together(run_, contents, 3, x_, world(), block_bytes);
  }

  /// What saving throws, by rank.
  std::vector<std::string> errors_of_saving(int64_t step, int64_t block_bytes = kPageBytes) {
    std::string error;
    try {
      save(step, block_bytes);
    } catch (const Error& caught) {
      error = fmt::format("{}: {}", caught.kind(), caught.what());
    }
    return test::job().exchange(error);
  }

  int64_t size_of_model() { return SafetensorsLayout("", tensors_.of(rank(), ranks())).size(); }

  void expect_only_step_1() {
    EXPECT_THAT(test::names_in(checkpoints()), ElementsAre(step_folder_name(1)));
    world().barrier(x_).wait(x_);  // before the first rank makes the next folder
  }

  void expect_whole(int64_t step) {
    const Checkpoint checkpoint = Checkpoint::open(checkpoints() / step_folder_name(step));
    tensors_.expect_in(checkpoint.model());
    tensors_.expect_in(*checkpoint.optimizer());
  }

  Executor x_{Device::cpu, 1};
  Mesh mesh_{test::job(), {.dp = test::job().size()}};
  test::TempDir own_;
  std::filesystem::path run_;
  Tensors tensors_{test::job().size()};
};

TEST_F(SaveTogether, WhatIsReadIsWhatRanksHadThoughPagesAreWrittenBackWhole) {
  // From a block for each page up to one for the whole file, which one rank then writes.
  for (const int64_t block_bytes : {kPageBytes, 4 * kPageBytes, kBlockBytes}) {
    {
      const ClientCache cache;
      const SaveResult result = save(7, block_bytes);
      EXPECT_EQ(result.path.empty(), rank() != 0);
    }
    expect_whole(7);
    world().barrier(x_).wait(x_);
  }
}

TEST_F(SaveTogether, OneRankAloneWritesTheSameBytes) {
  save(1);
  std::vector<NamedTensor> whole;
  for (int r = 0; r < ranks(); ++r) {
    const std::vector<NamedTensor> part = tensors_.of(r, ranks());
    if (whole.empty()) whole = part;
    for (size_t t = 0; r > 0 && t < part.size(); ++t) {
      whole[t].pieces.insert(whole[t].pieces.end(), part[t].pieces.begin(), part[t].pieces.end());
    }
  }
  write_safetensors(own_ / "alone", whole);
  EXPECT_EQ(test::read_file(checkpoints() / step_folder_name(1) / kModelFile),
            test::read_file(own_ / "alone"));
}

/// Blocks that end within pages are what this way of writing is there to avoid.
TEST_F(SaveTogether, APageOfTwoRanksIsTornAndFoundByChecksumsFromMemory) {
  if (ranks() == 1) return;  // nobody to share a page with
  save(1);
  const ClientCache cache;
  EXPECT_THAT(errors_of_saving(2, kPageBytes / 2 + 100),
              Each(AllOf(HasSubstr("i/o error: rank 0: "), HasSubstr(kModelFile),
                         HasSubstr("right after it was written"))));
  expect_only_step_1();
  expect_whole(1);
}

TEST_F(SaveTogether, ABitThatFlipsOnTheWayToTheDiskIsFound) {
  save(1);
  for (int culprit = 0; culprit < ranks(); ++culprit) {
    ClientCache::Faults faults;
    // Behind the zeros with which the first rank claims the file's bytes.
    const int64_t claimed = culprit > 0 ? 0 : blocks_of(size_of_model(), kPageBytes);
    if (rank() == culprit) faults.flip = claimed + 1;
    const ClientCache cache(faults);
    EXPECT_THAT(errors_of_saving(2), Each(HasSubstr("right after it was written"))) << culprit;
    expect_only_step_1();
  }
}

TEST_F(SaveTogether, WhereOneRankFailsAllSayWhyAndNothingIsLeft) {
  save(1);
  const ClientCache::Faults kinds[] = {{.full = 0}, {.full = 2}, {.fsync_fails = true}};
  for (int culprit = 0; culprit < ranks(); ++culprit) {
    for (const ClientCache::Faults& faults : kinds) {
      const ClientCache cache(rank() == culprit ? faults : ClientCache::Faults{});
      EXPECT_THAT(
          errors_of_saving(2),
          Each(AllOf(HasSubstr(fmt::format("i/o error: rank {}: ", culprit)), HasSubstr(kModelFile),
                     HasSubstr(faults.full ? "No space left" : "Input/output error"))));
      expect_only_step_1();
    }
  }
  save(2);  // there is room again
  expect_whole(1);
  expect_whole(2);
}

TEST_F(SaveTogether, AFolderThatCannotBeMadeIsEveryRanksError) {
  if (rank() == 0) test::write_file(checkpoints(), "a file");
  world().barrier(x_).wait(x_);
  EXPECT_THAT(errors_of_saving(1), Each(HasSubstr("i/o error: rank 0: ")));
}

TEST_F(SaveTogether, HolesOverlapsAndOtherTensorsAreRefusedByAll) {
  const auto errors = [&](const std::vector<NamedTensor>& tensors) {
    CheckpointContents contents;
    contents.model = tensors;
    std::string error;
    try {
      save_together(run_, contents, 3, x_, world(), kPageBytes);
    } catch (const CheckpointError& caught) {
      error = caught.what();
    }
    return test::job().exchange(error);
  };
  const bool last = rank() == ranks() - 1;
  std::vector<NamedTensor> hole = tensors_.of(rank(), ranks());
  if (last) hole[1].pieces.clear();
  EXPECT_THAT(errors(hole),
              Each(HasSubstr(fmt::format("tensor 'rows', element {} was given by nobody",
                                         12 * (ranks() - 1) * 131))));
  std::vector<NamedTensor> overlap = tensors_.of(rank(), ranks());
  if (last) overlap[3].pieces.push_back(overlap[3].pieces.front());
  EXPECT_THAT(errors(overlap), Each(HasSubstr("tensor 'of_one', element 0 was given twice")));
  if (ranks() == 1) return;
  std::vector<NamedTensor> others = tensors_.of(rank(), ranks());
  if (last) others[4].shape = {0, 4};
  EXPECT_THAT(errors(others), Each(HasSubstr("the ranks declare different tensors")));
  EXPECT_THAT(test::names_in(checkpoints()), ElementsAre());
}

}  // namespace
}  // namespace gradus
