#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "train/training_model.h"

namespace gradus {

/// What one rank communicates in one optimizer step, for one purpose.
struct StepTraffic {
  std::string group;  ///< "tp", "dp", "pp", "embedding" or "world"
  std::string purpose;
  Collective collective = Collective::all_reduce;
  int64_t calls = 0;
  int64_t bytes = 0;  ///< payload, as Traffic counts it (parallel/communicator.h)
  /// Bytes that leave a rank by the MPI communicator's algorithms (docs/parallelism.md): the mean
  /// over the group, whose members' differ where a tensor does not divide.
  double sent = 0.0;
};

/// Every collective of a step but for the agreement on stopping (4 bytes over all ranks) and the
/// comparison of replicas now and then, from
/// formulas (arXiv:1909.08053 section 3, arXiv:2205.05198 section 4.2, arXiv:1910.02054 section 7);
/// what the run's communicators count is equal to it. Groups of one rank say nothing and are left
/// out.
std::vector<StepTraffic> step_traffic(const TrainingModel& model);

}  // namespace gradus
