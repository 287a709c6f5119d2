// What signals, a reader that goes away and missing descriptors do to a run.

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

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

/// A pipe that holds little and is read when the test says so: who writes more waits, at a place
/// that the test knows.
class SlowReader {
 public:
  explicit SlowReader(const fs::path& path) : path_(path) {
    if (::mkfifo(path.c_str(), 0600) != 0) fail("mkfifo");
    descriptor_ = ::open(path.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (descriptor_ < 0 || ::fcntl(descriptor_, F_SETPIPE_SZ, kBytes) < 0) fail("open");
  }
  ~SlowReader() { ::close(descriptor_); }
  SlowReader(const SlowReader&) = delete;
  SlowReader& operator=(const SlowReader&) = delete;

  void fill() const {
    const std::array<char, kBytes> bytes{};
    if (::write(descriptor_, bytes.data(), bytes.size()) != kBytes) fail("write");
  }
  bool full() const {
    int bytes = 0;
    if (::ioctl(descriptor_, FIONREAD, &bytes) != 0) fail("ioctl");
    return bytes > kBytes - 200;
  }
  /// Reads until the process has ended.
  ProcessResult drain(GradusProcess& process) const {
    std::array<char, kBytes> bytes{};
    while (process.running()) {
      if (::read(descriptor_, bytes.data(), bytes.size()) <= 0) {
        std::this_thread::sleep_for(std::chrono::milliseconds(2));  // cores are for the run
      }
    }
    return process.wait();
  }

 private:
  static constexpr int kBytes = 4096;
  [[noreturn]] void fail(const char* action) const {
    throw std::system_error(errno, std::generic_category(),
                            fmt::format("{} {}", action, path_.string()));
  }
  fs::path path_;
  int descriptor_ = -1;
};

class Signals : public testing::Test {
 protected:
  void SetUp() override {
    test::prepare_text(folder(), test::some_text(3000));
    test::write_file(folder() / "config.yaml",
                     "run: {dir: run}\n"
                     "model: {layers: 1, channels: 16, heads: 2, context: 8}\n"
                     "data: {train: [data], tokenizer: char}\n"
                     "optim: {warmup_steps: 0}\n"
                     "train: {steps: 1000000, micro_batch: 2, global_batch: 2, precision: fp32, "
                     "threads: 1}\n"
                     "checkpoint: {every: 0}\n"
                     "eval: {every: 0}\n"
                     "log: {every: 1}\n");
  }

  const fs::path& folder() const { return dir_.path(); }
  fs::path run() const { return folder() / "run"; }

  /// Standard error goes to a file that can be read while the program runs.
  GradusProcess train(const std::string& redirections, const std::string& settings = "",
                      const std::string& before = "") const {
    return GradusProcess::shell(
        folder(), fmt::format("/bin/sh -c \"{} exec {} train config.yaml {} 2>said {}\"", before,
                              test::gradus_binary(), settings, redirections));
  }
  std::string said() const {
    return fs::exists(folder() / "said") ? test::read_file(folder() / "said") : "";
  }
  void await_said(GradusProcess& process, const std::string& text) const {
    process.run_until([&] { return said().find(text) != std::string::npos; });
    ASSERT_THAT(said(), HasSubstr(text));
  }
  void await_step(GradusProcess& process) const {
    process.run_until([&] { return !test::metrics_lines(run()).empty(); });
    ASSERT_TRUE(process.running()) << process.wait().text() << said();
  }
  std::string lock() const {
    const fs::path file = run() / ".lock";
    return fs::exists(file) ? test::read_file(file) : "";
  }
  size_t checkpoints() const {
    std::error_code none;
    const fs::directory_iterator found(run() / "checkpoints", none);
    return none ? 0 : static_cast<size_t>(std::distance(found, {}));
  }

 private:
  test::TempDir dir_;
};

/// It waits for the reader of its log, somewhere in its steps.
class SignalsToAWaitingRun : public Signals {
 protected:
  void SetUp() override {
    Signals::SetUp();
    reader_.emplace(folder() / "out");
    process_.emplace(train(">out"));
    process_->run_until([&] { return reader_->full(); });
    ASSERT_TRUE(process_->running()) << said();
  }
  ProcessResult drain() { return reader_->drain(*process_); }
  GradusProcess& process() { return *process_; }

