#include "core/folder_lock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <optional>

#include "core/error.h"
#include "support/temp_dir.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

std::string refusal(const fs::path& folder) {
  try {
    const FolderLock lock(folder, "run.dir");
  } catch (const IoError& error) {
    return error.what();
  }
  return "";
}

std::string host_name() {
  std::array<char, 256> host{};
  EXPECT_EQ(::gethostname(host.data(), host.size() - 1), 0);
  return host.data();
}

TEST(FolderLock, ASecondHolderIsRefusedWithTheFirstOnesProcessAndHost) {
  const test::TempDir dir;
  std::optional<FolderLock> lock(std::in_place, dir.path(), "run.dir");
  EXPECT_EQ(lock->unguarded(), "");
  EXPECT_THAT(refusal(dir.path()),
              AllOf(HasSubstr("run.dir " + dir.path().string() + " is in use by process " +
                              std::to_string(::getpid()) + " on " + host_name() + " since 20"),
                    HasSubstr(" UTC: wait until that has ended, or name another folder")));
  EXPECT_NE(refusal(dir.path()), "") << "a refusal changes nothing";
  lock.reset();
  EXPECT_TRUE(fs::is_empty(dir.path()));
  EXPECT_EQ(refusal(dir.path()), "");
}

TEST(FolderLock, FoldersThatItMadeGoWithItUnlessTheyAreUsed) {
  const test::TempDir dir;
  { const FolderLock lock(dir / "a/b/", "run.dir"); }
  EXPECT_TRUE(fs::is_empty(dir.path()));
  {
    const FolderLock lock(dir / "a/b", "run.dir");
    test::write_file(dir / "a/kept", "");
  }
  EXPECT_FALSE(fs::exists(dir / "a/b"));
  EXPECT_TRUE(fs::exists(dir / "a/kept"));
  fs::create_directory(dir / "empty");
  { const FolderLock lock(dir / "empty", "run.dir"); }
  EXPECT_TRUE(fs::exists(dir / "empty")) << "it was there before";
}

TEST(FolderLock, WhatAKilledHolderLeftDoesNotMatter) {
  const test::TempDir dir;
  std::array<int, 2> held{};
  ASSERT_EQ(::pipe(held.data()), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const FolderLock lock(dir.path(), "run.dir");
    const ssize_t told = ::write(held[1], "x", 1);
    for (; told == 1;) ::pause();
    ::_exit(1);
  }
  char byte = 0;
  ASSERT_EQ(::read(held[0], &byte, 1), 1);
  EXPECT_THAT(refusal(dir.path()), HasSubstr("process " + std::to_string(child)));
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_TRUE(fs::exists(dir / ".lock"));
  EXPECT_EQ(refusal(dir.path()), "");
  ::close(held[0]);
  ::close(held[1]);
}

TEST(FolderLock, ChildrenDoNotKeepIt) {
  const test::TempDir dir;
  std::optional<FolderLock> lock(std::in_place, dir.path(), "run.dir");
  std::array<int, 2> go_on{};
  ASSERT_EQ(::pipe2(go_on.data(), O_CLOEXEC), 0);
  const pid_t forked = ::fork();
  if (forked == 0) {
    ::close(go_on[1]);
    char byte = 0;
    ::_exit(::read(go_on[0], &byte, 1) == 0 ? 0 : 1);  // until the parent closes its end
  }
  lock.reset();
  EXPECT_EQ(refusal(dir.path()), "") << "held by a forked child";

  lock.emplace(dir.path(), "run.dir");
  std::array<int, 2> started{};
  ASSERT_EQ(::pipe(started.data()), 0);
  const pid_t shell = ::fork();
  if (shell == 0) {
    ::dup2(started[1], 1);
    // Every descriptor that it inherited, and what that is.
    ::execl("/bin/sh", "sh", "-c", "exec ls -l /proc/self/fd", nullptr);
    ::_exit(127);
  }
  ::close(started[1]);
  std::string listing;
  std::array<char, 4096> bytes{};
  for (ssize_t count = 0; (count = ::read(started[0], bytes.data(), bytes.size())) > 0;) {
    listing.append(bytes.data(), static_cast<size_t>(count));
  }
  ::close(started[0]);
  EXPECT_THAT(listing, AllOf(HasSubstr("/proc"), testing::Not(HasSubstr(".lock"))));
  ::close(go_on[0]);
  ::close(go_on[1]);
  for (const pid_t child : {forked, shell}) {
    int status = -1;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  }
}

TEST(FolderLock, WhatCannotBeMadeIsNamed) {
  const test::TempDir dir;
  test::write_file(dir / "file", "");
  EXPECT_THAT(refusal(dir / "file/run"),
              AllOf(HasSubstr("cannot create run.dir"), HasSubstr("file/run: Not a directory")));
  fs::create_directories(dir / "run/.lock");
  EXPECT_THAT(refusal(dir / "run"),
              AllOf(HasSubstr("cannot make its lock"), HasSubstr("run/.lock: Is a directory")));
  fs::create_symlink("nowhere/run", dir / "link");
  EXPECT_THAT(refusal(dir / "link"), HasSubstr("link: it is a link that leads to no folder"));
}

TEST(FolderLock, OfManyAtOnceOneHoldsItAtATime) {
  // Each makes the folder, holds it for a moment alone, and removes it under the others' hands.
  const test::TempDir dir;
  constexpr int kProcesses = 8;
  constexpr int kTurns = 20;
  std::array<pid_t, kProcesses> children{};
  for (pid_t& child : children) {
    child = ::fork();
    if (child != 0) continue;
    int failures = 0;
    for (int turn = 0; turn < kTurns;) {
      try {
        const FolderLock lock(dir / "run", "run.dir");
        const int file = ::open((dir / "run/alone").c_str(), O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        failures += file < 0 ? 1 : 0;
        ::usleep(200);
        failures += ::unlink((dir / "run/alone").c_str()) != 0 ? 1 : 0;
        ::close(file);
        ++turn;
      } catch (const IoError& error) {
        if (std::string(error.what()).find("is in use by") == std::string::npos) ++failures, ++turn;
      }
    }
    ::_exit(failures);
  }
  for (const pid_t child : children) {
    int status = -1;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }
}

}  // namespace
}  // namespace gradus
