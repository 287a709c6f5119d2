#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <exception>
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
using testing::AllOf;
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
  EXPECT_THAT(refusal_of("[]"), HasSubstr("manifest.json: found [], expected an object"));
  EXPECT_THAT(refusal_of("{\"format\":1}"),
              HasSubstr("manifest.json: field 'format': found 1, expected text"));
  EXPECT_THAT(refusal_of("{\"format\":\"other\"}"), HasSubstr("is not a checkpoint's"));
  const std::string head = R"({"format":"gradus checkpoint","version":)";
  EXPECT_THAT(refusal_of(head + "\"1\"}"),
              HasSubstr("field 'version': found \"1\", expected an int"));
  EXPECT_THAT(refusal_of(head + "0}"), HasSubstr("field 'version': found 0"));
  EXPECT_THAT(refusal_of(head + "1}"), HasSubstr("field 'step' is missing"));
  EXPECT_THAT(refusal_of(head + "1,\"step\":-1}"), HasSubstr("field 'step': found -1"));
  EXPECT_THAT(refusal_of(head + "1,\"step\":5,\"files\":[]}"),
              HasSubstr("field 'files': found []"));
  EXPECT_THAT(refusal_of(head + R"(1,"step":5,"files":{"a":{"size":"1"}}})"),
              HasSubstr("manifest.json: a: field 'size': found \"1\""));
  EXPECT_THAT(refusal_of(head + R"(1,"step":5,"step":6})"), HasSubstr("names 'step' twice"));
  EXPECT_THAT(refusal_of("{\"a\":" + std::string(200'000, '[')), HasSubstr("nested too deeply"));
  EXPECT_THAT(refusal_of(std::string(size_t{2} << 20, ' ')), HasSubstr("expected at most 1048576"));
  EXPECT_THAT(refusal_of(R"({"format":"gradus checkpoint","version":3,"changed":true})"),
              HasSubstr("format version 3 is newer than this program's 2"));
  for (const int64_t block_bytes : {-1, 1, 4095}) {
    Manifest blocks;
    blocks.files["model.safetensors"] = {1, "", block_bytes};
    std::string text = to_text(blocks);
    if (block_bytes < 0) text.insert(text.find("\"size\""), "\"block_bytes\": -1, ");
    EXPECT_THAT(refusal_of(text),
                HasSubstr(fmt::format("field 'block_bytes': found {}, expected an integer of 4096",
                                      block_bytes)));
  }
  Manifest outside;
  outside.files["../../secret"] = record_of("");
  EXPECT_THAT(refusal_of(to_text(outside)), HasSubstr("not a file of the folder"));
  EXPECT_THAT(refusal_of(to_text(Manifest{})), HasSubstr("does not list model.safetensors"));
}

/// Writes a state.json and the manifest that fits it.
void rewrite_state(const fs::path& folder, const std::string& text) {
  test::rewrite_file(folder / kStateFile, text);
  Manifest manifest = read_manifest(folder);
  manifest.files[std::string(kStateFile)] = record_of(text);
  test::rewrite_file(folder / kManifestName, to_text(manifest));
}

TEST_F(CheckpointFaults, AStateOfAnotherFormIsRefusedThoughItsChecksumIsRight) {
  ExampleRun(5).save(run(), 1);
  const auto refusal_of = [&](const std::string& text) {
    rewrite_state(step(5), text);
    return refusal(step(5));
  };
  EXPECT_THAT(refusal_of("[]"), HasSubstr("state.json: found [], expected an object"));
  EXPECT_THAT(refusal_of("{}"), HasSubstr("state.json: field 'step' is missing"));
  EXPECT_THAT(refusal_of(R"({"step":"5"})"),
              HasSubstr("field 'step': found \"5\", expected an int"));
  EXPECT_THAT(refusal_of(R"({"step":-5})"), HasSubstr("field 'step': found -5"));
  EXPECT_THAT(refusal_of(R"({"step":6})"), HasSubstr("state.json is of step 6"));
  EXPECT_THAT(refusal_of(R"({"step":5,"step":5})"), HasSubstr("state.json: names 'step' twice"));
  EXPECT_THAT(refusal_of("{\"step\":" + std::string(200'000, '[')),
              HasSubstr("state.json: nested too deeply"));
}

/// Puts something that is there and cannot be read at a path.
struct Obstacle {
  const char* name;
  void (*put)(const fs::path&);
};

const std::vector<Obstacle> kObstacles = {
    {"folder", [](const fs::path& path) { fs::create_directories(path); }},
    {"pipe", [](const fs::path& path) { ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0); }},
    {"device", [](const fs::path& path) { fs::create_symlink("/dev/zero", path); }},
    {"dangling", [](const fs::path& path) { fs::create_symlink("/nowhere/at/all", path); }},
    {"loop", [](const fs::path& path) { fs::create_symlink(path.filename(), path); }},
};

/// What find_latest says of a checkpoint that it can neither use nor call damaged.
std::string unreadable(const fs::path& run) {
  std::vector<std::string> refused;
  try {
    const auto found = find_latest(run, refused);
    return "took step " + std::to_string(found ? found->step() : -1);
  } catch (const IoError& error) {
    return error.what();
  }
}

TEST_F(CheckpointFaults, WhatCannotBeReadIsNotTakenForDamage) {
  for (const std::string& name : kFiles) {
    for (const Obstacle& obstacle : kObstacles) {
      ExampleRun(1).save(run(), 2);
      ExampleRun(2).save(run(), 2);
      fs::remove(step(2) / name);
      obstacle.put(step(2) / name);
      EXPECT_THAT(unreadable(run()),
                  AllOf(HasSubstr(step(2).string() + " cannot be read"), HasSubstr(name)))
          << obstacle.name;
      fs::remove_all(checkpoints());
    }
  }
  ExampleRun(1).save(run(), 2);
  fs::create_directory_symlink("/nowhere/at/all", step(2));
  EXPECT_THAT(unreadable(run()), AllOf(HasSubstr(step(2).string()), HasSubstr("a link")));
}

// Not under sanitizers: theirs need a descriptor to look at memory.
#ifndef __SANITIZE_ADDRESS__
TEST_F(CheckpointFaults, WithoutDescriptorsNoOlderStepIsTaken) {
  ExampleRun(1).save(run(), 2);
  ExampleRun(2).save(run(), 2);
  std::vector<fs::path> folders = list_step_folders(checkpoints());
  rlimit before{};
  ::getrlimit(RLIMIT_NOFILE, &before);
  const rlimit none{0, before.rlim_max};
  ::setrlimit(RLIMIT_NOFILE, &none);
  std::string said;
  try {
    Checkpoint::open(folders.front());
  } catch (const IoError& error) {
    said = error.what();
  }
  const std::string searched = unreadable(run());
  ::setrlimit(RLIMIT_NOFILE, &before);
  EXPECT_THAT(said, AllOf(HasSubstr(step(2).string()), HasSubstr("Too many open files")));
  EXPECT_THAT(searched, HasSubstr("Too many open files"));
  EXPECT_EQ(unreadable(run()), "took step 2");
}
#endif

TEST_F(CheckpointFaults, FurtherFilesAreNotOpened) {
  for (const Obstacle& obstacle : kObstacles) {
    ExampleRun(2).save(run(), 2);
    obstacle.put(step(2) / "notes");
    test::write_file(step(2) / "huge", "");
    fs::resize_file(step(2) / "huge", uintmax_t{1} << 40);  // sparse
    EXPECT_EQ(refusal(step(2)), "") << obstacle.name;
    ExampleRun(3).save(run(), 1);
    EXPECT_THAT(names_in(checkpoints()), ElementsAre("step-00000003")) << obstacle.name;
  }
}

TEST_F(CheckpointFaults, AHugeFileThatTheManifestListsIsNotTakenIntoMemory) {
  ExampleRun(2).save(run(), 2);
  for (const char* name : {"tokenizer.json", "further"}) {
    Manifest manifest = read_manifest(step(2));
    test::write_file(step(2) / name, "");
    fs::resize_file(step(2) / name, uintmax_t{1} << 40);
    manifest.files[name].size = int64_t{1} << 40;
    test::rewrite_file(step(2) / kManifestName, to_text(manifest));
    EXPECT_THAT(refusal(step(2)), HasSubstr("tokenizer.json has 1099511627776 bytes"));
  }
}

TEST_F(CheckpointFaults, ANewerVersionsCheckpointIsNotPassedOver) {
  ExampleRun(1).save(run(), 2);
  ExampleRun(2).save(run(), 2);
  auto manifest = nlohmann::json::parse(test::read_file(step(2) / kManifestName));
  manifest["version"] = 99;
  manifest["later"] = "what this program does not know";
  manifest.erase("xxh3_128");
  manifest["xxh3_128"] = record_of(manifest.dump(2)).xxh3_128;
  test::rewrite_file(step(2) / kManifestName, manifest.dump(2) + "\n");
  try {
    find_latest(run(), refused_);
    FAIL() << "an older step would be trained from again";
  } catch (const UnknownFormat& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr(step(2).string()), HasSubstr("version 99 is newer")));
  }
  // Where its own checksum is wrong the version is part of the damage.
  manifest["later"] = "altered";
  test::rewrite_file(step(2) / kManifestName, manifest.dump(2) + "\n");
  EXPECT_EQ(find_latest(run(), refused_)->step(), 1);
  EXPECT_THAT(refused_, ElementsAre(HasSubstr("version 99 is newer")));
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

/// A reader beside a run that saves and removes as fast as it can: what it listed goes under its
/// hands, and it finds another.
TEST_F(CheckpointFaults, AReaderFindsOneWhileARunRotatesThem) {
  ExampleRun(1).save(run(), 1);
  std::atomic<bool> stop = false;
  std::thread writer([&] {
    for (int64_t step = 2; !stop; ++step) ExampleRun(step).save(run(), 1);
  });
  int64_t last = 0;
  for (int i = 0; i < 300; ++i) {
    std::vector<std::string> refused;
    try {
      const Checkpoint checkpoint = open_checkpoint(run(), refused, CheckpointUse::inference);
      EXPECT_GE(checkpoint.step(), last);
      last = checkpoint.step();
    } catch (const std::exception& error) {
      ADD_FAILURE() << error.what();
    }
    EXPECT_THAT(refused, IsEmpty());
  }
  stop = true;
  writer.join();
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
    // Not step last + 1: that may come and go before this process has a turn.
    const auto newest = [&] {
      const std::vector<fs::path> folders = list_step_folders(checkpoints());
      return folders.empty() ? 0 : step_of(folders.front()).value_or(0);
    };
    while (newest() <= last) {
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
