#pragma once

namespace gradus {

/// While it lives, SIGTERM, SIGINT and SIGUSR1 are noted instead of ending the process, so that the
/// step can be finished and saved. A second SIGINT (an impatient Ctrl-C) ends the process as usual;
/// the others may be repeated, as schedulers do. SIGUSR1 is what mpirun passes on to its ranks and
/// lets them answer; SIGTERM it takes as the order to end them within a second. At most one at a
/// time.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  /// The name of the signal that came, or null.
  const char* received() const;
};

}  // namespace gradus
