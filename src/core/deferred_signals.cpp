#include "core/deferred_signals.h"

#include <algorithm>
#include <array>

namespace gradus {
namespace {

constexpr std::array kEnding = {SIGINT, SIGTERM, SIGHUP, SIGPIPE};

}  // namespace

DeferredSignals::DeferredSignals() {
  sigemptyset(&deferred_);
  for (const int signal : kEnding) {
    // Linux keeps a blocked signal pending even where it is ignored.
    struct sigaction action = {};
    const bool ignored = sigaction(signal, nullptr, &action) == 0 && action.sa_handler == SIG_IGN;
    if (!ignored) sigaddset(&deferred_, signal);
  }
  pthread_sigmask(SIG_BLOCK, &deferred_, &before_);
}

DeferredSignals::~DeferredSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

bool DeferredSignals::pending() const {
  sigset_t waiting;
  sigemptyset(&waiting);
  sigpending(&waiting);
  return std::ranges::any_of(kEnding, [&](int signal) {
    return sigismember(&deferred_, signal) == 1 && sigismember(&waiting, signal) == 1;
  });
}

}  // namespace gradus
