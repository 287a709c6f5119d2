#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/types.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "gradus_process.h"
#include "metrics_lines.h"
#include "support/temp_dir.h"

// Runs of several ranks, started as a user starts them.

namespace gradus {

using Settings = std::vector<std::string>;

// What one rank's end may take to end the others; ten seconds are promised.
inline constexpr double kEndOfAll = 10.0;

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
                     "eval: {every: 10, tokens: 144}\n"
                     "log: {every: 1}\n");
  }

  const std::filesystem::path& folder() const { return dir_.path(); }
  std::filesystem::path run() const { return folder() / "run"; }

  test::GradusProcess start(int ranks, const Settings& settings) const {
    Settings arguments = {"train", "config.yaml"};
    arguments.insert(arguments.end(), settings.begin(), settings.end());
    if (ranks == 1) return test::GradusProcess(folder(), arguments);
    return test::GradusProcess::mpirun(folder(), ranks, arguments);
  }

  test::ProcessResult train(int ranks, const Settings& settings) const {
    return start(ranks, settings).wait();
  }

  /// Two ranks with a command line each, the second in a folder of its own.
  test::ProcessResult train_apart(const std::string& first, const std::string& second,
                                  const std::string& second_folder = ".") const {
    const std::string binary = test::gradus_binary();
    return test::GradusProcess::shell(
               folder(),
               fmt::format("{4} -np 1 {0} train {1} : -np 1 -wdir {2} {0} train {3}", binary, first,
                           (folder() / second_folder).string(), second, test::mpirun()))
        .wait();
  }

  /// Waits until the run has reported a step.
  void await_step(test::GradusProcess& process, const std::filesystem::path& run,
                  size_t step) const {
    process.run_until([&] { return test::metrics_of(run, "train").size() >= step; });
    ASSERT_TRUE(process.running()) << process.wait().text();
  }

 private:
  test::TempDir dir_;
};

inline size_t count_of(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

inline double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// Whether a process still runs; one that nobody has asked after since its end does not.
inline bool runs(pid_t pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string stat;
  std::getline(file, stat);
  const size_t after = stat.rfind(')');
  return after != std::string::npos && stat.substr(after + 2, 1) != "Z";
}

/// No process of `pids` runs two seconds after mpirun's end.
inline void expect_gone(const std::vector<pid_t>& pids) {
  const auto end = std::chrono::steady_clock::now();
  while (std::ranges::any_of(pids, runs) && seconds_since(end) < 2.0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));  // cores are for the run
  }
  for (const pid_t pid : pids) EXPECT_FALSE(runs(pid)) << "process " << pid;
}

/// mpirun's children in the order of their ranks, which it tells them in their environment.
inline std::vector<pid_t> ranks_of(const test::GradusProcess& process, size_t count) {
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
inline void expect_one_error(const test::ProcessResult& result, double seconds,
                             const std::vector<std::string>& parts) {
  EXPECT_LT(seconds, kEndOfAll);
  EXPECT_NE(result.exit_code, 0);
  EXPECT_EQ(count_of(result.err, "gradus: rank "), 1u) << result.err;
  for (const std::string& part : parts) EXPECT_EQ(count_of(result.text(), part), 1u) << part;
}

}  // namespace gradus
