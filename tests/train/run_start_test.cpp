// Which checkpoint a run goes on from, for everything that checkpoint.resume can say and everything
// that run.dir can hold.

#include "train/run_start.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/example_checkpoint.h"
#include "core/error.h"
#include "support/temp_dir.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;
using test::ExampleRun;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class RunStart : public testing::Test {
 protected:
  void SetUp() override {
    for (const int64_t step : {100, 200}) ExampleRun(step).save(dir_ / "a", 9);
  }
  fs::path at(const std::string& run, int64_t step) const {
    return dir_ / run / kCheckpointsName / step_folder_name(step);
  }
  fs::path run() const { return dir_ / "b"; }
  void give_run(const std::vector<int64_t>& steps) const {
    for (const int64_t step : steps) ExampleRun(step).save(run(), 9);
  }

  /// Where a run in b starts: the checkpoint's path within the folder of the test, "fresh", or what
  /// the error says.
  std::string start(const fs::path& resume) {
    Config config;
    config.run.dir = run().string();
    config.checkpoint.resume = {Resume::Mode::from_path, resume.string()};
    return start(config);
  }
  std::string start(Resume::Mode mode) {
    Config config;
    config.run.dir = run().string();
    config.checkpoint.resume = {mode, {}};
    return start(config);
  }

  test::TempDir dir_;
  std::vector<std::string> remarks_;

 private:
  std::string start(const Config& config) {
    remarks_.clear();
    try {
      const auto checkpoint = checkpoint_to_resume(config, remarks_);
      if (!checkpoint) return "fresh";
      const fs::path path = fs::canonical(checkpoint->path());
      return fs::relative(path, fs::canonical(dir_.path())).string();
    } catch (const Error& error) {
      return std::string(error.kind()) + ": " + error.what();
    }
  }
};

TEST_F(RunStart, APathIsWhereARunWithoutCheckpointsStarts) {
  for (const char* given : {"a", "a/", "a/checkpoints", "a/checkpoints/step-00000200",
                            "a/checkpoints/step-00000200/", "./a/../a"}) {
    EXPECT_EQ(start(dir_ / given), "a/checkpoints/step-00000200") << given;
    EXPECT_THAT(remarks_, IsEmpty());
  }
  EXPECT_EQ(start(at("a", 100)), "a/checkpoints/step-00000100");
  fs::create_directories(run() / kCheckpointsName);
  EXPECT_EQ(start(at("a", 100)), "a/checkpoints/step-00000100") << "an empty folder is none";
  EXPECT_EQ(start(Resume::Mode::automatic), "fresh");
  EXPECT_EQ(start(Resume::Mode::never), "fresh");
}

TEST_F(RunStart, TheSameCommandAgainGoesOnFromTheRunsOwnNewest) {
  // Own steps behind, at and beyond the one that the path names, and in between.
  const std::vector<std::vector<int64_t>> table = {{50}, {100}, {150}, {200}, {250, 300}};
  for (const std::vector<int64_t>& own : table) {
    give_run(own);
    const std::string newest = fs::relative(at("b", own.back()), dir_.path()).string();
    for (const fs::path& given : {dir_ / "a", at("a", 100), at("a", 200)}) {
      EXPECT_EQ(start(given), newest) << given;
      EXPECT_THAT(remarks_, ElementsAre(AllOf(HasSubstr(given.string() + " is where a run starts"),
                                              HasSubstr("goes on from its newest, of step " +
                                                        std::to_string(own.back())))));
    }
    // What the run started from may be gone or damaged by then.
    EXPECT_EQ(start(dir_ / "gone/checkpoints/step-00000100"), newest);
    EXPECT_THAT(remarks_, ElementsAre(HasSubstr("there is nothing at that path now")));
    EXPECT_EQ(start(Resume::Mode::automatic), newest);
    EXPECT_THAT(remarks_, IsEmpty());
    EXPECT_THAT(start(Resume::Mode::never), HasSubstr("config error: checkpoint.resume is never"));
    fs::remove_all(run());
  }
  EXPECT_THAT(start(dir_ / "gone"), HasSubstr("there is no such folder"));
}

TEST_F(RunStart, ThroughLinksTheFolderIsTheSame) {
  give_run({150});
  fs::create_directory_symlink(run(), dir_ / "link");
  fs::create_directory_symlink(at("b", 150), dir_ / "step");
  for (const char* own : {"b", "b/", "b/checkpoints", "b/checkpoints/", "link", "link/checkpoints",
                          "link/checkpoints/step-00000150", "step", "step/"}) {
    EXPECT_EQ(start(dir_ / own), "b/checkpoints/step-00000150") << own;
    EXPECT_THAT(remarks_, IsEmpty()) << own;
  }
  // run.dir is a link itself.
  Config config;
  config.run.dir = (dir_ / "link").string();
  config.checkpoint.resume = {Resume::Mode::from_path, (dir_ / "a").string()};
  EXPECT_EQ(checkpoint_to_resume(config, remarks_)->step(), 150);
}