 private:
  std::optional<SlowReader> reader_;
  std::optional<GradusProcess> process_;
};

constexpr const char* kStopping = "stopping after this step";
constexpr const char* kQuitting = "quitting now";
/// Longer than what counts as one wish.
constexpr std::chrono::milliseconds kAnotherWish{1100};

TEST_F(SignalsToAWaitingRun, ASignalIsAnsweredBeforeTheStepEnds) {
  process().send(SIGINT);
  await_said(process(),
             "gradus: SIGINT: stopping after this step, or the next that is applied, which is then "
             "saved; again to quit now\n");
  EXPECT_EQ(drain().exit_code, 0) << said();
  EXPECT_EQ(checkpoints(), 1u);
}

TEST_F(SignalsToAWaitingRun, TwoWithinASecondAreOne) {
  process().send(SIGINT);
  process().send(SIGTERM);
  process().send(SIGINT);
  await_said(process(), kStopping);
  EXPECT_EQ(drain().exit_code, 0) << said();
  EXPECT_THAT(said(), Not(HasSubstr(kQuitting)));
  EXPECT_EQ(checkpoints(), 1u);
}

TEST_F(SignalsToAWaitingRun, ALaterInterruptEndsItAtOnceAndSaysWhatIsLost) {
  process().send(SIGTERM);
  await_said(
      process(),
      "gradus: SIGTERM: stopping after this step, or the next that is applied, which is then "
      "saved; SIGINT (Ctrl-C) to quit now\n");
  std::this_thread::sleep_for(kAnotherWish);
  process().send(SIGINT);
  const ProcessResult result = process().wait();
  EXPECT_EQ(result.signal, SIGINT) << result.exit_code;
  // Its step may have ended, and been saved, before it had to wait for its reader.
  const size_t steps = test::metrics_lines(run()).size();
  const size_t kept = checkpoints() == 0 ? 0 : steps;
  EXPECT_THAT(said(),
              HasSubstr(fmt::format("gradus: SIGINT again: quitting now, and losing {} steps and "
                                    "the one begun; the run can go on from step {}\n",
                                    steps - kept, kept)));
}

TEST_F(SignalsToAWaitingRun, SchedulersMayRepeatTheirs) {
  for (const int signal : {SIGUSR1, SIGTERM, SIGUSR1, SIGHUP, SIGTERM}) {
    process().send(signal);
    await_said(process(), kStopping);
    if (signal == SIGUSR1) std::this_thread::sleep_for(kAnotherWish);
  }
  EXPECT_EQ(drain().exit_code, 0) << said();
  EXPECT_EQ(checkpoints(), 1u);
}

TEST_F(Signals, EachThatAsksForAnEndSaves) {
  for (const auto& [signal, name] : {std::pair{SIGTERM, "SIGTERM"}, std::pair{SIGINT, "SIGINT"},
                                     std::pair{SIGHUP, "SIGHUP"}, std::pair{SIGUSR1, "SIGUSR1"}}) {
    SCOPED_TRACE(name);
    fs::remove_all(run());
    GradusProcess process = train("");
    await_step(process);
    process.send(signal);
    const ProcessResult result = process.wait();
    EXPECT_EQ(result.exit_code, 0) << result.text() << said();
    EXPECT_THAT(result.out, HasSubstr(fmt::format("stopped by {} after step ", name)));
    EXPECT_EQ(checkpoints(), 1u);
  }
}

TEST_F(Signals, WhatItWasStartedToIgnoreIsIgnored) {
  for (const auto& [signal, name] : {std::pair{SIGHUP, "HUP"}, std::pair{SIGINT, "INT"}}) {
    SCOPED_TRACE(name);
    fs::remove_all(run());
    GradusProcess process = train("", "train.steps=300", fmt::format("trap '' {};", name));
    await_step(process);
    process.send(signal);
    const ProcessResult result = process.wait();
    EXPECT_EQ(result.exit_code, 0) << result.text();
    EXPECT_THAT(result.out, HasSubstr("step    300/300"));
    EXPECT_EQ(said(), "");
  }
}

TEST_F(Signals, BeforeTrainingBeginsTheyEndItAtOnce) {
  ASSERT_EQ(train("", "train.steps=3").wait().exit_code, 0) << said();
  const std::string metrics = test::read_file(run() / "metrics.jsonl");
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGUSR1}) {
    SCOPED_TRACE(signal);
    const fs::path pipe = folder() / fmt::format("out{}", signal);
    const SlowReader reader(pipe);
    reader.fill();  // its first line, that it goes on from a checkpoint, waits for a reader
    GradusProcess process = train(">" + pipe.string(), "train.steps=6");
    const std::string holder = fmt::format("process {} on", process.pid());
    process.run_until([&] { return lock().find(holder) != std::string::npos; });
    process.send(signal);
    const ProcessResult result = process.wait();
    EXPECT_EQ(result.signal, signal) << result.exit_code << said();
    EXPECT_THAT(said(), HasSubstr("ended before training began; nothing is lost\n"));
    EXPECT_EQ(test::read_file(run() / "metrics.jsonl"), metrics);
  }
  EXPECT_EQ(train("", "train.steps=6").wait().exit_code, 0) << said();
}

