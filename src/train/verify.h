#pragma once

#include <functional>
#include <string>
#include <vector>

#include "parallel/bootstrap.h"
#include "train/config.h"

namespace gradus {

/// One line of a verification.
struct Check {
  std::string name;
  double worst =
      0.0;  ///< largest deviation over all ranks and tensors; NaN where one is not finite
  double limit = 0.0;  ///< 0: equal to the bit
  std::string where;   ///< the tensor that deviates most, and the rank that has it
  double seconds = 0.0;

  bool passed() const { return worst <= limit; }
};

/// `config` made small enough to verify in seconds on `ranks` ranks, with what decides which code
/// runs (biases, ties, dropout, attention, heads, recompute, precision) left as it is. `rule`: a
/// line for each setting that was changed, and to what.
Config shrink_for_verification(const Config& config, int ranks, std::vector<std::string>& rule);

/// Checks that training as `config` (a shrunk one) says is right on this machine and on these
/// ranks, which all call this:
///   - gradients of sampled weights against central differences of the loss, in fp64;
///   - recomputation and accumulation against none;
///   - in every layout that so many ranks can make (train/verify_layouts.h): the gradients of every
///     parameter against one rank's, in fp64; a loss curve in the run's own precision; and a run
///     that was saved and resumed against one that went straight on, to the bit.
/// Calls `report` after each check. Writes into config.run.dir, and removes what it
/// wrote and that folder, if it was not there.
std::vector<Check> verify(const Config& config, Bootstrap& bootstrap,
                          const std::function<void(const Check&)>& report);

}  // namespace gradus
