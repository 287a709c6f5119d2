#include "checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/checkpoint_writer.h"
#include "checkpoint/example_checkpoint.h"
#include "checkpoint/manifest.h"
#include "checkpoint/safetensors_writer.h"
#include "core/error.h"
#include "support/temp_dir.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;
using test::ExampleRun;
using test::names_in;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

template <typename Action>
std::string error_of(Action&& action) {
  try {
    action();
  } catch (const CheckpointError& error) {
    return error.what();
  }
  return "";
}

class CheckpointTest : public testing::Test {
 protected:
  fs::path run() const { return dir_ / "run"; }
  fs::path checkpoints() const { return run() / "checkpoints"; }
  fs::path step(int64_t n) const { return checkpoints() / step_folder_name(n); }

  test::TempDir dir_;
  std::vector<std::string> refused_;
};

TEST_F(CheckpointTest, ComesBackAsItWasSaved) {
  ExampleRun saved(500);
  const SaveResult result = saved.save(run(), 3);
  EXPECT_EQ(result.path, run() / "checkpoints" / "step-00000500");
  EXPECT_THAT(result.warnings, IsEmpty());
  EXPECT_THAT(names_in(checkpoints()), ElementsAre("step-00000500"));
  EXPECT_THAT(names_in(result.path),
              ElementsAre("config.yaml", "manifest.json", "model.safetensors",
                          "optimizer.safetensors", "state.json", "tokenizer.json"));
  int64_t bytes = 0;
  for (const auto& file : fs::directory_iterator(result.path)) {
    bytes += static_cast<int64_t>(file.file_size());
  }
  EXPECT_EQ(result.bytes, bytes);

  const Checkpoint checkpoint = Checkpoint::open(result.path);
  EXPECT_EQ(checkpoint.step(), 500);
  EXPECT_EQ(checkpoint.state(),
            (nlohmann::json{
                {"samples", 6000}, {"step", 500}, {"format_version", kCheckpointFormatVersion}}));
  EXPECT_EQ(checkpoint.file("config.yaml"), "seed: 1\n");
  EXPECT_THAT(error_of([&] { checkpoint.file("missing.txt"); }), HasSubstr("no missing.txt"));
  ExampleRun loaded(0);
  loaded.load(checkpoint);
  EXPECT_EQ(loaded, saved);
}

TEST_F(CheckpointTest, IsFoundByRunByFolderAndByStep) {
  ExampleRun(100).save(run(), 3);
  ExampleRun(200).save(run(), 3);
  EXPECT_EQ(open_checkpoint(run(), refused_).step(), 200);
  EXPECT_EQ(open_checkpoint(checkpoints(), refused_).step(), 200);
  EXPECT_EQ(open_checkpoint(step(100), refused_).step(), 100);
  EXPECT_EQ(open_checkpoint(fs::path(step(100).string() + "/"), refused_).step(), 100);
  EXPECT_EQ(find_latest(run(), refused_)->step(), 200);
  EXPECT_THAT(refused_, IsEmpty());

  fs::rename(step(100), dir_ / "best");  // copied away by a user: a checkpoint all the same
  EXPECT_EQ(open_checkpoint(dir_ / "best", refused_).step(), 100);
}

TEST_F(CheckpointTest, PathsWithoutACheckpointSayWhatIsMissing) {
  EXPECT_EQ(find_latest(run(), refused_), std::nullopt);
  EXPECT_THAT(error_of([&] { open_checkpoint(run(), refused_); }), HasSubstr("no such folder"));
  fs::create_directories(checkpoints());
  EXPECT_EQ(find_latest(run(), refused_), std::nullopt);
  EXPECT_THAT(error_of([&] { open_checkpoint(run(), refused_); }),
              HasSubstr("holds no checkpoint"));
  ExampleRun(1).save(run(), 3);
  EXPECT_THAT(error_of([&] { open_checkpoint(step(1) / "model.safetensors", refused_); }),
              HasSubstr("give the one that this file lies in"));
  fs::rename(step(1), step(2));
  EXPECT_THAT(error_of([&] { open_checkpoint(step(2), refused_); }),
              HasSubstr("files are of step 1: the folder was renamed"));
}