// Readers that go away

/// Descriptor 7, which a program that is started inherits: a pipe that nobody reads.
class PipeWithoutReader {
 public:
  static constexpr int kNumber = 7;
  PipeWithoutReader() {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0 || ::dup2(ends[1], kNumber) < 0) {
      throw std::system_error(errno, std::generic_category(), "pipe");
    }
    ::close(ends[0]);
    ::close(ends[1]);
  }
  ~PipeWithoutReader() { ::close(kNumber); }
  PipeWithoutReader(const PipeWithoutReader&) = delete;
  PipeWithoutReader& operator=(const PipeWithoutReader&) = delete;
};

TEST_F(Signals, ARunOutlivesTheReaderOfItsLog) {
  const PipeWithoutReader pipe;
  GradusProcess process = train(">&7");
  await_step(process);
  await_said(process, "cannot write the log to standard output: Broken pipe; going on without\n");
  process.send(SIGINT);
  EXPECT_EQ(process.wait().exit_code, 0) << said();
  EXPECT_EQ(checkpoints(), 1u);
  const std::string all = said();
  EXPECT_EQ(all.find("Broken pipe"), all.rfind("Broken pipe")) << "said once";

  // Nor does it need anybody to complain to.
  fs::remove_all(run());
  GradusProcess unheard = train(">&7 2>&7");
  await_step(unheard);
  unheard.send(SIGINT);
  EXPECT_EQ(unheard.wait().exit_code, 0);
  EXPECT_EQ(checkpoints(), 1u);
}

TEST_F(Signals, AShortCommandEndsQuietlyWithItsReader) {
  const PipeWithoutReader pipe;
  for (const char* command : {"info", "plan config.yaml", "data inspect data", "--help"}) {
    SCOPED_TRACE(command);
    const ProcessResult result =
        GradusProcess::shell(folder(), fmt::format("{} {} >&7", test::gradus_binary(), command))
            .wait();
    EXPECT_EQ(result.signal, SIGPIPE) << result.exit_code;
    EXPECT_EQ(result.err, "");
  }
}

TEST_F(Signals, WithoutStandardDescriptorsNoFileGetsTheirNumbers) {
  ProcessResult result =
      GradusProcess::shell(folder(), fmt::format("{} train config.yaml train.steps=5 "
                                                 "run.dir=closed checkpoint.every=1 <&- >&- 2>&-",
                                                 test::gradus_binary()))
          .wait();
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(test::metrics_of(folder() / "closed", "train").size(), 5u);
  EXPECT_EQ(test::run_gradus(folder(), {"generate", "closed", "--tokens", "3"}).err, "")
      << "and each file of its checkpoints is whole";
  result = GradusProcess::shell(folder(), test::gradus_binary() + " info >&-").wait();
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("cannot write to standard output: Bad file descriptor"));
}

// Outputs that are full

TEST_F(Signals, OutputThatIsFullIsAnErrorOfEveryCommandButTrain) {
  ASSERT_EQ(train("", "train.steps=3").wait().exit_code, 0) << said();
  for (const char* command :
       {"info", "plan config.yaml", "generate run --tokens 1000000", "data inspect data",
        "data prepare --out other text.txt", "bench step config.yaml --steps 1", "--help",
        "train --help", "--version", "verify config.yaml"}) {
    SCOPED_TRACE(command);
    const ProcessResult result =
        GradusProcess::shell(folder(),
                             fmt::format("{} {} >/dev/full", test::gradus_binary(), command))
            .wait();
    EXPECT_EQ(result.exit_code, 1) << result.signal;
    EXPECT_EQ(result.err,
              "gradus: i/o error: cannot write to standard output: No space left on device\n");
  }
}

TEST_F(Signals, ARunGoesOnWithoutItsLog) {
  EXPECT_EQ(train(">/dev/full", "train.steps=5").wait().exit_code, 0) << said();
  EXPECT_EQ(said(),
            "gradus: cannot write the log to standard output: No space left on device; going on "
            "without\n");
  EXPECT_EQ(checkpoints(), 1u);
  EXPECT_EQ(test::metrics_of(run(), "train").size(), 5u);
}

}  // namespace
}  // namespace gradus
