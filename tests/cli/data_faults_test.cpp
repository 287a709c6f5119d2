// Data that is not what it says, and data that changes or vanishes under a run.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "data/dataset.h"
#include "data/token_shard.h"
#include "gradus_process.h"
#include "metrics_lines.h"
#include "support/temp_dir.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;
using test::GradusProcess;
using test::ProcessResult;
using testing::HasSubstr;
using testing::Not;

constexpr const char* kConfig =
    "run: {dir: run}\n"
    "model: {layers: 1, channels: 16, heads: 2, context: 8}\n"
    "data: {train: [data], tokenizer: char}\n"
    "optim: {warmup_steps: 0}\n"
    "train: {steps: 4, micro_batch: 2, global_batch: 2, precision: fp32, threads: 1}\n"
    "checkpoint: {every: 0}\n"
    "eval: {every: 0, tokens: 16}\n"
    "log: {every: 1}\n";

class DataFaults : public testing::Test {
 protected:
  void SetUp() override {
    test::prepare_text(folder(), test::some_text(5000));
    test::write_file(folder() / "config.yaml", kConfig);
  }

  const fs::path& folder() const { return dir_.path(); }
  fs::path train_bin() const { return folder() / "data/train.bin"; }
  fs::path checkpoints() const { return folder() / "run/checkpoints"; }

  ProcessResult gradus(const std::vector<std::string>& arguments) const {
    return test::run_gradus(folder(), arguments);
  }
  std::vector<std::string> training(const std::vector<std::string>& settings) const {
    std::vector<std::string> arguments = {"train", "config.yaml"};
    arguments.insert(arguments.end(), settings.begin(), settings.end());
    return arguments;
  }
  ProcessResult train(const std::vector<std::string>& settings = {}) const {
    return gradus(training(settings));
  }

  void await_step(GradusProcess& process, size_t step) const {
    process.run_until([&] { return test::metrics_of(folder() / "run", "train").size() >= step; });
    ASSERT_TRUE(process.running()) << process.wait().text();
  }

  /// Zeros, which every vocabulary has, in place of what was there.
  static void zero(const fs::path& path, size_t offset, size_t count) {
    std::string bytes = test::read_file(path);
    bytes.replace(offset, count, count, '\0');
    test::write_file(path, bytes);
  }

 private:
  test::TempDir dir_;
};

void expect_error(const ProcessResult& result, const std::vector<std::string>& parts) {
  EXPECT_EQ(result.exit_code, 1) << "signal " << result.signal << "\n" << result.text();
  EXPECT_TRUE(result.err.starts_with("gradus: data error: ")) << result.err;
  for (const std::string& part : parts) EXPECT_THAT(result.err, HasSubstr(part));
}

TEST_F(DataFaults, DamagedShardsAreRefusedBeforeTheFirstStepAndOnResume) {
  ASSERT_EQ(train({"train.steps=2", "checkpoint.every=1"}).exit_code, 0);
  const std::string metrics = test::read_file(folder() / "run/metrics.jsonl");
  const std::vector<std::string> message = {"data/train.bin", "do not match their checksum",
                                            "prepare the data again"};
  zero(train_bin(), 1024, 512);
  expect_error(train(), message);
  expect_error(train({"run.dir=other"}), message);
  expect_error(gradus({"bench", "batches", "config.yaml", "--out", "batches"}), message);
  expect_error(gradus({"data", "inspect", "data"}), message);
  EXPECT_EQ(test::read_file(folder() / "run/metrics.jsonl"), metrics);
  EXPECT_FALSE(fs::exists(folder() / "other"));
  EXPECT_FALSE(fs::exists(folder() / "batches"));
}

TEST_F(DataFaults, DamagedValidationTextIsRefusedWhenThereIsEvaluation) {
  zero(folder() / "data/val.bin", 128, 64);
  EXPECT_EQ(train().exit_code, 0) << "it is not read";
  expect_error(train({"eval.every=1", "run.dir=other"}), {"data/val.bin", "checksum"});
  expect_error(train({"eval.every=1", "run.dir=other", "data.val=[data/val.bin]"}),
               {"data/val.bin", "checksum"});
}

TEST_F(DataFaults, LargeShardsAreVerifiedBeforeAnythingIsSaved) {
  const TokenShard small(train_bin());
  {
    TokenShardWriter writer(train_bin(), small.vocab_size(), small.tokenizer_hash());
    writer.set_corpus(small.corpus());
    const std::vector<int32_t> block(size_t{1} << 20, 1);
    for (int i = 0; i < 40; ++i) writer.append(block);  // 80 MiB
    writer.publish();
  }
  const auto size = static_cast<size_t>(fs::file_size(train_bin()));
  zero(train_bin(), size - 2, 1);
  expect_error(train({"train.steps=1000000", "checkpoint.every=1"}),
               {"data/train.bin", "do not match their checksum"});
  EXPECT_TRUE(!fs::exists(checkpoints()) || fs::is_empty(checkpoints()));

  // The run's only save is at its end: it waits for the verdict all the same.
  fs::remove_all(folder() / "run");
  expect_error(train({"train.steps=1"}), {"data/train.bin", "do not match their checksum"});
  EXPECT_TRUE(!fs::exists(checkpoints()) || fs::is_empty(checkpoints()));
}

