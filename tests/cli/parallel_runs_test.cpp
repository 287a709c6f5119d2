// Runs of several ranks, started as a user starts them: that they go on in any other layout, stop
// together, and end together when one of them fails.

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iostream>
#include <optional>
#include <regex>
#include <string>
#include <thread>
#include <vector>

#include "gradus_process.h"
#include "metrics_lines.h"
#include "support/temp_dir.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using test::GradusProcess;
using test::ProcessResult;
using testing::HasSubstr;

using Settings = std::vector<std::string>;

class ParallelRuns : public testing::Test {
 protected:
  void SetUp() override {
    test::prepare_text(folder(), test::some_text(8000));
    // Five layers and 12 sequences a step: what tp, dp and pp of 2 can divide, with accumulation.
    test::write_file(folder() / "config.yaml",
                     "seed: 5\n"
                     "run: {dir: run}\n"
                     "model: {layers: 5, channels: 24, heads: 4, context: 16, dropout: 0.2}\n"
                     "data: {train: [data], tokenizer: char}\n"
                     "optim: {lr: 3.0e-3, warmup_steps: 5, schedule: constant}\n"
                     "train: {steps: 40, micro_batch: 3, global_batch: 12, precision: fp32}\n"
                     "checkpoint: {every: 0}\n"
                     "eval: {every: 10, batches: 3}\n"
                     "log: {every: 1}\n");
  }

  const fs::path& folder() const { return dir_.path(); }
  fs::path run() const { return folder() / "run"; }

  GradusProcess start(int ranks, const Settings& settings) const {
    Settings arguments = {"train", "config.yaml"};
    arguments.insert(arguments.end(), settings.begin(), settings.end());
    if (ranks == 1) return GradusProcess(folder(), arguments);
    return GradusProcess::mpirun(folder(), ranks, arguments);
  }

  ProcessResult train(int ranks, const Settings& settings) const {
    return start(ranks, settings).wait();
  }

  /// Waits until the run has reported a step.
  void await_step(GradusProcess& process, const fs::path& run, size_t step) const {
    while (process.running() && test::metrics_of(run, "train").size() < step) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    ASSERT_TRUE(process.running()) << process.wait().text();
  }

 private:
  test::TempDir dir_;
};

