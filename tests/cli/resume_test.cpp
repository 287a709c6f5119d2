// A run that is stopped and goes on gives the bytes of one that was left alone: real processes,
// real signals, at moments that differ from one execution of the test to the next.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <iostream>
#include <optional>
#include <random>
#include <regex>
#include <thread>

#include "gradus_process.h"
#include "metrics_lines.h"
#include "support/temp_dir.h"
#include "support/tensors.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;
using test::GradusProcess;
using test::ProcessResult;

constexpr int64_t kSteps = 300;

/// Three epochs and a part of the fourth: 281 sequences an epoch, six a step.
std::string config_text(const std::string& precision, const std::string& recompute) {
  return "seed: 5\n"
         "model: {layers: 2, channels: 32, heads: 4, context: 16, dropout: 0.2}\n"
         "data: {train: [data], tokenizer: char}\n"
         "optim: {lr: 1.0e-2, min_lr: 1.0e-3, warmup_steps: 10}\n"
         "train: {steps: 300, micro_batch: 3, global_batch: 6, threads: 2, precision: " +
         precision + ", recompute: " + recompute +
         "}\n"
         "checkpoint: {every: 60, keep: 2}\n"
         "eval: {every: 70, tokens: 96}\n"
         "log: {every: 1}\n";
}

fs::path last_checkpoint(const fs::path& run) { return run / "checkpoints" / "step-00000300"; }

void expect_same_run(const fs::path& run, const fs::path& straight) {
  for (const char* name : {"model.safetensors", "optimizer.safetensors", "state.json"}) {
    EXPECT_TRUE(test::read_file(last_checkpoint(run) / name) ==
                test::read_file(last_checkpoint(straight) / name))
        << name << " differs from the uninterrupted run's";
  }
  const auto steps = test::metrics_of(run, "train");
  const auto expected = test::metrics_of(straight, "train");
  ASSERT_EQ(expected.size(), static_cast<size_t>(kSteps));
  ASSERT_EQ(steps.size(), expected.size()) << "each step has one line";
  for (size_t i = 0; i < steps.size(); ++i) {
    for (const char* key : {"step", "loss", "grad_norm", "lr", "tokens", "skipped"}) {
      EXPECT_EQ(steps[i].at(key), expected[i].at(key)) << key << " of line " << i;
    }
  }
}

class Resume : public testing::Test {
 protected:
  void SetUp() override { test::prepare_text(folder(), test::some_text(5000)); }

  const fs::path& folder() const { return dir_.path(); }

  void write_config(const std::string& text) const {
    test::write_file(folder() / "config.yaml", text);
  }

  /// The folder of a run of the same configuration that nobody disturbed.
  fs::path straight_run(const std::vector<std::string>& settings = {}) const {
    std::vector<std::string> arguments = {"train", "config.yaml", "run.dir=straight"};
    arguments.insert(arguments.end(), settings.begin(), settings.end());
    const ProcessResult result = test::run_gradus(folder(), arguments);
    EXPECT_EQ(result.exit_code, 0) << result.text();
    return folder() / "straight";
  }

  /// Sends the signal once the run has reported `step`, some milliseconds later. Returns the step
  /// that was last reported before.
  int64_t send_after(GradusProcess& process, const fs::path& run, int64_t step, int signal) {
    int64_t reported = 0;
    while (reported < step && process.running()) {
      const auto lines = test::metrics_of(run, "train");
      if (!lines.empty()) reported = lines.back().at("step").get<int64_t>();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));  // cores are for the run
    }
    std::this_thread::sleep_for(
        std::chrono::microseconds(std::uniform_int_distribution<int>(0, 5000)(rng_)));
    process.send(signal);
    return reported;
  }

  std::mt19937_64 rng_{test::test_seed()};

 private:
  test::TempDir dir_;
};

/// What an interrupted run says at its end.
struct Stopped {
  int64_t step = 0;
  std::string command;
};
std::optional<Stopped> stopped(const ProcessResult& result, const std::string& signal) {
  std::smatch found;
  const std::regex line("stopped by " + signal + " after step (\\d+)\\. To go on: (.*)");
  if (result.exit_code != 0 || !std::regex_search(result.out, found, line)) {
    ADD_FAILURE() << "exit code " << result.exit_code << ", signal " << result.signal << "\n"
                  << result.text();
    return std::nullopt;
  }
  return Stopped{std::stoll(found[1]), found[2]};
}

