// A disk that is full does not end a run. What stands for it here is a limit on the size of files,
// which a test can lift while the run goes on, and /dev/full.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <fstream>
#include <string>
#include <vector>

#include "gradus_process.h"
#include "metrics_lines.h"
#include "support/temp_dir.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;
using test::GradusProcess;
using test::ProcessResult;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class FullDisk : public testing::Test {
 protected:
  void SetUp() override {
    test::prepare_text(folder(), test::some_text(3000));
    test::write_file(folder() / "config.yaml",
                     "run: {dir: run}\n"
                     "model: {layers: 2, channels: 64, heads: 2, context: 8}\n"
                     "data: {train: [data], tokenizer: char}\n"
                     "optim: {warmup_steps: 0}\n"
                     "train: {micro_batch: 2, global_batch: 2, precision: fp32, threads: 1}\n"
                     "checkpoint: {every: 2}\n"
                     "eval: {every: 0}\n"
                     "log: {every: 1000000}\n");
  }

  const fs::path& folder() const { return dir_.path(); }
  fs::path run() const { return folder() / "run"; }

  GradusProcess train(const std::string& settings) const {
    return GradusProcess::shell(
        folder(), fmt::format("{} train config.yaml {} >log", test::gradus_binary(), settings));
  }
  /// No file may grow beyond 16 KiB: metrics fit, weights do not.
  GradusProcess train_limited(const std::string& settings) const {
    return GradusProcess::shell(
        folder(), fmt::format("/bin/sh -c 'ulimit -S -f 32; exec {} train config.yaml {}' >log",
                              test::gradus_binary(), settings));
  }
  std::string log() const {
    return fs::exists(folder() / "log") ? test::read_file(folder() / "log") : "";
  }
  void await_log(GradusProcess& process, const std::string& text) const {
    process.run_until([&] { return log().find(text) != std::string::npos; });
    ASSERT_THAT(log(), HasSubstr(text));
  }
  std::vector<std::string> checkpoints() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(run() / "checkpoints")) {
      names.push_back(entry.path().filename());
    }
    std::ranges::sort(names);
    return names;
  }

 private:
  test::TempDir dir_;
};

TEST_F(FullDisk, ASaveThatFailsIsTriedAgainAndTheRunGoesOn) {
  ASSERT_EQ(train("train.steps=2").wait().exit_code, 0) << log();
  GradusProcess process = train_limited("train.steps=1000000 checkpoint.keep=2");
  await_log(process, "step 4 is not saved: run/checkpoints/");
  EXPECT_THAT(log(), HasSubstr("File too large; the run goes on, its newest checkpoint is "
                               "run/checkpoints/step-00000002, and saving is tried again"));
  await_log(process, "step 8 is not saved: ");
  EXPECT_EQ(test::run_gradus(folder(), {"generate", "run", "--tokens", "3"}).err, "");
  const rlimit unlimited{RLIM_INFINITY, RLIM_INFINITY};
  ASSERT_EQ(::prlimit(process.pid(), RLIMIT_FSIZE, &unlimited, nullptr), 0);
  await_log(process, "saved run/checkpoints/");
  process.send(SIGTERM);
  EXPECT_EQ(process.wait().exit_code, 0) << log();
  EXPECT_EQ(checkpoints().size(), 2u) << "and nothing half made beside them";
}

TEST_F(FullDisk, AnEndThatCannotBeSavedIsAnError) {
  const ProcessResult fresh = train_limited("train.steps=3 checkpoint.every=0").wait();
  EXPECT_EQ(fresh.exit_code, 1) << fresh.text();
  EXPECT_THAT(
      fresh.err,
      AllOf(testing::StartsWith("gradus: i/o error: the weights of step 3 were not saved: "),
            HasSubstr("File too large; nothing of this run is saved")));
  ASSERT_EQ(train("train.steps=2").wait().exit_code, 0) << log();
  GradusProcess process = train_limited("train.steps=1000000 checkpoint.every=0 log.every=3");
  await_log(process, "step      3/1000000");
  process.send(SIGTERM);
  const ProcessResult stopped = process.wait();
  EXPECT_EQ(stopped.exit_code, 1) << stopped.text();
  EXPECT_THAT(stopped.err, HasSubstr("its newest checkpoint is run/checkpoints/step-00000002"));
  EXPECT_THAT(log(), Not(HasSubstr("To go on")));
  EXPECT_THAT(checkpoints(), testing::ElementsAre("step-00000002"));
}