size_t count_of(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// Whether a process still runs; one that nobody has asked after since its end does not.
bool runs(pid_t pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string stat;
  std::getline(file, stat);
  const size_t after = stat.rfind(')');
  return after != std::string::npos && stat.substr(after + 2, 1) != "Z";
}

/// No process of `pids` runs two seconds after mpirun's end.
void expect_gone(const std::vector<pid_t>& pids) {
  const auto end = Clock::now();
  while (std::ranges::any_of(pids, runs) && seconds_since(end) < 2.0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  for (const pid_t pid : pids) EXPECT_FALSE(runs(pid)) << "process " << pid;
}

/// In fp64, so that another order of sums shows in the last digits only: a sample that is missed,
/// seen twice or masked otherwise would show in the first.
TEST_F(ParallelRuns, ARunGoesOnInEveryOtherLayout) {
  const Settings exact = {"train.precision=fp64"};
  ASSERT_EQ(train(1, {exact[0], "run.dir=straight", "train.steps=50"}).exit_code, 0);

  struct Leg {
    int ranks;
    Settings settings;
  };
  const std::vector<Leg> legs = {{2, {"parallel.tp=2", "parallel.sequence=true"}},
                                 {2, {"parallel.dp=2", "parallel.zero=1"}},
                                 {2, {"parallel.pp=2"}},
                                 {4, {"parallel.pp=2", "parallel.dp=2", "parallel.zero=2"}},
                                 {1, {}}};
  int steps = 0;
  for (const Leg& leg : legs) {
    steps += 10;
    Settings settings = leg.settings;
    settings.push_back(exact[0]);
    settings.push_back(fmt::format("train.steps={}", steps));
    const ProcessResult result = train(leg.ranks, settings);
    ASSERT_EQ(result.exit_code, 0) << result.text();
    const std::string going_on = fmt::format("at step {}", steps - 10);
    EXPECT_EQ(count_of(result.out, "going on from"), steps == 10 ? 0u : 1u) << result.out;
    EXPECT_EQ(count_of(result.out, going_on), steps == 10 ? 0u : 1u) << result.out;
  }

  const auto lines = test::metrics_of(run(), "train");
  const auto straight = test::metrics_of(folder() / "straight", "train");
  ASSERT_EQ(lines.size(), 50u);
  double worst = 0.0;
  for (size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(lines[i].at("step"), i + 1);
    EXPECT_EQ(lines[i].at("tokens"), (i + 1) * 12 * 16) << "each sample is seen once";
    for (const char* key : {"loss", "grad_norm"}) {
      const double expected = straight[i].at(key).get<double>();
      worst = std::max(worst, std::abs(lines[i].at(key).get<double>() - expected) / expected);
    }
  }
  std::cout << "largest deviation from one rank that went straight on: " << worst << '\n';
  EXPECT_LT(worst, 1e-9);
  const auto evaluations = test::metrics_of(run(), "eval");
  const auto expected = test::metrics_of(folder() / "straight", "eval");
  ASSERT_EQ(evaluations.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(evaluations[i].at("loss"), expected[i].at("loss"), 1e-9);
    EXPECT_EQ(evaluations[i].at("targets"), expected[i].at("targets"));
  }
}

/// SIGTERM to scripts/mpirun.sh, which is there because mpirun itself would end the ranks a second
/// later.
TEST_F(ParallelRuns, TerminatingTheJobSavesOneCheckpointAndItGoesOnToTheBit) {
  const Settings layout = {"parallel.tp=2", "parallel.dp=2", "train.steps=400", "eval.every=0"};
  Settings straight = layout;
  straight.emplace_back("run.dir=straight");
  ASSERT_EQ(train(4, straight).exit_code, 0);

  GradusProcess process = GradusProcess::shell(
      folder(), fmt::format("{}/scripts/mpirun.sh -np 4 {} train config.yaml {}", GRADUS_SOURCE_DIR,
                            test::gradus_binary(), fmt::join(layout, " ")));
  await_step(process, run(), 20);
  process.send(SIGTERM);
  const ProcessResult stopped = process.wait();
  EXPECT_EQ(stopped.exit_code, 0) << stopped.text();
  std::smatch found;
  ASSERT_TRUE(std::regex_search(
      stopped.out, found, std::regex("stopped by SIGUSR1 after step (\\d+)\\. To go on: (.*)")))
      << stopped.text();
  ASSERT_LT(std::stoi(found[1]), 400) << "it ended before the signal came";
  EXPECT_EQ(std::distance(fs::directory_iterator(run() / "checkpoints"), {}), 1);

  const ProcessResult end = GradusProcess::shell(folder(), found[2]).wait();
  ASSERT_EQ(end.exit_code, 0) << end.text();
  for (const char* name : {"model.safetensors", "optimizer.safetensors", "state.json"}) {
    const fs::path file = fs::path("checkpoints") / "step-00000400" / name;
    EXPECT_TRUE(test::read_file(run() / file) == test::read_file(folder() / "straight" / file))
        << name << " differs from the uninterrupted run's";
  }
}

TEST_F(ParallelRuns, KillingOneRankEndsAll) {
  GradusProcess process = start(4, {"parallel.tp=2", "parallel.dp=2", "train.steps=100000"});
  await_step(process, run(), 5);
  const std::vector<pid_t> ranks = process.children();
  ASSERT_EQ(ranks.size(), 4u);
  const auto begin = Clock::now();
  ::kill(ranks[2], SIGKILL);
  const ProcessResult result = process.wait();
  EXPECT_LT(seconds_since(begin), 10.0);
  EXPECT_NE(result.exit_code, 0);
  expect_gone(ranks);
}

TEST_F(ParallelRuns, AnErrorOfOneRankEndsAllAndIsSaidOnce) {
  // The second rank reads another configuration, with a key that there is not.
  test::write_file(folder() / "other.yaml", "base: config.yaml\ntrain: {stepz: 3}\n");
  const auto begin = Clock::now();
  const std::string binary = test::gradus_binary();
  const ProcessResult result =
      GradusProcess::shell(folder(), fmt::format("mpirun -np 1 {0} train config.yaml parallel.dp=2 "
                                                 "train.steps=100000 : -np 1 {0} train other.yaml "
                                                 "parallel.dp=2",
                                                 binary))
          .wait();
  EXPECT_LT(seconds_since(begin), 10.0);
  EXPECT_NE(result.exit_code, 0);
  EXPECT_THAT(result.err, HasSubstr("rank 1 of 2"));
  EXPECT_EQ(count_of(result.text(), "stepz"), 1u) << result.text();
}

TEST_F(ParallelRuns, ARankThatIsStoppedIsFoundByTheWatchdog) {
  ::setenv("GRADUS_COMMUNICATION_TIMEOUT", "3", 1);
  GradusProcess process = start(3, {"parallel.dp=3", "train.micro_batch=2", "train.steps=100000"});
  ::unsetenv("GRADUS_COMMUNICATION_TIMEOUT");
  await_step(process, run(), 5);
  const std::vector<pid_t> ranks = process.children();
  ASSERT_EQ(ranks.size(), 3u);
  const auto begin = Clock::now();
  ::kill(ranks[1], SIGSTOP);
  const ProcessResult result = process.wait();
  std::cout << "ended after " << seconds_since(begin) << " s\n";
  EXPECT_LT(seconds_since(begin), 3.0 + 10.0);
  EXPECT_NE(result.exit_code, 0);
  EXPECT_THAT(result.err, HasSubstr("is stuck: no progress for 3 s"));
  EXPECT_THAT(result.err, HasSubstr("rank 1"));
  EXPECT_EQ(count_of(result.err, "is stuck"), 1u) << result.err;
  expect_gone(ranks);
}

struct Refused {
  int ranks;
  Settings settings;
  const char* message;
};

TEST_F(ParallelRuns, LayoutsThatCannotBeAreRefusedWithTheArithmetic) {
  const std::vector<Refused> cases = {
      {3, {"parallel.tp=2"}, "3 ranks cannot be divided into tp 2"},
      {3, {"parallel.tp=3"}, "heads 4 are not divisible by tp 3: use tp 1, 2 or 4"},
      {2, {"parallel.dp=3", "train.micro_batch=1"}, "= 3 ranks, and 2 were started: use dp 2"},
      {2, {"parallel.pp=2", "model.layers=1"}, "layers 1 are too few for pp 2"},
      {3, {"train.micro_batch=3"}, "train.global_batch 12 are not divisible by micro_batch × dp 9"},
      {2,
       {"parallel.tp=2", "parallel.sequence=true", "model.context=15"},
       "context 15 is not divisible by tp 2"}};
  for (const Refused& refused : cases) {
    SCOPED_TRACE(refused.message);
    const ProcessResult result = train(refused.ranks, refused.settings);
    EXPECT_NE(result.exit_code, 0);
    EXPECT_EQ(count_of(result.text(), refused.message), 1u) << result.text();
    EXPECT_FALSE(fs::exists(run()));
  }
}

TEST_F(ParallelRuns, ThereIsOneLog) {
  const ProcessResult result =
      train(4, {"parallel.pp=2", "parallel.dp=2", "parallel.zero=2", "train.steps=12"});
  ASSERT_EQ(result.exit_code, 0) << result.text();
  EXPECT_EQ(count_of(result.out, "step     12/12"), 1u) << result.out;
  EXPECT_EQ(count_of(result.out, "validation loss"), 2u) << result.out;
  EXPECT_THAT(result.out, HasSubstr("4 ranks: pp 2 × dp 2 × tp 1, ZeRO-2"));
  EXPECT_EQ(test::metrics_of(run(), "train").size(), 12u);
}

}  // namespace
}  // namespace gradus
