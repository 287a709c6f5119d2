#include "train/metrics.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>

#include "core/arena.h"
#include "support/temp_dir.h"
#include "train/metrics_history.h"
#include "train/run_records.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::MatchesRegex;
using testing::SizeIs;

std::string line(int64_t step, const std::string& event = "train") {
  return fmt::format("{{\"event\":\"{}\",\"step\":{}}}\n", event, step);
}

class Metrics : public testing::Test {
 protected:
  fs::path file() const { return dir_ / "metrics.jsonl"; }
  fs::path write(const std::string& text) const { return test::write_file(file(), text); }
  std::string text() const { return test::read_file(file()); }
  const fs::path& folder() const { return dir_.path(); }

 private:
  test::TempDir dir_;
};

// What a resumed run keeps

TEST_F(Metrics, LinesOfLaterStepsAreDropped) {
  write(line(1) + line(2) + line(2, "eval") + line(3) + line(3, "eval"));
  EXPECT_THAT(drop_later_metrics(file(), 2, false), IsEmpty());
  EXPECT_EQ(text(), line(1) + line(2) + line(2, "eval"));
  EXPECT_THAT(drop_later_metrics(file(), 2, true), IsEmpty());
  EXPECT_EQ(text(), line(1) + line(2));
}

TEST_F(Metrics, AFileOfWhichAllIsKeptIsNotTouched) {
  write(line(1) + "{\"note\":\"mine\"}\n" + line(2));
  struct stat before {};
  ASSERT_EQ(::stat(file().c_str(), &before), 0);
  EXPECT_THAT(drop_later_metrics(file(), 2, false), IsEmpty());
  struct stat after {};
  ASSERT_EQ(::stat(file().c_str(), &after), 0);
  EXPECT_EQ(before.st_ino, after.st_ino);
}

TEST_F(Metrics, EachLineThatIsNotOneIsNamedAndLeftOut) {
  const std::vector<std::string> hostile = {
      "{\"step\":\"x\"}\n",
      "{\"step\":1e400}\n",
      "{\"step\":18446744073709551615}\n",
      "{\"step\":99999999999999999999999}\n",
      "{\"step\":1.5}\n",
      "{\"step\":null}\n",
      "{\"step\":[1]}\n",
      "{\"step\":{\"step\":1}}\n",
      "{\"step\":1,\"loss\":1e400}\n",
      "{\"step\":1,\"event\":\"\xff\"}\n",
      "[1]\n",
      "1\n",
      "\"step\"\n",
      "\n",
      "step 3\n",
      "{\"step\":1} {\"step\":2}\n",
      std::string("\0\0\0\n", 4),
      std::string(200000, '[') + "\n",
      std::string(200000, '[') + std::string(200000, ']') + "\n",
      "{\"step\":1,\"a\":\"" + std::string(size_t{2} << 20, 'x') + "\"}\n",
  };
  for (const std::string& bad : hostile) {
    SCOPED_TRACE(bad.substr(0, 60));
    write(line(1) + bad + line(2));
    EXPECT_THAT(drop_later_metrics(file(), 5, false),
                ElementsAre(HasSubstr("metrics.jsonl:2 is left out: ")));
    EXPECT_EQ(text(), line(1) + line(2));
  }
}

TEST_F(Metrics, WhatIsOddAndYetALineIsKept) {
  const std::string odd = "{\"step\": 2, \"deep\": " + std::string(200000, '[') +
                          std::string(200000, ']') + "}\n{\"a\":{\"step\":99}}\r\n{\"step\":-3}\n";
  write(odd);
  EXPECT_THAT(drop_later_metrics(file(), 2, false), IsEmpty());
  EXPECT_EQ(text(), odd);
}

TEST_F(Metrics, ALastLineWithoutItsEndIsCompletedOrLeftOut) {
  std::string unfinished = line(2);
  unfinished.pop_back();
  write(line(1) + unfinished);
  EXPECT_THAT(drop_later_metrics(file(), 5, false), IsEmpty());
  EXPECT_EQ(text(), line(1) + line(2));
  unfinished.pop_back();
  write(line(1) + unfinished);
  EXPECT_THAT(drop_later_metrics(file(), 5, false),
              ElementsAre(HasSubstr("metrics.jsonl:2 is left out: it was cut short")));
  EXPECT_EQ(text(), line(1));
}

