// The end of one rank is the end of all; what cannot be is refused by all, once.

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <iostream>
#include <regex>

#include "checkpoint/checkpoint_folder.h"
#include "parallel_runs.h"
#include "support/tensors.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using test::GradusProcess;
using test::ProcessResult;
using testing::HasSubstr;

class ParallelFailures : public ParallelRuns {
 protected:
  static std::vector<std::string> hidden_names_in(const fs::path& folder) {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder)) {
      const std::string name = entry.path().filename().string();
      if (name.starts_with(".")) names.push_back(name);
    }
    return names;
  }
};

TEST_F(ParallelFailures, KillingOneRankEndsAll) {
  GradusProcess process = start(4, {"parallel.tp=2", "parallel.dp=2", "train.steps=100000"});
  await_step(process, run(), 5);
  const std::vector<pid_t> ranks = ranks_of(process, 4);
  const size_t killed = test::test_seed() % 4;
  const auto begin = Clock::now();
  ::kill(ranks[killed], SIGKILL);
  const ProcessResult result = process.wait();
  const double seconds = seconds_since(begin);
  std::cout << "rank " << killed << " killed, all ended after " << seconds << " s\n";
  EXPECT_LT(seconds, kEndOfAll);
  EXPECT_NE(result.exit_code, 0);
  EXPECT_THAT(result.err, HasSubstr(fmt::format("process rank {}", killed))) << "mpirun says who";
  expect_gone(ranks);
}

TEST_F(ParallelFailures, AnErrorOfOneRankAtTheStartEndsAll) {
  // The second rank reads another configuration, with a key that there is not.
  test::write_file(folder() / "other.yaml", "base: config.yaml\ntrain: {stepz: 3}\n");
  const auto begin = Clock::now();
  const ProcessResult result = train_apart("config.yaml train.steps=100000", "other.yaml");
  expect_one_error(result, seconds_since(begin),
                   {"gradus: rank 1 of 2: config error: ", "other.yaml:2: train.stepz"});
}

TEST_F(ParallelFailures, WrongUsageHasItsExitCode) {
  // Of all ranks, and of one alone.
  const auto begin = Clock::now();
  const ProcessResult all = train(2, {"train.steps=many"});
  EXPECT_EQ(all.exit_code, 2) << all.text();
  expect_one_error(all, seconds_since(begin), {"config error: ", "train.steps"});
  const auto second = Clock::now();
  const ProcessResult one = train_apart("config.yaml", "config.yaml train.steps=many");
  EXPECT_EQ(one.exit_code, 2) << one.text();
  expect_one_error(one, seconds_since(second), {"gradus: rank 1 of 2: config error: "});
}

/// No file of these processes can grow beyond a size, which stands for a full disk.
void limit_files(const std::vector<pid_t>& processes, rlim_t bytes) {
  const rlimit limit{bytes, RLIM_INFINITY};
  for (const pid_t pid : processes) ASSERT_EQ(::prlimit(pid, RLIMIT_FSIZE, &limit, nullptr), 0);
}

TEST_F(ParallelFailures, WhatCannotBeSavedIsGivenUpByAllAndTriedAgain) {
  const auto await = [](GradusProcess& process, const std::string& text) {
    process.run_until([&] { return process.out_so_far().find(text) != std::string::npos; });
    ASSERT_THAT(process.out_so_far(), HasSubstr(text));
  };
  GradusProcess process = start(2, {"parallel.tp=2", "train.steps=1000000", "checkpoint.every=50",
                                    "eval.every=0", "log.every=1000000"});
  ASSERT_NO_FATAL_FAILURE(await(process, "step      1/1000000"));
  const std::vector<pid_t> ranks = ranks_of(process, 2);
  ASSERT_NO_FATAL_FAILURE(limit_files(ranks, 16384));
  ASSERT_NO_FATAL_FAILURE(await(process, " is not saved: "));
  EXPECT_THAT(process.out_so_far(), HasSubstr("File too large; the run goes on, "));
  ASSERT_NO_FATAL_FAILURE(limit_files(ranks, RLIM_INFINITY));
  const size_t refused = process.out_so_far().size();
  process.run_until(
      [&] { return process.out_so_far().find("saved run/", refused) != std::string::npos; });
  ASSERT_TRUE(process.running());
  // And where the end cannot be saved, that is the error.
  ASSERT_NO_FATAL_FAILURE(limit_files(ranks, 16384));
  process.send(SIGUSR1);
  const ProcessResult stopped = process.wait();
  EXPECT_NE(stopped.exit_code, 0);
  EXPECT_EQ(count_of(stopped.err, "i/o error: the weights of step "), 1u) << stopped.err;
  EXPECT_THAT(stopped.err, HasSubstr("its newest checkpoint is run/checkpoints/step-"));
  for (const fs::directory_entry& entry : fs::directory_iterator(run() / kCheckpointsName)) {
    EXPECT_TRUE(step_of(entry.path())) << "half made: " << entry.path();
  }
}

