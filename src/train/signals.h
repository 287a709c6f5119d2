#pragma once

#include <cstdint>

namespace gradus {

/// While it lives, SIGTERM, SIGINT, SIGHUP and SIGUSR1 are answered at once on standard error, and
/// noted instead of ending the process, so that the step can be finished and saved. At most one at
/// a time.
///
/// - Before training_begins() there is nothing to save: any of them ends the process, by that
///   signal.
/// - What comes within a second of the first is the same wish: a terminal and `timeout` both
///   deliver one Ctrl-C. Later a SIGINT, an impatient Ctrl-C, ends the process, by that signal; the
///   others may be repeated, as schedulers do.
/// - A signal that the program was started to ignore (nohup; SIGINT of a shell's background jobs)
///   stays ignored.
///
/// SIGUSR1 is what mpirun passes on to its ranks and lets them answer; SIGTERM it takes as the
/// order to end them within a second.
class StopSignals {
 public:
  /// speaks: whether this rank answers, for all. ranks: of the run; whoever started several decides
  /// how long they have after a SIGTERM.
  StopSignals(bool speaks, int64_t ranks);
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  /// From now on there is work that can be lost.
  void training_begins();
  /// What ending at once would lose: the steps from `kept` (what the run would go on from) to
  /// `step`.
  void set_progress(int64_t step, int64_t kept);

  /// The name of the first signal that came, or null.
  const char* received() const;
};

}  // namespace gradus
