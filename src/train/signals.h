#pragma once

namespace gradus {

/// While it lives, SIGTERM and SIGINT are noted instead of ending the process, so that the step can
/// be finished and saved. A second signal of the same kind ends the process as usual. At most one
/// at a time.
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