/// Folders of the same name, which earlier runs have filled alike, on disks of their own.
TEST_F(ParallelFailures, LeftOverRunFoldersThatTheRanksDoNotShareAreRefused) {
  for (const fs::path& run : {run(), folder() / "elsewhere" / "run"}) {
    fs::create_directories(run);
    test::write_file(run / "config.yaml", "left by an earlier run");
    test::write_file(run / ".shared-0123456789abcdef", "left by a killed one");
  }
  const auto begin = Clock::now();
  const ProcessResult result =
      train_apart("config.yaml", "../config.yaml data.train=[../data]", "elsewhere");
  expect_one_error(result, seconds_since(begin),
                   {"i/o error: run.dir run of rank 1 is not the folder that rank 0 has made"});
  EXPECT_FALSE(fs::exists(run() / kCheckpointsName));
  EXPECT_THAT(hidden_names_in(run()), testing::IsEmpty());
}

/// What a killed run has half written, the next one removes when it starts.
TEST_F(ParallelFailures, PartialCheckpointsOfKilledRunsGoAtTheNextStart) {
  fs::create_directories(run() / kCheckpointsName / ".step-00000030.partial-1");
  ASSERT_EQ(train(2, {"train.steps=1"}).exit_code, 0);
  EXPECT_THAT(hidden_names_in(run() / kCheckpointsName), testing::IsEmpty());
}

TEST_F(ParallelFailures, ARunFolderThatTheRanksDoNotShareIsRefused) {
  fs::create_directory(folder() / "elsewhere");
  const auto begin = Clock::now();
  const ProcessResult result =
      train_apart("config.yaml", "../config.yaml data.train=[../data]", "elsewhere");
  expect_one_error(result, seconds_since(begin),
                   {"i/o error: run.dir run of rank 1 is not the folder that rank 0 has made"});
}

TEST_F(ParallelFailures, RanksThatReadDifferentDataAreRefused) {
  fs::copy(folder() / "data", folder() / "old", fs::copy_options::recursive);
  fs::remove(folder() / "old" / "val.bin");
  const auto begin = Clock::now();
  const ProcessResult result = train_apart("config.yaml", "config.yaml data.train=[old]");
  expect_one_error(result, seconds_since(begin),
                   {"data error: the ranks read different data", "rank 1 has 7200 and 0;"});
  EXPECT_FALSE(fs::exists(run()));

  // As long, and of the same tokenizer.
  std::string backwards = test::some_text(8000);
  std::ranges::reverse(backwards);
  fs::create_directory(folder() / "other");
  test::prepare_text(folder() / "other", backwards);
  const std::string settings =
      "config.yaml data.train=[data,other/data] data.val=[data] parallel.tp=2";
  const auto again = Clock::now();
  const ProcessResult reversed = train_apart(
      settings, "config.yaml data.train=[other/data,data] data.val=[data] parallel.tp=2");
  expect_one_error(reversed, seconds_since(again),
                   {"data error: the ranks read different data", "of other content or order"});
}

TEST_F(ParallelFailures, ADamagedShardOfOneRankIsRefused) {
  fs::copy(folder() / "data", folder() / "bad", fs::copy_options::recursive);
  std::string shard = test::read_file(folder() / "bad" / "train.bin");
  shard.replace(4096, 512, 512, '\0');
  test::write_file(folder() / "bad" / "train.bin", shard);
  const auto begin = Clock::now();
  const ProcessResult result =
      train_apart("config.yaml parallel.tp=2", "config.yaml parallel.tp=2 data.train=[bad]");
  expect_one_error(result, seconds_since(begin),
                   {"gradus: rank 1 of 2: data error: bad/train.bin", "checksum"});
  EXPECT_FALSE(fs::exists(run()));
}

