// Runs of several ranks, started as a user starts them: that they go on in any other layout, stop
// together, and end together when one of them fails.

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <list>
#include <regex>
#include <string>
#include <thread>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/checkpoint_writer.h"
#include "core/rng.h"
#include "gradus_process.h"
#include "metrics_lines.h"
#include "support/temp_dir.h"
#include "support/tensors.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using test::GradusProcess;
using test::ProcessResult;
using testing::HasSubstr;

using Settings = std::vector<std::string>;

// What one rank's end may take to end the others; ten seconds are promised.
constexpr double kEndOfAll = 10.0;

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
                     "optim: {lr: 3.0e-3, warmup_steps: 0, schedule: constant}\n"
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

  /// Two ranks with a command line each, the second in a folder of its own.
  ProcessResult train_apart(const std::string& first, const std::string& second,
                            const std::string& second_folder = ".") const {
    const std::string binary = test::gradus_binary();
    return GradusProcess::shell(
               folder(),
               fmt::format("{4} -np 1 {0} train {1} : -np 1 -wdir {2} {0} train {3}", binary, first,
                           (folder() / second_folder).string(), second, test::mpirun()))
        .wait();
  }

  void go_through_layouts(const std::string& precision) const;

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

/// mpirun's children in the order of their ranks, which it tells them in their environment.
std::vector<pid_t> ranks_of(const GradusProcess& process, size_t count) {
  std::vector<pid_t> ranks(count, 0);
  for (const pid_t pid : process.children()) {
    std::ifstream file(fmt::format("/proc/{}/environ", pid), std::ios::binary);
    const std::string environment(std::istreambuf_iterator<char>(file), {});
    for (size_t rank = 0; rank < count; ++rank) {
      const std::string setting = fmt::format("OMPI_COMM_WORLD_RANK={}", rank) + '\0';
      if (environment.find(setting) != std::string::npos) ranks[rank] = pid;
    }
  }
  for (size_t rank = 0; rank < count; ++rank) EXPECT_NE(ranks[rank], 0) << "rank " << rank;
  return ranks;
}

/// Ended in time, with an error that one rank printed, once, and that has all these parts.
void expect_one_error(const ProcessResult& result, double seconds,
                      const std::vector<std::string>& parts) {
  EXPECT_LT(seconds, kEndOfAll);
  EXPECT_NE(result.exit_code, 0);
  EXPECT_EQ(count_of(result.err, "gradus: rank "), 1u) << result.err;
  for (const std::string& part : parts) EXPECT_EQ(count_of(result.text(), part), 1u) << part;
}

// A run goes on in any layout

constexpr int kStepsOfALeg = 10;
constexpr int kLegs = 5;
constexpr int64_t kGlobalBatch = 12;

/// One run folder, five layouts one after the other, each from the checkpoint of the one before.
void ParallelRuns::go_through_layouts(const std::string& precision) const {
  struct Leg {
    int ranks;
    Settings settings;
  };
  const std::array<Leg, kLegs> legs = {{{2, {"parallel.tp=2", "parallel.sequence=true"}},
                                        {2, {"parallel.dp=2", "parallel.zero=1"}},
                                        {2, {"parallel.pp=2"}},
                                        {4, {"parallel.pp=2", "parallel.dp=2", "parallel.zero=2"}},
                                        {1, {}}}};
  int64_t steps = 0;
  for (const Leg& leg : legs) {
    const std::string going_on = fmt::format("at step {}\n", steps);
    const size_t times = steps == 0 ? 0 : 1;
    steps += kStepsOfALeg;
    Settings settings = leg.settings;
    settings.push_back("train.precision=" + precision);
    settings.push_back(fmt::format("train.steps={}", steps));
    const ProcessResult result = train(leg.ranks, settings);
    ASSERT_EQ(result.exit_code, 0) << result.text();
    EXPECT_EQ(count_of(result.out, "going on from"), times) << result.out;
    EXPECT_EQ(count_of(result.out, going_on), times) << result.out;
    const Checkpoint checkpoint =
        Checkpoint::open(run() / kCheckpointsName / step_folder_name(steps));
    EXPECT_EQ(checkpoint.state().at("samples"), steps * kGlobalBatch);
  }
  const auto lines = test::metrics_of(run(), "train");
  ASSERT_EQ(lines.size(), static_cast<size_t>(kLegs * kStepsOfALeg));
  for (size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(lines[i].at("step"), i + 1);
    EXPECT_EQ(lines[i].at("tokens"), (i + 1) * kGlobalBatch * 16) << "each sample is seen once";
  }
}

