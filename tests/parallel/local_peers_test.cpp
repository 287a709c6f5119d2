#include "parallel/local_peers.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <thread>

namespace gradus {
namespace {

/// A process that waits to be killed.
class Sleeper {
 public:
  Sleeper() : pid_(fork()) {
    if (pid_ != 0) return;
    for (;;) pause();
  }
  ~Sleeper() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  Sleeper(const Sleeper&) = delete;
  Sleeper& operator=(const Sleeper&) = delete;

  PeerProcess process(int rank) const {
    PeerProcess process = PeerProcess::self(rank);
    process.pid = pid_;
    return process;
  }

 private:
  pid_t pid_;
};

TEST(LocalPeers, SeesTheEndOfAnyOfThem) {
  const Sleeper first;
  const Sleeper second;
  LocalPeers peers;
  if (!peers.watch(first.process(3))) GTEST_SKIP() << "this kernel has no pidfd_open";
  ASSERT_TRUE(peers.watch(second.process(5)));
  EXPECT_FALSE(peers.ended().has_value());

  kill(second.process(5).pid, SIGKILL);
  std::optional<PeerProcess> ended;
  for (int i = 0; i < 1000 && !ended.has_value(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    ended = peers.ended();
  }
  ASSERT_TRUE(ended.has_value());
  EXPECT_EQ(ended->rank, 5);
  EXPECT_EQ(ended->pid, second.process(5).pid);
}

TEST(LocalPeers, AStoppedProcessHasNotEnded) {
  const Sleeper sleeper;
  LocalPeers peers;
  if (!peers.watch(sleeper.process(1))) GTEST_SKIP() << "this kernel has no pidfd_open";
  kill(sleeper.process(1).pid, SIGSTOP);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_FALSE(peers.ended().has_value());
}

TEST(LocalPeers, NumbersOfAnotherNamespaceSayNothing) {
  LocalPeers peers;
  PeerProcess other = PeerProcess::self(1);
  other.pid_namespace += 1;
  EXPECT_FALSE(peers.watch(other));
  other.pid_namespace = 0;
  EXPECT_FALSE(peers.watch(other));
  EXPECT_FALSE(peers.ended().has_value());
}

TEST(LocalPeers, NobodyToWatch) {
  LocalPeers peers;
  EXPECT_FALSE(peers.ended().has_value());
}

}  // namespace
}  // namespace gradus