struct Case {
  const char* precision;
  const char* recompute;
};

class ResumeBitwise : public Resume, public testing::WithParamInterface<Case> {};

TEST_P(ResumeBitwise, TwoInterruptionsByTerminationChangeNoByte) {
  write_config(config_text(GetParam().precision, GetParam().recompute));
  const fs::path straight = straight_run();
  // A name that a shell would take apart, in the command that is printed.
  const std::string name = "it's a run; 5$ & *";
  const fs::path run = folder() / name;

  GradusProcess first(folder(), {"train", "config.yaml", "run.dir=" + name});
  const int64_t before = send_after(first, run, 30, SIGTERM);
  const auto after_first = stopped(first.wait(), "SIGTERM");
  ASSERT_TRUE(after_first);
  EXPECT_GE(after_first->step, before);
  ASSERT_LT(after_first->step, kSteps) << "it ended before the signal came";
  EXPECT_TRUE(fs::exists(run / "checkpoints" / fmt::format("step-{:08}", after_first->step)));

  GradusProcess second = GradusProcess::shell(folder(), after_first->command);
  send_after(second, run, after_first->step + 40, SIGTERM);
  const auto after_second = stopped(second.wait(), "SIGTERM");
  ASSERT_TRUE(after_second);
  EXPECT_GT(after_second->step, after_first->step);
  ASSERT_LT(after_second->step, kSteps) << "it ended before the signal came";

  const ProcessResult end = GradusProcess::shell(folder(), after_second->command).wait();
  ASSERT_EQ(end.exit_code, 0) << end.text();
  std::cout << "stopped after steps " << after_first->step << " and " << after_second->step << '\n';
  expect_same_run(run, straight);
}

INSTANTIATE_TEST_SUITE_P(Settings, ResumeBitwise,
                         testing::Values(Case{"fp32", "none"}, Case{"bf16", "selective"},
                                         Case{"fp32", "full"}),
                         [](const auto& c) {
                           return std::string(c.param.precision) + "_" + c.param.recompute;
                         });

TEST_F(Resume, AKilledRunGoesOnFromItsLastCheckpoint) {
  write_config(config_text("bf16", "none"));
  const fs::path straight = straight_run();
  const fs::path run = folder() / "run";
  const std::vector<std::string> command = {"train", "config.yaml", "run.dir=run"};
  GradusProcess killed(folder(), command);
  send_after(killed, run, 75, SIGKILL);
  ASSERT_EQ(killed.wait().signal, SIGKILL) << "it ended before the signal came";

  const ProcessResult end = test::run_gradus(folder(), command);
  ASSERT_EQ(end.exit_code, 0) << end.text();
  EXPECT_TRUE(std::regex_search(end.out, std::regex("going on from .*step-00000(06|12|18|24)0")))
      << end.out;
  expect_same_run(run, straight);
}

TEST_F(Resume, WithoutRegularCheckpointsThereIsOneWhenItIsStoppedAndOneAtTheEnd) {
  write_config(config_text("fp32", "none"));
  const std::vector<std::string> settings = {"checkpoint.every=0", "eval.every=0"};
  const fs::path straight = straight_run(settings);
  EXPECT_EQ(std::distance(fs::directory_iterator(straight / "checkpoints"), {}), 1);
  EXPECT_TRUE(test::metrics_of(straight, "eval").empty());

  const fs::path run = folder() / "run";
  GradusProcess process(folder(), {"train", "config.yaml", "run.dir=run", settings[0], settings[1],
                                   "checkpoint.resume=never"});
  send_after(process, run, 50, SIGINT);
  const auto after = stopped(process.wait(), "SIGINT");
  ASSERT_TRUE(after);
  // `never` would refuse the folder that now holds a checkpoint.
  EXPECT_TRUE(after->command.ends_with(" checkpoint.resume=never checkpoint.resume=auto"))
      << after->command;
  const ProcessResult end = GradusProcess::shell(folder(), after->command).wait();
  ASSERT_EQ(end.exit_code, 0) << end.text();
  EXPECT_EQ(std::distance(fs::directory_iterator(run / "checkpoints"), {}), 2);
  expect_same_run(run, straight);
}

