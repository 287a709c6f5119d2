#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/checkpoint_writer.h"
#include "checkpoint/example_checkpoint.h"
#include "checkpoint/manifest.h"
#include "checkpoint/random_bytes.h"
#include "core/error.h"
#include "support/temp_dir.h"
#include "support/tensors.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;
using test::ExampleRun;
using test::names_in;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

const std::vector<std::string> kFiles = {"config.yaml",       "manifest.json",
                                         "model.safetensors", "optimizer.safetensors",
                                         "state.json",        "tokenizer.json"};

class CheckpointFaults : public testing::Test {
 protected:
  fs::path run() const { return dir_ / "run"; }
  fs::path checkpoints() const { return run() / "checkpoints"; }
  fs::path step(int64_t n) const { return checkpoints() / step_folder_name(n); }

  /// What open() says; "" when it takes the checkpoint.
  static std::string refusal(const fs::path& folder) {
    try {
      Checkpoint::open(folder);
    } catch (const CheckpointError& error) {
      EXPECT_THAT(error.what(), HasSubstr(folder.string()));
      return error.what();
    }
    return "";
  }

  test::TempDir dir_;
  std::vector<std::string> refused_;
};

TEST_F(CheckpointFaults, EveryFlippedByteOfEveryFileIsFoundAndNamed) {
  ExampleRun(5).save(run(), 1);
  ASSERT_EQ(refusal(step(5)), "");
  for (const std::string& name : kFiles) {
    const fs::path path = step(5) / name;
    const std::string original = test::read_file(path);
    ASSERT_FALSE(original.empty());
    for (size_t i = 0; i < original.size(); ++i) {
      for (const int mask : {0x01, 0x20, 0x80}) {
        std::string damaged = original;
        damaged[i] = static_cast<char>(damaged[i] ^ mask);
        test::rewrite_file(path, damaged);
        // A version that became another is refused as such, without the file's name.
        ASSERT_THAT(refusal(step(5)), testing::AnyOf(HasSubstr(name), HasSubstr("format version")))
            << name << " byte " << i << " ^ " << mask;
      }
    }
    test::rewrite_file(path, original);
  }
  EXPECT_EQ(refusal(step(5)), "");
}

TEST_F(CheckpointFaults, EveryTruncationIsFoundAndNamed) {
  ExampleRun(5).save(run(), 1);
  for (const std::string& name : kFiles) {
    const fs::path path = step(5) / name;
    const std::string original = test::read_file(path);
    for (size_t size = 0; size < original.size(); ++size) {
      test::rewrite_file(path, original.substr(0, size));
      ASSERT_THAT(refusal(step(5)), HasSubstr(name)) << name << " cut to " << size;
    }
    test::rewrite_file(path, original + "\n");
    ASSERT_THAT(refusal(step(5)), HasSubstr(name)) << name << " with a byte more";
    test::rewrite_file(path, original);
  }
}

TEST_F(CheckpointFaults, EveryMissingFileIsNamed) {
  for (const std::string& name : kFiles) {
    ExampleRun(5).save(run(), 1);
    fs::remove(step(5) / name);
    EXPECT_THAT(refusal(step(5)), HasSubstr(name + " is missing"));
  }
}

TEST_F(CheckpointFaults, ManifestsOfOtherKindsAreRefused) {
  ExampleRun(5).save(run(), 1);
  const auto refusal_of = [&](const std::string& text) {
    test::rewrite_file(step(5) / kManifestName, text);
    return refusal(step(5));
  };
  EXPECT_THAT(refusal_of(""), HasSubstr("manifest.json is damaged"));
  EXPECT_THAT(refusal_of("[]"), HasSubstr("manifest.json is damaged"));
  EXPECT_THAT(refusal_of("{\"format\":1}"), HasSubstr("manifest.json is damaged"));
  EXPECT_THAT(refusal_of("{\"format\":\"other\"}"), HasSubstr("is not a checkpoint's"));
  EXPECT_THAT(refusal_of(R"({"format":"gradus checkpoint","version":"1"})"),
              HasSubstr("manifest.json is damaged"));
  EXPECT_THAT(refusal_of(R"({"format":"gradus checkpoint","version":3,"changed":true})"),
              HasSubstr("format version 3 is newer than this program's 2"));
  for (const int64_t block_bytes : {-1, 1, 4095}) {
    Manifest blocks;
    blocks.files["model.safetensors"] = {1, "", block_bytes};
    std::string text = to_text(blocks);
    if (block_bytes < 0) text.insert(text.find("\"size\""), "\"block_bytes\": -1, ");
    EXPECT_THAT(
        refusal_of(text),
        HasSubstr(fmt::format("in blocks of {} bytes, expected 4096 at least", block_bytes)));
  }
  Manifest outside;
  outside.files["../../secret"] = record_of("");
  EXPECT_THAT(refusal_of(to_text(outside)), HasSubstr("not a file of the folder"));
  EXPECT_THAT(refusal_of(to_text(Manifest{})), HasSubstr("does not list model.safetensors"));
}

/// Its checksums are of whole files.
TEST_F(CheckpointFaults, CheckpointsOfVersion1AreReadAndCheckedAsTheyWere) {
  ExampleRun saved(5);
  saved.save(run(), 1);
  Manifest first = read_manifest(step(5));
  first.version = 1;
  for (auto& [name, record] : first.files) record = record_of_file(step(5) / name);
  EXPECT_THAT(to_text(first), testing::Not(HasSubstr("block_bytes")));
  test::rewrite_file(step(5) / kManifestName, to_text(first));
  ExampleRun loaded(0);
  loaded.load(Checkpoint::open(step(5)));
  EXPECT_EQ(loaded, saved);
  std::string bytes = test::read_file(step(5) / kModelFile);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  test::rewrite_file(step(5) / kModelFile, bytes);
  EXPECT_THAT(refusal(step(5)), HasSubstr("model.safetensors was altered or torn"));
}