TEST_F(FullDisk, MetricsThatCannotBeWrittenDoNotEndARun) {
  fs::create_directory(run());
  fs::create_symlink("/dev/full", run() / "metrics.jsonl");
  const ProcessResult result = train("train.steps=4 log.every=1").wait();
  EXPECT_EQ(result.exit_code, 0) << result.text();
  EXPECT_THAT(
      log(),
      AllOf(
          HasSubstr("cannot write run/metrics.jsonl: No space left on device; its lines are kept"),
          HasSubstr("run/metrics.jsonl: 4 lines could not be written and are lost")));
  EXPECT_THAT(checkpoints(), testing::ElementsAre("step-00000002", "step-00000004"));
}

TEST_F(FullDisk, ARunThatGoesOnWithoutRoomForItsRecordsWritesThemLater) {
  ASSERT_EQ(train("train.steps=2 log.every=1").wait().exit_code, 0) << log();
  // More than fits under the limit, and a line that is to be dropped: the file has to be copied.
  std::ofstream(run() / "metrics.jsonl", std::ios::app)
      << "{\"event\":\"note\",\"note\":\"" << std::string(20000, 'x')
      << "\"}\n{\"event\":\"train\",\"step\":9}\n";
  // Few lines on the way: the log is under the limit, too.
  GradusProcess process = train_limited("train.steps=1000000 checkpoint.every=500 log.every=500");
  await_log(process, "metrics.jsonl: cannot write: File too large; its lines are kept");
  await_log(process, "step 500 is not saved: ");
  const rlimit unlimited{RLIM_INFINITY, RLIM_INFINITY};
  ASSERT_EQ(::prlimit(process.pid(), RLIMIT_FSIZE, &unlimited, nullptr), 0);
  await_log(process, "run/metrics.jsonl is written again");
  process.send(SIGTERM);
  EXPECT_EQ(process.wait().exit_code, 0) << log();
  std::vector<int64_t> steps;
  for (const auto& line : test::metrics_of(run(), "train")) steps.push_back(line.at("step"));
  ASSERT_GE(steps.size(), 3u);
  steps.resize(3);
  EXPECT_THAT(steps, testing::ElementsAre(1, 2, 500)) << "what came behind step 2 is dropped";
}

TEST_F(FullDisk, LinesThatAreLostAreSaidHoweverARunEnds) {
  fs::create_directory(run());
  fs::create_symlink("/dev/full", run() / "metrics.jsonl");
  const ProcessResult result = train_limited("train.steps=3 log.every=1 checkpoint.every=0").wait();
  EXPECT_EQ(result.exit_code, 1) << "its weights do not fit";
  EXPECT_THAT(log(), HasSubstr("run/metrics.jsonl: 3 lines could not be written and are lost"));
}

TEST_F(FullDisk, AMetricsFileThatIsNotOneIsRepairedWhenARunGoesOn) {
  ASSERT_EQ(train("train.steps=2 log.every=1").wait().exit_code, 0) << log();
  std::ofstream(run() / "metrics.jsonl", std::ios::app) << "{\"step\":\"x\"}\n{\"event\":\"tra";
  ASSERT_EQ(train("train.steps=4 log.every=1").wait().exit_code, 0) << log();
  EXPECT_THAT(log(), AllOf(HasSubstr("run/metrics.jsonl:3 is left out: "),
                           HasSubstr("run/metrics.jsonl:4 is left out: it was cut short")));
  EXPECT_EQ(test::metrics_of(run(), "train").size(), 4u);
}

// A run's folder, which is one run's

TEST_F(FullDisk, ASecondRunInTheFolderIsRefused) {
  GradusProcess first = train("train.steps=1000000 log.every=1");
  await_log(first, "step      3/1000000");
  const std::string config = test::read_file(run() / "config.yaml");
  const ProcessResult second =
      test::run_gradus(folder(), {"train", "config.yaml", "run.dir=./run/", "train.steps=9"});
  EXPECT_EQ(second.exit_code, 1) << second.text();
  EXPECT_THAT(second.err,
              AllOf(testing::StartsWith("gradus: i/o error: run.dir ./run/ is in use by process "),
                    HasSubstr(fmt::format("process {} on ", first.pid()))));
  EXPECT_EQ(test::read_file(run() / "config.yaml"), config);
  first.send(SIGKILL);
  EXPECT_EQ(first.wait().signal, SIGKILL);
  EXPECT_TRUE(fs::exists(run() / ".lock"));
  EXPECT_EQ(test::run_gradus(folder(), {"train", "config.yaml", "train.steps=9"}).exit_code, 0);
  EXPECT_FALSE(fs::exists(run() / ".lock"));
}

}  // namespace
}  // namespace gradus