/// In fp64, so that another order of sums shows in the last digits only: a sample that is missed,
/// seen twice or masked otherwise would show in the first.
TEST_F(ParallelRuns, ARunGoesOnInEveryOtherLayout) {
  ASSERT_EQ(train(1, {"train.precision=fp64", "run.dir=straight", "train.steps=50"}).exit_code, 0);
  ASSERT_NO_FATAL_FAILURE(go_through_layouts("fp64"));
  const auto lines = test::metrics_of(run(), "train");
  const auto straight = test::metrics_of(folder() / "straight", "train");
  double worst = 0.0;
  for (size_t i = 0; i < lines.size(); ++i) {
    for (const char* key : {"loss", "grad_norm"}) {
      const double expected = straight[i].at(key).get<double>();
      worst = std::max(worst, std::abs(lines[i].at(key).get<double>() - expected) / expected);
    }
  }
  ASSERT_EQ(straight.size(), lines.size());
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

/// Saves the checkpoint of `from` as one of `to`, each weight moved to a neighbour, up or down by
/// lot.
void move_by_one_ulp(const fs::path& from, const fs::path& to, uint64_t lot) {
  std::vector<std::string> refused;
  const Checkpoint checkpoint = open_checkpoint(from, refused);
  CheckpointContents contents{.step = checkpoint.step(), .state = checkpoint.state()};
  for (const char* key : {"step", "format_version"}) contents.state.erase(key);  // saving adds them
  for (const char* name : {"config.yaml", "tokenizer.json"}) {
    contents.files[name] = checkpoint.file(name);
  }
  std::list<std::vector<float>> moved;
  for (const SafetensorsEntry& entry : checkpoint.model().entries()) {
    const ConstTensor tensor = checkpoint.model().tensor(entry.name);
    ASSERT_EQ(tensor.dtype(), DType::fp32);
    const auto* weights = tensor.as<float>();
    std::vector<float>& values = moved.emplace_back(static_cast<size_t>(tensor.numel()));
    for (size_t i = 0; i < values.size(); ++i) {
      const uint32_t word = philox4x32(rng_key(lot, rng_site(entry.name)), 0, i)[0];
      const float towards = std::numeric_limits<float>::infinity() * (word % 2 == 0 ? 1.0f : -1.0f);
      values[i] = std::nextafter(weights[i], towards);
    }
    const Tensor view(values.data(), DType::fp32, Device::cpu, tensor.shape());
    contents.model.push_back(
        {entry.name, DType::fp32, tensor.shape(), {ConstTensorPiece::whole(view)}});
  }
  for (const SafetensorsEntry& entry : checkpoint.optimizer()->entries()) {
    const ConstTensor tensor = checkpoint.optimizer()->tensor(entry.name);
    contents.optimizer.push_back(
        {entry.name, tensor.dtype(), tensor.shape(), {ConstTensorPiece::whole(tensor)}});
  }
  save_checkpoint(to, contents, 1);
}

/// In fp32 another order of sums is another run. How far apart such runs may come is measured: by
/// runs on one rank whose weights after the first step were moved by one unit in the last place.
TEST_F(ParallelRuns, InSinglePrecisionTheCurveStaysInsideTheBandOfOneUlp) {
  // As in train.curve_band: a fifth run would now and then leave the band of four, and a layout
  // rounds otherwise in every step, not in one; and sums over ranks differ before any weight does.
  constexpr int kPerturbed = 4;
  constexpr double kBands = 3.0;
  constexpr double kRounding = 4 * std::numeric_limits<float>::epsilon();

  const auto curve_of = [this](const std::string& run_dir) {
    std::vector<double> losses;
    for (const auto& line : test::metrics_of(folder() / run_dir, "train")) {
      losses.push_back(line.at("loss").get<double>());
    }
    return losses;
  };
  const auto train_alone = [this](const std::string& run_dir, int steps) {
    const ProcessResult result =
        train(1, {"run.dir=" + run_dir, fmt::format("train.steps={}", steps)});
    ASSERT_EQ(result.exit_code, 0) << result.text();
  };
  train_alone("straight", 1);
  std::vector<std::string> moved_runs;
  for (uint64_t lot = 0; lot < kPerturbed; ++lot) {
    moved_runs.push_back(fmt::format("moved{}", lot));
    move_by_one_ulp(folder() / "straight", folder() / moved_runs.back(), lot);
  }
  train_alone("straight", kLegs * kStepsOfALeg);
  const std::vector<double> straight = curve_of("straight");
  ASSERT_EQ(straight.size(), static_cast<size_t>(kLegs * kStepsOfALeg));
  EXPECT_LT(straight.back(), 0.8 * straight.front()) << "the curve must fall to mean something";
  std::vector<double> band(straight.size(), 0.0);
  for (const std::string& moved_run : moved_runs) {
    train_alone(moved_run, kLegs * kStepsOfALeg);
    const std::vector<double> curve = curve_of(moved_run);
    ASSERT_EQ(curve.size(), straight.size() - 1) << "it went on from the first step";
    for (size_t i = 1; i < band.size(); ++i) {
      band[i] = std::max(band[i], std::abs(curve[i - 1] - straight[i]));
    }
  }
  for (size_t i = 1; i < band.size(); ++i) band[i] = std::max(band[i], band[i - 1]);

  ASSERT_NO_FATAL_FAILURE(go_through_layouts("fp32"));
  const std::vector<double> curve = curve_of("run");
  double worst = 0.0;
  for (size_t i = 0; i < curve.size(); ++i) {
    const double deviation = std::abs(curve[i] - straight[i]);
    worst = std::max(worst, deviation);
    EXPECT_LE(deviation, kBands * band[i] + kRounding * straight[i]) << "step " << i + 1;
  }
  std::cout << "largest deviation " << worst << ", band of one ulp " << band.back() << ", loss "
            << straight.front() << " to " << straight.back() << '\n';
}

// Stopping

enum class StoppedBy { script, one_rank };

/// SIGTERM to scripts/mpirun.sh, which is there because mpirun itself would end the ranks a second
/// later, and to a single rank.
TEST_F(ParallelRuns, TerminatingTheJobSavesOneCheckpointAndItGoesOnToTheBit) {
  const Settings layout = {"parallel.tp=2", "parallel.dp=2", "train.steps=300", "eval.every=0"};
  Settings straight = layout;
  straight.emplace_back("run.dir=straight");
  ASSERT_EQ(train(4, straight).exit_code, 0);

  for (const StoppedBy by : {StoppedBy::script, StoppedBy::one_rank}) {
    const bool script = by == StoppedBy::script;
    const std::string name = script ? "stopped_by_script" : "stopped_by_rank";
    SCOPED_TRACE(name);
    const fs::path stopped_run = folder() / name;
    Settings settings = layout;
    settings.push_back("run.dir=" + name);
    GradusProcess process =
        script ? GradusProcess::shell(
                     folder(), fmt::format("{}/scripts/mpirun.sh -np 4 {} train config.yaml {}",
                                           GRADUS_SOURCE_DIR, test::gradus_binary(),
                                           fmt::join(settings, " ")))
               : start(4, settings);
    await_step(process, stopped_run, 20);
    if (script) {
      process.send(SIGTERM);
    } else {
      ::kill(ranks_of(process, 4)[3], SIGTERM);
    }
    const ProcessResult stopped = process.wait();
    EXPECT_EQ(stopped.exit_code, 0) << stopped.text();
    std::smatch found;
    const std::regex line(fmt::format("stopped by {} after step (\\d+)\\. To go on: (.*)",
                                      script ? "SIGUSR1" : "a signal to another rank"));
    ASSERT_TRUE(std::regex_search(stopped.out, found, line)) << stopped.text();
    EXPECT_EQ(count_of(stopped.out, "To go on: "), 1u) << stopped.out;
    const int64_t step = std::stoll(found[1]);
    ASSERT_LT(step, 300) << "it ended before the signal came";
    EXPECT_EQ(test::metrics_of(stopped_run, "train").back().at("step"), step);
    // One checkpoint, whole, and nothing half made beside it.
    const fs::path checkpoints = stopped_run / kCheckpointsName;
    EXPECT_EQ(std::distance(fs::directory_iterator(checkpoints), {}), 1);
    EXPECT_EQ(Checkpoint::open(checkpoints / step_folder_name(step)).state().at("samples"),
              step * kGlobalBatch);

    const ProcessResult end = GradusProcess::shell(folder(), found[2]).wait();
    ASSERT_EQ(end.exit_code, 0) << end.text();
    for (const char* file : {"model.safetensors", "optimizer.safetensors", "state.json"}) {
      const fs::path last = fs::path(kCheckpointsName) / step_folder_name(300) / file;
      EXPECT_TRUE(test::read_file(stopped_run / last) ==
                  test::read_file(folder() / "straight" / last))
          << file << " differs from the uninterrupted run's";
    }
  }
}

// The end of one rank is the end of all

TEST_F(ParallelRuns, KillingOneRankEndsAll) {
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

TEST_F(ParallelRuns, AnErrorOfOneRankAtTheStartEndsAll) {
  // The second rank reads another configuration, with a key that there is not.
  test::write_file(folder() / "other.yaml", "base: config.yaml\ntrain: {stepz: 3}\n");
  const auto begin = Clock::now();
  const ProcessResult result = train_apart("config.yaml train.steps=100000", "other.yaml");
  expect_one_error(result, seconds_since(begin),
                   {"gradus: rank 1 of 2: config error: ", "other.yaml:2: train.stepz"});
}

/// A folder of the same name that the ranks do not share, on disks of their own: the first
/// checkpoint shows it, in mid run, with the other rank waiting.
TEST_F(ParallelRuns, AnErrorOfOneRankInMidRunEndsAll) {
  fs::create_directories(folder() / "elsewhere" / "run");
  test::write_file(folder() / "elsewhere" / "run" / "config.yaml", "left by an earlier run");
  const std::string settings = " train.steps=100000 checkpoint.every=30";
  const auto begin = Clock::now();
  const ProcessResult result = train_apart(
      "config.yaml" + settings, "../config.yaml data.train=[../data]" + settings, "elsewhere");
  expect_one_error(result, seconds_since(begin),
                   {"gradus: rank 1 of 2: i/o error: run/checkpoints/", "model.safetensors",
                    "No such file or directory"});
  EXPECT_EQ(test::metrics_of(run(), "train").size(), 30u);
  EXPECT_TRUE(list_step_folders(run() / kCheckpointsName).empty()) << "half a checkpoint";

  // And the next run is not disturbed by what is left of it.
  ASSERT_EQ(train(1, {"train.steps=40"}).exit_code, 0);
  EXPECT_EQ(std::distance(fs::directory_iterator(run() / kCheckpointsName), {}), 1);
}

TEST_F(ParallelRuns, ARunFolderThatTheRanksDoNotShareIsRefused) {
  fs::create_directory(folder() / "elsewhere");
  const auto begin = Clock::now();
  const ProcessResult result =
      train_apart("config.yaml", "../config.yaml data.train=[../data]", "elsewhere");
  expect_one_error(result, seconds_since(begin),
                   {"gradus: rank 1 of 2: i/o error: run.dir run is not the folder that rank 0"});
}

TEST_F(ParallelRuns, RanksThatReadDifferentDataAreRefused) {
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
  const ProcessResult reversed = train_apart(
      settings, "config.yaml data.train=[other/data,data] data.val=[data] parallel.tp=2");
  expect_one_error(reversed, seconds_since(begin),
                   {"data error: the ranks read different data", "of other content or order"});
}

TEST_F(ParallelRuns, RanksThatFindDifferentCheckpointsAreRefused) {
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

TEST_F(ParallelRuns, RanksWithDifferentSettingsAreRefused) {
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

TEST_F(ParallelRuns, ARankThatIsStoppedIsFoundByTheWatchdog) {
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
    EXPECT_GE(seconds, kTimeout);
    expect_one_error(result, seconds - kTimeout,
                     {"is stuck: no progress for 3 s",
                      fmt::format("rank {} does not answer: it is stopped or gone", stopped)});
    const std::regex collective(
        "gradus: rank \\d of 3: MPI error: \\w+ \\d+ of group (world|dp) \\(ranks 0 1 2, ");
    EXPECT_TRUE(std::regex_search(result.err, collective)) << result.err;
    expect_gone(ranks);
  }
}

struct Refused {
  int ranks;
  Settings settings;
  const char* message;
};

TEST_F(ParallelRuns, LayoutsThatCannotBeAreRefusedWithTheArithmetic) {
  const std::vector<Refused> cases = {
      {3, {"parallel.tp=2"}, "3 ranks cannot be divided into parallel.tp 2"},
      {3, {"parallel.tp=3"}, "heads 4 are not divisible by tp 3: use tp 1, 2 or 4"},
      {2, {"parallel.dp=3", "train.micro_batch=1"}, "= 3 ranks, and 2 were started: use dp 2"},
      {2, {"parallel.pp=2", "model.layers=1"}, "layers 1 are too few for pp 2"},
      {3,
       {"train.micro_batch=3"},
       "train.global_batch 12 is not a multiple of train.micro_batch 3 × dp 3: use global_batch 9 "
       "or 18"},
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

TEST_F(ParallelRuns, ThereIsOneLog) {
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