TEST_F(ParallelFailures, AShardThatOneRankLosesInMidRunEndsAllAfterASave) {
  fs::copy(folder() / "data", folder() / "own", fs::copy_options::recursive);
  const std::string settings = " parallel.tp=2 train.steps=100000 eval.every=0";
  GradusProcess process =
      GradusProcess::shell(folder(), fmt::format("{0} -np 1 {1} train config.yaml{2} : "
                                                 "-np 1 {1} train config.yaml{2} data.train=[own]",
                                                 test::mpirun(), test::gradus_binary(), settings));
  await_step(process, run(), 5);
  fs::resize_file(folder() / "own" / "train.bin", 1000);
  const auto begin = Clock::now();
  const ProcessResult result = process.wait();
  EXPECT_LT(seconds_since(begin), kEndOfAll);
  EXPECT_NE(result.exit_code, 0);
  EXPECT_EQ(count_of(result.err, "gradus: rank "), 1u) << result.err;
  EXPECT_THAT(result.err, HasSubstr("data error: rank 1: own/train.bin"));
  const auto steps = list_step_folders(run() / kCheckpointsName);
  ASSERT_EQ(steps.size(), 1u);
  EXPECT_EQ(step_of(steps.front()), test::metrics_of(run(), "train").back().at("step"));

  // With the data back, the run goes on from there.
  const auto goal = fmt::format("train.steps={}", *step_of(steps.front()) + 2);
  ASSERT_EQ(train(2, {"parallel.tp=2", "eval.every=0", goal}).exit_code, 0);
}

TEST_F(ParallelFailures, RanksThatFindDifferentCheckpointsAreRefused) {
  ASSERT_EQ(train(1, {"train.steps=7"}).exit_code, 0);
  const std::string metrics = test::read_file(run() / "metrics.jsonl");
  fs::create_directory(folder() / "elsewhere");
  const auto begin = Clock::now();
  const ProcessResult result =
      train_apart("config.yaml", "../config.yaml data.train=[../data]", "elsewhere");
  expect_one_error(result, seconds_since(begin),
                   {"checkpoint error: the ranks do not go on from one checkpoint: rank 0 found "
                    "that of step 7, rank 1 found none"});
  EXPECT_EQ(test::read_file(run() / "metrics.jsonl"), metrics);
  EXPECT_FALSE(fs::exists(folder() / "elsewhere" / "run"));
}

TEST_F(ParallelFailures, RanksWithDifferentSettingsAreRefused) {
  // Threads are a machine's own affair.
  const auto begin = Clock::now();
  const ProcessResult result =
      train_apart("config.yaml parallel.dp=2 optim.lr=0.1 train.threads=1",
                  "config.yaml parallel.dp=2 optim.beta2=0.98 train.threads=2");
  expect_one_error(
      result, seconds_since(begin),
      {"config error: the ranks were started with different settings",
       "\n  rank 0 has\n    optim.lr: 0.1\n  rank 1 has\n    optim.lr: 0.003\n    optim.beta2: "
       "0.98\n"});
  EXPECT_FALSE(fs::exists(run()));
}

TEST_F(ParallelFailures, ARankThatIsStoppedIsFoundByTheWatchdog) {
  constexpr double kTimeout = 3.0;
  // The first rank decides who prints: without it others must.
  for (const size_t stopped : {size_t{1}, size_t{0}}) {
    SCOPED_TRACE(fmt::format("rank {} stopped", stopped));
    ::setenv("GRADUS_COMMUNICATION_TIMEOUT", fmt::format("{}", kTimeout).c_str(), 1);
    GradusProcess process = start(3, {"parallel.dp=3", "train.micro_batch=2", "train.steps=100000",
                                      fmt::format("run.dir=run{}", stopped)});
    ::unsetenv("GRADUS_COMMUNICATION_TIMEOUT");
    await_step(process, folder() / fmt::format("run{}", stopped), 5);
    const std::vector<pid_t> ranks = ranks_of(process, 3);
    const auto begin = Clock::now();
    ::kill(ranks[stopped], SIGSTOP);
    const ProcessResult result = process.wait();
    const double seconds = seconds_since(begin);
    std::cout << "rank " << stopped << " stopped, all ended after " << seconds << " s\n";
    EXPECT_GE(seconds, kTimeout / 2);  // of a rank that does not answer
    expect_one_error(result, seconds - kTimeout,
                     {"is stuck: no progress for ",
                      fmt::format("rank {} does not answer: it is stopped or gone", stopped)});
    const std::regex collective(
        "gradus: rank \\d of 3: MPI error: \\w+ \\d+ of group (world|dp) \\(ranks 0 1 2, ");
    EXPECT_TRUE(std::regex_search(result.err, collective)) << result.err;
    expect_gone(ranks);
  }
}