TEST_F(CheckpointTest, InferenceNeitherReadsNorNeedsTheOptimizer) {
  ExampleRun(7).save(run(), 3);
  test::write_file(step(7) / "optimizer.safetensors",
                   std::string(fs::file_size(step(7) / "optimizer.safetensors"), 'x'));
  EXPECT_THROW(Checkpoint::open(step(7)), CheckpointError);
  const Checkpoint checkpoint = Checkpoint::open(step(7), CheckpointUse::inference);
  EXPECT_EQ(checkpoint.optimizer(), nullptr);
  ExampleRun loaded(0);
  checkpoint.load_model(std::vector<TensorDestination>{
      {"w", {3, 4}, {TensorPiece::whole(ExampleRun::view(loaded.weights))}}});
  EXPECT_EQ(loaded.weights, ExampleRun(7).weights);
  EXPECT_THAT(error_of([&] { loaded.load(checkpoint); }), HasSubstr("no optimizer state"));
}

TEST_F(CheckpointTest, MismatchesOfBothFilesAreListedBeforeAnythingIsLoaded) {
  ExampleRun(7).save(run(), 3);
  const Checkpoint checkpoint = Checkpoint::open(step(7));
  std::vector<float> into(12, 0.0f);
  const std::string message = error_of([&] {
    checkpoint.load(
        std::vector<TensorDestination>{{"w", {3, 4}, {TensorPiece::whole(ExampleRun::view(into))}},
                                       {"b", {4}, {}}},
        std::vector<TensorDestination>{{"adam.m.w", {4, 4}, {}}});
  });
  EXPECT_THAT(message, HasSubstr(step(7).string()));
  EXPECT_THAT(message, HasSubstr("b: is missing from the file, expected shape (4)"));
  EXPECT_THAT(message, HasSubstr("adam.m.w: has shape (3, 4) in the file, expected (4, 4)"));
  EXPECT_THAT(into, testing::Each(0.0f));
}

TEST_F(CheckpointTest, KeepsTheNewestWholeOnes) {
  for (const int64_t n : {100, 200, 300}) ExampleRun(n).save(run(), 3);
  SaveResult result = ExampleRun(400).save(run(), 3);
  EXPECT_THAT(result.removed, ElementsAre(step(100)));
  EXPECT_THAT(names_in(checkpoints()),
              ElementsAre("step-00000200", "step-00000300", "step-00000400"));

  // A torn one does not count, so that there are still as many to fall back on.
  fs::resize_file(step(300) / "model.safetensors", 10);
  result = ExampleRun(500).save(run(), 3);
  EXPECT_THAT(result.removed, IsEmpty());
  result = ExampleRun(600).save(run(), 3);
  EXPECT_THAT(result.removed, ElementsAre(step(300), step(200)));
  EXPECT_THAT(names_in(checkpoints()),
              ElementsAre("step-00000400", "step-00000500", "step-00000600"));
  result = ExampleRun(700).save(run(), 1);
  EXPECT_THAT(names_in(checkpoints()), ElementsAre("step-00000700"));
}

TEST_F(CheckpointTest, ARunThatWentBackDoesNotLoseItsNewCheckpointToOldOnes) {
  for (const int64_t n : {100, 200, 300}) ExampleRun(n).save(run(), 3);
  ExampleRun(150).save(run(), 1);
  EXPECT_THAT(names_in(checkpoints()),
              ElementsAre("step-00000150", "step-00000200", "step-00000300"));
}

TEST_F(CheckpointTest, SavingAStepAgainReplacesIt) {
  ExampleRun(100).save(run(), 3);
  ExampleRun other(100);
  other.weights[5] = 1e6f;
  other.save(run(), 3);
  EXPECT_THAT(names_in(checkpoints()), ElementsAre("step-00000100"));
  ExampleRun loaded(0);
  loaded.load(Checkpoint::open(step(100)));
  EXPECT_EQ(loaded, other);
}