TEST_F(Metrics, OfManyBadLinesAFewAreNamed) {
  std::string bad;
  for (int i = 0; i < 100; ++i) bad += "bad\n";
  write(bad + line(1));
  const std::vector<std::string> warnings = drop_later_metrics(file(), 5, false);
  ASSERT_THAT(warnings, SizeIs(6));
  EXPECT_THAT(warnings.back(), HasSubstr("95 more such lines"));
  EXPECT_EQ(text(), line(1));
}

TEST_F(Metrics, AHugeFileIsNotHeldInMemory) {
  constexpr int64_t kBytes = int64_t{1} << 30;
  write(line(1));
  fs::resize_file(file(), kBytes);  // one line of zeros, that takes no room on disk
  std::ofstream(file(), std::ios::app) << "\n" << line(2) << line(3);
  const int64_t before = peak_resident_memory();
  EXPECT_THAT(drop_later_metrics(file(), 2, false),
              ElementsAre(HasSubstr("metrics.jsonl:2 is left out: it is longer than 1 MiB")));
  EXPECT_LT(peak_resident_memory() - before, int64_t{64} << 20);
  EXPECT_EQ(text(), line(1) + line(2));
}

TEST_F(Metrics, ALinkIsFollowedAndStays) {
  test::write_file(folder() / "elsewhere", line(1) + line(9));
  fs::create_symlink("elsewhere", file());
  EXPECT_THAT(drop_later_metrics(file(), 2, false), IsEmpty());
  EXPECT_TRUE(fs::is_symlink(file()));
  EXPECT_EQ(test::read_file(folder() / "elsewhere"), line(1));
}

TEST_F(Metrics, ADeviceOrPipeIsNeitherReadNorReplacedNorWaitedFor) {
  for (const char* device : {"/dev/full", "/dev/zero"}) {
    fs::create_symlink(device, file());
    MetricsFile metrics(file(), 2);
    metrics.try_again();
    EXPECT_THAT(metrics.take_warnings(), IsEmpty());
    EXPECT_TRUE(fs::is_symlink(file()));
    fs::remove(file());
  }
  ASSERT_EQ(::mkfifo(file().c_str(), 0600), 0);
  EXPECT_THAT(MetricsFile(file(), 2).try_again(), HasSubstr("cannot write")) << "nobody reads it";
}

// Writing

nlohmann::json json(int64_t step, const std::string& text = "") {
  return {{"event", "train"}, {"step", step}, {"text", text}};
}

/// While it lives, no file of this process can grow beyond a size.
class FullDisk {
 public:
  explicit FullDisk(int64_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limit = before_;
    limit.rlim_cur = static_cast<rlim_t>(bytes);
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FullDisk() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }
  FullDisk(const FullDisk&) = delete;
  FullDisk& operator=(const FullDisk&) = delete;

 private:
  rlimit before_{};
  void (*handler_)(int);
};

TEST_F(Metrics, LinesThatDoNotFitAreKeptAndWrittenInOrderLater) {
  MetricsFile metrics(file(), 0);
  EXPECT_EQ(metrics.write(json(1)), "");
  const std::string first = text();
  {
    const FullDisk full(static_cast<int64_t>(first.size()) + 10);
    EXPECT_THAT(metrics.write(json(2)), HasSubstr("metrics.jsonl: File too large; its lines are "
                                                  "kept, and tried again with each new one"));
    EXPECT_EQ(text(), first) << "no part of a line stays";
    EXPECT_EQ(metrics.write(json(3)), "") << "said once";
    EXPECT_EQ(text(), first);
  }
  EXPECT_THAT(metrics.write(json(4)),
              HasSubstr("is written again, with the 2 lines that had been kept"));
  EXPECT_EQ(metrics.write(json(5)), "");
  EXPECT_EQ(metrics.finish(), "");
  std::string expected;
  for (int64_t step = 1; step <= 5; ++step) expected += json(step).dump() + "\n";
  EXPECT_EQ(text(), expected);
}