/// Of a pipeline only the neighbour waits for the rank that is stopped; the others wait for one
/// that waits itself.
TEST_F(ParallelFailures, TheRankThatIsStoppedIsNamedAndNotItsPartner) {
  for (const size_t stopped : {size_t{2}, size_t{0}}) {
    SCOPED_TRACE(fmt::format("rank {} stopped", stopped));
    ::setenv("GRADUS_COMMUNICATION_TIMEOUT", "3", 1);
    GradusProcess process =
        start(3, {"parallel.pp=3", "train.steps=100000", fmt::format("run.dir=run{}", stopped)});
    ::unsetenv("GRADUS_COMMUNICATION_TIMEOUT");
    await_step(process, folder() / fmt::format("run{}", stopped), 5);
    const std::vector<pid_t> ranks = ranks_of(process, 3);
    const auto begin = Clock::now();
    ::kill(ranks[stopped], SIGSTOP);
    const ProcessResult result = process.wait();
    expect_one_error(result, seconds_since(begin) - 3.0,
                     {fmt::format("rank {} does not answer: it is stopped or gone", stopped)});
    EXPECT_EQ(count_of(result.err, "does not answer"), 1u) << result.err;
    expect_gone(ranks);
  }
}

struct Refused {
  int ranks;
  Settings settings;
  const char* message;
};

TEST_F(ParallelFailures, LayoutsThatCannotBeAreRefusedWithTheArithmetic) {
  const std::vector<Refused> cases = {
      {3, {"parallel.tp=2"}, "3 ranks cannot be divided into parallel.tp 2"},
      {3, {"parallel.tp=3"}, "heads 4 are not divisible by tp 3: use tp 1, 2 or 4"},
      {2,
       {"parallel.dp=3", "train.micro_batch=1"},
       "= 3 ranks asked for, 2 started: use dp 2 (or auto), or start 3 ranks\n"
       "  parallel.dp: command line"},
      {2, {"parallel.pp=2", "model.layers=1"}, "layers 1 are too few for pp 2"},
      {3,
       {"train.micro_batch=3"},
       "train.global_batch 12 is not a multiple of train.micro_batch 3 × dp 3: use global_batch 9 "
       "or 18, another micro_batch or another number of ranks\n"
       "  train.global_batch: config.yaml:6\n"
       "  train.micro_batch: command line"},
      {2,
       {"parallel.tp=2", "parallel.sequence=true", "model.context=15"},
       "context 15 is not divisible by tp 2"}};
  for (const Refused& refused : cases) {
    SCOPED_TRACE(refused.message);
    const auto begin = Clock::now();
    const ProcessResult result = train(refused.ranks, refused.settings);
    expect_one_error(result, seconds_since(begin), {refused.message});
    EXPECT_FALSE(fs::exists(run()));
  }
}

TEST_F(ParallelFailures, ThereIsOneLog) {
  const ProcessResult result =
      train(4, {"parallel.pp=2", "parallel.dp=2", "parallel.zero=2", "train.steps=12"});
  ASSERT_EQ(result.exit_code, 0) << result.text();
  EXPECT_EQ(count_of(result.out, "step     12/12"), 1u) << result.out;
  EXPECT_EQ(count_of(result.out, "validation loss"), 2u) << result.out;
  EXPECT_EQ(count_of(result.out, "parameters, 5 layers"), 1u) << result.out;
  EXPECT_EQ(count_of(result.out, "saved run/"), 1u) << result.out;
  EXPECT_THAT(result.out, HasSubstr("4 ranks: pp 2 × dp 2 × tp 1, ZeRO-2"));
  const auto train_lines = test::metrics_of(run(), "train");
  ASSERT_EQ(train_lines.size(), 12u);
  EXPECT_LT(train_lines.back().at("loss"), train_lines.front().at("loss"));
  EXPECT_EQ(test::metrics_of(run(), "eval").size(), 2u);
}

}  // namespace
}  // namespace gradus
