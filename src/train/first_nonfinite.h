#pragma once

#include <cstdint>
#include <string>

#include "core/executor.h"
#include "parallel/parallelism.h"

namespace gradus {

/// What every rank says it found, in the words of the one that found something first; empty when
/// none did. `order`: of this rank's finding among all, smallest first. All ranks call this.
std::string first_finding(Executor& x, Communicator* world, const std::string& found, double order);

/// Watches a replayed step for the first tensor that is written with a value that is not finite.
class FirstNonfinite final : public OperationObserver {
 public:
  /// Observes x until it is destroyed.
  FirstNonfinite(Executor& x, const Parallelism& parallel);
  ~FirstNonfinite() override { x_.observe(nullptr); }
  FirstNonfinite(const FirstNonfinite&) = delete;
  FirstNonfinite& operator=(const FirstNonfinite&) = delete;

  /// What is written from now on belongs to this pass. Passes of one micro-batch follow each other
  /// over the stages, forward from the first and backward from the last.
  void begin_pass(int64_t micro_batch, bool backward);
  void completed(const char* operation, const ConstTensor& written) override;

  /// Ends the watch: the finding of the rank that was first. All ranks call this.
  std::string agree();

 private:
  bool finite(const ConstTensor& tensor, int axis = 0);

  Executor& x_;
  const Parallelism& parallel_;
  std::string found_;
  double order_ = 0.0;  ///< of what was found
  double pass_ = 0.0;
  int64_t operations_ = 0;  ///< since the replay began
  int64_t pass_began_ = 0;
};

}  // namespace gradus
