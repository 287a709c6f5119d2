#pragma once

#include <csignal>

namespace gradus {

/// While it lives, the signals that ask a process to end, SIGINT, SIGTERM, SIGHUP and SIGPIPE,
/// wait. At its end one that came ends the process as it would have, when what must not be left
/// half-made has been undone. Signals that are ignored (nohup) stay ignored. Of the calling thread:
/// for commands of one thread.
class DeferredSignals {
 public:
  DeferredSignals();
  DeferredSignals(const DeferredSignals&) = delete;
  DeferredSignals& operator=(const DeferredSignals&) = delete;
  ~DeferredSignals();

  /// Whether one came.
  bool pending() const;

 private:
  sigset_t deferred_ = {};
  sigset_t before_ = {};
};

}  // namespace gradus
