#include "core/deferred_signals.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace gradus {
namespace {

/// The status of a child that gets a signal while it defers them, and then exits with 3 if it can.
int child_with(int signal, bool ignored) {
  const pid_t child = ::fork();
  if (child == 0) {
    if (ignored) ::signal(signal, SIG_IGN);
    bool seen = false;
    {
      const DeferredSignals signals;
      if (signals.pending()) ::_exit(4);
      ::raise(signal);
      seen = signals.pending();
    }
    ::_exit(seen ? 5 : 3);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return status;
}

TEST(DeferredSignals, EndTheProcessAtTheEndOfTheScopeAsTheyWouldHave) {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGPIPE}) {
    const int status = child_with(signal, false);
    EXPECT_TRUE(WIFSIGNALED(status)) << status;
    EXPECT_EQ(WTERMSIG(status), signal);
  }
}

TEST(DeferredSignals, WhatIsIgnoredStaysIgnored) {
  for (const int signal : {SIGINT, SIGHUP, SIGPIPE}) {
    const int status = child_with(signal, true);
    EXPECT_TRUE(WIFEXITED(status)) << status;
    EXPECT_EQ(WEXITSTATUS(status), 3);
  }
}

TEST(DeferredSignals, WhatWasBlockedBeforeStaysBlocked) {
  sigset_t blocked;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGHUP);
  sigset_t before;
  pthread_sigmask(SIG_BLOCK, &blocked, &before);
  { const DeferredSignals signals; }
  sigset_t after;
  pthread_sigmask(SIG_SETMASK, &before, &after);
  EXPECT_EQ(sigismember(&after, SIGHUP), 1);
  EXPECT_EQ(sigismember(&after, SIGTERM), sigismember(&before, SIGTERM));
}

}  // namespace
}  // namespace gradus