TEST_F(RunStart, TheRootOfTheFileSystemIsNoRunFolder) {
  for (const char* root : {"/", "//", "/.", "/proc/.."}) {
    Config config;
    config.run.dir = root;
    EXPECT_THAT([&] { check_run_folder(config); },
                testing::ThrowsMessage<IoError>(HasSubstr("is the root of the file system")))
        << root;
  }
}

TEST_F(RunStart, ItsOwnOlderStepIsRefused) {
  give_run({150, 250});
  fs::create_directory_symlink(at("b", 150), dir_ / "step");
  for (const fs::path& older : {at("b", 150), dir_ / "step"}) {
    EXPECT_THAT(start(older), HasSubstr("checkpoint.resume goes back to step 150")) << older;
  }
  EXPECT_EQ(start(at("b", 250)), "b/checkpoints/step-00000250");
  EXPECT_THAT(start(at("b", 200)), HasSubstr("there is no such folder"));
  // Under another name among its checkpoints.
  fs::rename(at("b", 150), run() / kCheckpointsName / "best");
  EXPECT_THAT(start(run() / kCheckpointsName / "best"), HasSubstr("goes back to step 150"));
  fs::remove_all(at("b", 250));
  EXPECT_EQ(start(run() / kCheckpointsName / "best"), "b/checkpoints/best");
}

TEST_F(RunStart, AFolderElsewhereInTheRunsIsNotOneOfItsCheckpoints) {
  give_run({150});
  fs::create_directories(run() / "kept");
  fs::rename(at("b", 150), run() / "kept" / "step-00000150");
  EXPECT_EQ(start(run() / "kept" / "step-00000150"), "b/kept/step-00000150");
  give_run({160});
  EXPECT_EQ(start(run() / "kept" / "step-00000150"), "b/checkpoints/step-00000160");
  EXPECT_THAT(remarks_, ElementsAre(HasSubstr("is where a run starts")));
}

TEST_F(RunStart, DamageOfItsOwnIsPassedOverButNeverForThePath) {
  give_run({150, 250});
  fs::remove(at("b", 250) / "state.json");
  EXPECT_EQ(start(dir_ / "a"), "b/checkpoints/step-00000150");
  EXPECT_THAT(remarks_, ElementsAre(HasSubstr("is where a run starts"),
                                    AllOf(HasSubstr("not used: "), HasSubstr("step-00000250"))));
  EXPECT_EQ(start(run()), "b/checkpoints/step-00000150");
  EXPECT_THAT(start(at("b", 250)), HasSubstr("state.json is missing"));
  fs::remove(at("b", 150) / "state.json");
  EXPECT_THAT(start(dir_ / "a"), HasSubstr("none of its 2 checkpoints is whole"));
}

TEST_F(RunStart, TheRecordOfACopiedFolderIsRefused) {
  Config config;
  config.run.dir = (dir_ / "a").string();
  const auto refusal = [&](const fs::path& file) -> std::string {
    try {
      refuse_copied_record(file, config);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  };
  fs::copy(dir_ / "a", run(), fs::copy_options::recursive);
  EXPECT_EQ(refusal(dir_ / "a/config.yaml"), "");
  EXPECT_THAT(refusal(run() / "config.yaml"),
              AllOf(HasSubstr("the folder was copied or moved"),
                    HasSubstr("run.dir=" + run().string()), HasSubstr("says run.dir: ")));
  fs::remove_all(dir_ / "a");  // moved
  EXPECT_THAT(refusal(run() / "config.yaml"), HasSubstr("the folder was copied or moved"));
  fs::remove_all(run() / kCheckpointsName);
  EXPECT_EQ(refusal(run() / "config.yaml"), "") << "a configuration as any other";
  test::write_file(run() / "metrics.jsonl", "");
  EXPECT_THAT(refusal(run() / "config.yaml"), HasSubstr("copied or moved"));
  EXPECT_EQ(refusal(run() / "my.yaml"), "");
  fs::create_directory_symlink(run(), dir_ / "a");
  EXPECT_EQ(refusal(run() / "config.yaml"), "") << "the same folder";
}

}  // namespace
}  // namespace gradus