TEST_F(CheckpointFaults, TheNewestWholeOneIsUsedAndTheOthersAreNamed) {
  for (const int64_t n : {1, 2, 3, 4}) ExampleRun(n).save(run(), 9);
  fs::remove(step(4) / "manifest.json");
  fs::resize_file(step(3) / "optimizer.safetensors", 100);
  EXPECT_EQ(find_latest(run(), refused_)->step(), 2);
  ASSERT_EQ(refused_.size(), 2u);
  EXPECT_THAT(refused_[0], HasSubstr(step(4).string() + ": manifest.json is missing"));
  EXPECT_THAT(refused_[1], HasSubstr(step(3).string() + ": optimizer.safetensors has 100 bytes"));
}

TEST_F(CheckpointFaults, RunsWithoutAWholeOneAreNotStartedAfresh) {
  for (const int64_t n : {1, 2}) {
    ExampleRun(n).save(run(), 9);
    fs::remove(step(n) / "state.json");
  }
  try {
    find_latest(run(), refused_);
    FAIL();
  } catch (const CheckpointError& error) {
    EXPECT_THAT(error.what(), HasSubstr("none of its 2 checkpoints is whole"));
    EXPECT_THAT(error.what(), HasSubstr(step(1).string()));
    EXPECT_THAT(error.what(), HasSubstr(step(2).string()));
  }
}

TEST_F(CheckpointFaults, LeftoversOfKilledProcessesAreIgnoredAndRemoved) {
  ExampleRun(1).save(run(), 3);
  // Killed before the rename: all files are there, under the hidden name.
  fs::copy(step(1), checkpoints() / ".step-00000002.partial-4711");
  // Killed while an old one was removed.
  fs::copy(step(1), checkpoints() / ".step-00000000.deleted-4711");
  fs::remove(checkpoints() / ".step-00000000.deleted-4711" / "manifest.json");
  // One of a process with this one's own id, as happens in containers.
  fs::create_directories(hidden_sibling(step(3), "partial"));
  test::write_file(checkpoints() / ".gitignore", "*\n");

  EXPECT_EQ(find_latest(run(), refused_)->step(), 1);
  EXPECT_THAT(refused_, IsEmpty());
  ExampleRun(3).save(run(), 3);
  EXPECT_THAT(names_in(checkpoints()), ElementsAre(".gitignore", "step-00000001", "step-00000003"));
}

/// Lowers how large this process's files may grow: the way to a failed write that needs neither
/// root nor a small disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    handler_ = ::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit lowered{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &lowered);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    ::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  void (*handler_)(int) = nullptr;
};

TEST_F(CheckpointFaults, AFailedWriteLeavesEarlierCheckpointsAndNothingElse) {
  ExampleRun(1).save(run(), 1);
  int failures = 0;
  int saved = 0;
  // Every limit below the largest file stops another write; above it all goes well.
  for (rlim_t limit = 0; limit < 1200; limit += 13) {
    try {
      const FileSizeLimit small(limit);
      ExampleRun(2).save(run(), 2);
      ++saved;
      fs::remove_all(step(2));
    } catch (const IoError& error) {
      ++failures;
      ASSERT_THAT(error.what(), HasSubstr(checkpoints().string()));
      ASSERT_THAT(error.what(), HasSubstr("File too large"));
    }
    ASSERT_THAT(names_in(checkpoints()), ElementsAre("step-00000001")) << "limit " << limit;
  }
  EXPECT_GT(failures, 30);
  EXPECT_GT(saved, 5);
  EXPECT_EQ(refusal(step(1)), "");
}

TEST_F(CheckpointFaults, AnUnwritableRunFolderIsNamed) {
  test::write_file(run(), "a file where the folder should be");
  try {
    ExampleRun(1).save(run(), 1);
    FAIL();
  } catch (const IoError& error) {
    EXPECT_THAT(error.what(), HasSubstr(checkpoints().string() + ": cannot create folder"));
  }
}

/// Saves steps from `first` on until it is killed.
[[noreturn]] void save_forever(const fs::path& run, int64_t first) {
  try {
    for (int64_t n = first;; ++n) ExampleRun(n).save(run, 2);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "child: %s\n", error.what());
  }
  ::_exit(1);
}

TEST_F(CheckpointFaults, KilledAtAnyMomentARunGoesOnFromAWholeCheckpoint) {
  std::mt19937_64 rng(test::test_seed());
  int64_t last = 0;
  for (int round = 0; round < 20; ++round) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) save_forever(run(), last + 1);
    while (!fs::exists(step(last + 1))) {
      ASSERT_EQ(::waitpid(child, nullptr, WNOHANG), 0) << "the child ended by itself";
      std::this_thread::sleep_for(std::chrono::milliseconds(1));  // cores are for the run
    }
    // Somewhere in a save, another place each time.
    std::this_thread::sleep_for(std::chrono::microseconds(rng() % 20'000));
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));

    const std::optional<Checkpoint> checkpoint = find_latest(run(), refused_);
    ASSERT_TRUE(checkpoint);
    ASSERT_THAT(refused_, IsEmpty()) << "nothing torn may look like a checkpoint";
    ExampleRun loaded(0);
    loaded.load(*checkpoint);
    ASSERT_EQ(loaded, ExampleRun(checkpoint->step()));
    ASSERT_GT(checkpoint->step(), last);
    last = checkpoint->step();
  }
  ExampleRun(last + 1).save(run(), 2);
  EXPECT_THAT(names_in(checkpoints()),
              ElementsAre(step_folder_name(last), step_folder_name(last + 1)));
}

}  // namespace
}  // namespace gradus