TEST_F(Metrics, WhatFitsOfSeveralKeptLinesIsWritten) {
  MetricsFile metrics(file(), 0);
  const int64_t size = static_cast<int64_t>(json(1).dump().size()) + 1;
  {
    const FullDisk full(0);
    for (int64_t step = 1; step <= 3; ++step) metrics.write(json(step));
  }
  const FullDisk full(2 * size + 1);
  EXPECT_EQ(metrics.write(json(4)), "");
  EXPECT_EQ(text(), json(1).dump() + "\n" + json(2).dump() + "\n");
  EXPECT_THAT(metrics.finish(),
              MatchesRegex(".*2 lines could not be written and are lost: .*: File "
                           "too large"));
}

TEST_F(Metrics, WhatIsKeptIsBounded) {
  fs::create_symlink("/dev/full", file());
  MetricsFile metrics(file(), 0);
  const std::string text(1 << 16, 'x');
  EXPECT_THAT(metrics.write(json(0, text)), HasSubstr("No space left on device"));
  [[maybe_unused]] const int64_t before = peak_resident_memory();
  for (int64_t step = 1; step < 1000; ++step) metrics.write(json(step, text));
#ifndef __SANITIZE_ADDRESS__  // which keeps what was freed
  EXPECT_LT(peak_resident_memory() - before, int64_t{32} << 20);
#endif
  EXPECT_THAT(metrics.finish(), HasSubstr("1000 lines could not be written and are lost"));
}

TEST_F(Metrics, LinesAreKeptWhileTheFileCannotBeOpened) {
  fs::create_directory(file());
  MetricsFile metrics(file(), 0);
  EXPECT_THAT(metrics.write(json(1)),
              MatchesRegex("cannot write .*metrics.jsonl: Is a directory; its lines are kept, .*"));
  EXPECT_EQ(metrics.write(json(2)), "") << "said once";
  fs::remove(file());
  EXPECT_THAT(metrics.try_again(),
              HasSubstr("is written again, with the 2 lines that had been kept"));
  EXPECT_EQ(text(), json(1).dump() + "\n" + json(2).dump() + "\n");
  EXPECT_EQ(metrics.finish(), "");
}

TEST_F(Metrics, LaterLinesThatCannotBeDroppedYetAreDroppedWhenThereIsRoom) {
  write(line(1) + line(2));
  MetricsFile metrics(file(), 1);
  {
    const FullDisk full(3);
    EXPECT_THAT(metrics.write(json(2)), HasSubstr("File too large; its lines are kept"));
    EXPECT_EQ(text(), line(1) + line(2));
  }
  EXPECT_THAT(metrics.write(json(3)), HasSubstr("with the 1 line that had been kept"));
  EXPECT_EQ(text(), line(1) + json(2).dump() + "\n" + json(3).dump() + "\n");
}

// What is written down beside the metrics

TEST_F(Metrics, ARunsRecordsWaitForRoomOnTheDisk) {
  Config config;
  config.run.dir = folder().string();
  std::ostringstream said;
  spdlog::logger log("log", std::make_shared<spdlog::sinks::ostream_sink_st>(said));
  RunRecords records(config, log);
  records.write(json(0));
  EXPECT_FALSE(fs::exists(file())) << "no step was made";
  {
    const FullDisk full(0);
    records.open({});
    records.write(json(1));
    EXPECT_FALSE(fs::exists(folder() / "config.yaml"));
    EXPECT_THAT(said.str(), HasSubstr("config.yaml"));
    EXPECT_THAT(said.str(), HasSubstr("cannot write"));
    const std::string before = said.str();
    records.write(json(2));
    records.try_again();
    EXPECT_EQ(said.str(), before) << "said once";
  }
  records.try_again();
  EXPECT_TRUE(fs::exists(folder() / "config.yaml"));
  EXPECT_EQ(text(), json(0).dump() + "\n" + json(1).dump() + "\n" + json(2).dump() + "\n");
}

}  // namespace
}  // namespace gradus