TEST_F(DataFaults, AShardCutShortUnderARunIsAnErrorAfterASave) {
  const std::string whole = test::read_file(train_bin());
  GradusProcess process(folder(), training({"train.steps=1000000"}));
  await_step(process, 5);
  fs::resize_file(train_bin(), 70);
  const ProcessResult result = process.wait();
  expect_error(result, {"data/train.bin", "when it was opened"});
  const auto steps = test::metrics_of(folder() / "run", "train");
  ASSERT_FALSE(steps.empty());
  const auto last = steps.back().at("step").get<int64_t>();
  EXPECT_TRUE(fs::exists(checkpoints() / fmt::format("step-{:08}", last))) << result.text();

  test::write_file(train_bin(), whole);
  const ProcessResult resumed = train({fmt::format("train.steps={}", last + 1)});
  EXPECT_EQ(resumed.exit_code, 0) << resumed.text();
  EXPECT_THAT(resumed.out, HasSubstr(fmt::format("at step {}", last)));
}

TEST_F(DataFaults, AShardOverwrittenUnderARunIsAnErrorAfterASave) {
  GradusProcess process(folder(), training({"train.steps=1000000"}));
  await_step(process, 5);
  // As `cp other.bin data/train.bin` does: of the same length, with tokens of the vocabulary.
  std::string other = test::read_file(train_bin());
  std::fill(other.begin() + 64, other.end(), '\0');
  {
    std::fstream file(train_bin(), std::ios::in | std::ios::out | std::ios::binary);
    file.write(other.data(), static_cast<std::streamsize>(other.size()));
  }
  expect_error(process.wait(), {"data/train.bin", "written to while it was in use"});
  EXPECT_FALSE(fs::is_empty(checkpoints()));
}

TEST_F(DataFaults, ValidationTextThatVanishesIsAnErrorAfterASave) {
  GradusProcess process(folder(), training({"train.steps=1000000", "eval.every=1"}));
  await_step(process, 5);
  fs::resize_file(folder() / "data/val.bin", 70);
  expect_error(process.wait(), {"data/val.bin", "when it was opened"});
  EXPECT_FALSE(fs::is_empty(checkpoints()));
}

TEST_F(DataFaults, AnInterruptedPreparationLeavesTheOlderDataAndNothingElse) {
  const std::string before = test::read_file(train_bin());
  // Sparse, of NUL characters: long enough to be interrupted.
  fs::resize_file(test::write_file(folder() / "long.txt", ""), uintmax_t{1} << 29);
  const auto names = [&] {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(folder() / "data")) {
      found.push_back(entry.path().filename().string());
    }
    return found;
  };
  const auto interrupt = [&](int signal) {
    GradusProcess process(folder(), {"data", "prepare", "--out", "data", "long.txt"});
    const auto begun = [&] {
      return std::ranges::any_of(names(), [](const auto& name) { return name.ends_with(".tmp"); });
    };
    process.run_until(begun);
    EXPECT_TRUE(process.running());
    process.send(signal);
    return process.wait();
  };
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    EXPECT_EQ(interrupt(signal).signal, signal);
    EXPECT_THAT(names(), testing::UnorderedElementsAre("tokenizer.json", "train.bin", "val.bin"));
    EXPECT_EQ(test::read_file(train_bin()), before);
  }
  EXPECT_EQ(interrupt(SIGKILL).signal, SIGKILL);
  EXPECT_THAT(names(), testing::Contains(testing::EndsWith(".tmp")));
  EXPECT_EQ(test::read_file(train_bin()), before);
  ASSERT_EQ(gradus({"data", "prepare", "--out", "data", "text.txt"}).exit_code, 0);
  EXPECT_THAT(names(), testing::UnorderedElementsAre("tokenizer.json", "train.bin", "val.bin"));
}

TEST_F(DataFaults, TheSameTextTwiceIsSaid) {
  fs::create_symlink("data", folder() / "again");
  const ProcessResult result =
      train({"data.train=[data,again]", "data.val=[data/train.bin]", "eval.every=4"});
  EXPECT_EQ(result.exit_code, 0) << result.text();
  EXPECT_THAT(result.out, HasSubstr("data.train: again/train.bin holds the same tokens as "
                                    "data/train.bin: an epoch has them twice"));
  EXPECT_THAT(result.out, HasSubstr("data.val: data/train.bin holds the same tokens as "
                                    "data/train.bin, which is trained on"));
  EXPECT_THAT(train({"run.dir=other"}).out, Not(HasSubstr("the same tokens")));
}

TEST_F(DataFaults, PrepareSaysWhatIsUnusualOnStandardError) {
  test::write_file(folder() / "windows.txt", "one\r\ntwo\r\n" + test::some_text(500));
  test::write_file(folder() / "empty.txt", "");
  const ProcessResult result =
      gradus({"data", "prepare", "--out", "data", "windows.txt", "empty.txt"});
  EXPECT_EQ(result.exit_code, 0) << result.text();
  EXPECT_THAT(result.err, HasSubstr("gradus: note: skipped, since it is empty: empty.txt\n"));
  EXPECT_THAT(result.err, HasSubstr("gradus: note: carriage returns are kept"));
  EXPECT_THAT(result.err, HasSubstr("gradus: note: data holds 4500 training tokens and 500 "
                                    "validation tokens"));
  EXPECT_THAT(result.out, HasSubstr("wrote data: "));
}

TEST_F(DataFaults, DataPreparedAgainDoesNotDisturbARunningOne) {
  GradusProcess process(folder(), training({"train.steps=1000000"}));
  await_step(process, 5);
  test::write_file(folder() / "text.txt", test::some_text(9000, 2) + "0123456789");
  const ProcessResult prepared = gradus({"data", "prepare", "--out", "data", "text.txt"});
  ASSERT_EQ(prepared.exit_code, 0) << prepared.text();
  await_step(process, test::metrics_of(folder() / "run", "train").size() + 20);
  process.send(SIGTERM);
  const ProcessResult result = process.wait();
  EXPECT_EQ(result.exit_code, 0) << result.text();
  EXPECT_FALSE(fs::is_empty(checkpoints()));
}

}  // namespace
}  // namespace gradus