TEST_F(CheckpointTest, StepsOrderByNumberNotByName) {
  ExampleRun(99'999'999).save(run(), 3);
  ExampleRun(100'000'000).save(run(), 3);
  EXPECT_EQ(find_latest(run(), refused_)->step(), 100'000'000);
}

TEST_F(CheckpointTest, OtherNamesAreNoCheckpoints) {
  ExampleRun(100).save(run(), 3);
  for (const char* name : {"step-200", "step-00000200.bak", "step-0000020x", "best", "step-"}) {
    fs::create_directories(checkpoints() / name);
  }
  test::write_file(checkpoints() / "step-00000300", "a file");
  EXPECT_THAT(list_step_folders(checkpoints()), ElementsAre(step(100)));
}

TEST_F(CheckpointTest, RefusesStateThatJsonCannotHold) {
  CheckpointWriter writer(run(), 1);
  EXPECT_THAT(error_of([&] {
                writer.add_state({{"a", {{"b", std::numeric_limits<double>::infinity()}}}});
              }),
              HasSubstr("/a/b is inf"));
  EXPECT_THAT(error_of([&] { writer.add_state({{"step", 1}}); }), HasSubstr("'step' is reserved"));
  EXPECT_THAT(error_of([&] { writer.add_state(nlohmann::json::array()); }),
              HasSubstr("must be a JSON object"));
  EXPECT_THAT(error_of([&] { writer.add_state({{"a", "\xff"}}); }), HasSubstr("state.json"));
}

TEST_F(CheckpointTest, RefusesNamesOutsideOfItsFolder) {
  CheckpointWriter writer(run(), 1);
  for (const char* name : {"", "..", ".hidden", "a/b", "/etc/x", "manifest.json"}) {
    EXPECT_THAT(error_of([&] { writer.add_file(name, "x"); }), HasSubstr("cannot hold")) << name;
  }
}

/// What is on disk must be what was to be written, or the checkpoint is not kept.
TEST_F(CheckpointTest, AFileOtherThanItsRecordIsNotCommitted) {
  ExampleRun(1).save(run(), 3);
  CheckpointWriter writer(run(), 9);
  writer.add_state({});
  test::write_file(writer.folder() / kModelFile, "not what was meant");
  writer.add_tensors(kModelFile, record_of("what was meant, all"));
  EXPECT_THAT([&] { writer.commit(1); },
              testing::ThrowsMessage<IoError>(
                  HasSubstr("right after it was written: model.safetensors was altered or torn")));
  EXPECT_THAT(list_step_folders(checkpoints()), ElementsAre(step(1)));
}

TEST(Manifest, ChecksumsAreThoseOfXxhsum) {
  EXPECT_EQ(record_of("").xxh3_128, "99aa06d3014798d86001c324468d497f");
  const test::TempDir dir;
  const std::string bytes(3'000'001, 'g');
  EXPECT_EQ(record_of_file(test::write_file(dir / "f", bytes)), record_of(bytes));
}

/// As `split -b 1M --filter='xxhsum -H2 | cut -c1-32' FILE | xxhsum -H2`.
TEST(Manifest, AFileInBlocksHasTheChecksumOfItsBlocksChecksums) {
  const test::TempDir dir;
  constexpr int64_t kBlock = 4096;
  for (const int64_t size : {0, 1, 4095, 4096, 4097, 3'000'001}) {
    std::string bytes(static_cast<size_t>(size), 'g');
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * i >> 8);
    std::string lines;
    std::vector<BlockHash> hashes;
    for (int64_t at = 0; at < size; at += kBlock) {
      const std::string block = bytes.substr(static_cast<size_t>(at), kBlock);
      lines += record_of(block).xxh3_128 + "\n";
      hashes.push_back(hash_of_block(block));
    }
    const FileRecord expected{size, record_of(lines).xxh3_128, kBlock};
    EXPECT_EQ(record_of_blocks(size, kBlock, hashes), expected) << size;
    std::filesystem::remove(dir / "f");
    EXPECT_EQ(record_of_file(test::write_file(dir / "f", bytes), kBlock), expected) << size;
  }
}

}  // namespace
}  // namespace gradus