TEST_F(Resume, AnEvaluationThatASignalPutOffIsMadeUp) {
  write_config(config_text("fp32", "none"));
  const std::vector<std::string> settings = {"eval.every=1", "train.steps=120",
                                             "checkpoint.every=0"};
  const fs::path straight = straight_run(settings);
  const fs::path run = folder() / "run";
  GradusProcess process(
      folder(), {"train", "config.yaml", "run.dir=run", settings[0], settings[1], settings[2]});
  send_after(process, run, 40, SIGTERM);
  const auto after = stopped(process.wait(), "SIGTERM");
  ASSERT_TRUE(after);
  // Killed after it was made up and before the next checkpoint, it is made again and written once.
  GradusProcess killed = GradusProcess::shell(folder(), after->command);
  send_after(killed, run, after->step + 3, SIGKILL);
  ASSERT_EQ(killed.wait().signal, SIGKILL) << "it ended before the signal came";
  const ProcessResult end = GradusProcess::shell(folder(), after->command).wait();
  ASSERT_EQ(end.exit_code, 0) << end.text();
  const auto evaluations = test::metrics_of(run, "eval");
  ASSERT_EQ(evaluations.size(), 120u);
  EXPECT_EQ(evaluations, test::metrics_of(straight, "eval"));
}

TEST_F(Resume, GoingBackWithinARunIsRefusedHoweverItIsWritten) {
  write_config(config_text("fp32", "none"));
  const fs::path run = straight_run();  // keeps steps 240 and 300
  const std::string metrics = test::read_file(run / "metrics.jsonl");
  const auto resume = [&](const std::string& dir, const std::string& checkpoint) {
    return test::run_gradus(folder(), {"train", "config.yaml", "run.dir=" + dir, "train.steps=310",
                                       "checkpoint.resume=" + checkpoint});
  };
  for (const char* older :
       {"straight/checkpoints/step-00000240", "straight/checkpoints/step-00000240/",
        "./straight/../straight/checkpoints/step-00000240//"}) {
    const ProcessResult result = resume("straight", older);
    EXPECT_EQ(result.exit_code, 1) << older << "\n" << result.text();
    EXPECT_NE(
        result.err.find("checkpoint.resume goes back to step 240 of straight, which goes on to "
                        "step 300"),
        std::string::npos)
        << result.err;
    EXPECT_EQ(test::read_file(run / "metrics.jsonl"), metrics);
  }
  fs::create_directory_symlink("straight/checkpoints/step-00000240", folder() / "link");
  EXPECT_NE(resume("straight", "link").err.find("goes back to step 240"), std::string::npos);
  EXPECT_EQ(resume("branch", "straight/checkpoints/step-00000240/").exit_code, 0);
  // Nothing is beyond the only one, whatever it is called.
  fs::remove_all(run / "checkpoints" / "step-00000300");
  fs::rename(run / "checkpoints" / "step-00000240", run / "checkpoints" / "best");
  const ProcessResult renamed = resume("straight", "straight/checkpoints/best");
  EXPECT_EQ(renamed.exit_code, 0) << renamed.text();
}

TEST_F(Resume, ARunWithoutValidationTextIsToldSoAndDividesNothingByZero) {
  write_config(config_text("fp32", "none"));
  fs::remove(folder() / "data" / "val.bin");
  const ProcessResult result =
      test::run_gradus(folder(), {"train", "config.yaml", "run.dir=run", "train.steps=12",
                                  "log.every=5", "checkpoint.every=0"});
  ASSERT_EQ(result.exit_code, 0) << result.text();
  EXPECT_NE(result.out.find("no validation text"), std::string::npos) << result.out;
  std::vector<int64_t> steps;
  for (const auto& line : test::metrics_lines(folder() / "run")) {
    steps.push_back(line.at("step").get<int64_t>());
  }
  EXPECT_EQ(steps, (std::vector<int64_t>{1, 5, 10, 12}));
}

}  // namespace
}  // namespace gradus
