#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "train/training_model.h"

namespace gradus {

/// What one rank communicates in one optimizer step, for one purpose.
struct StepTraffic {
  std::string group;  ///< "tp", "dp", "pp" or "embedding"
  std::string purpose;
  Collective collective = Collective::all_reduce;
  int64_t calls = 0;
  int64_t bytes = 0;  ///< payload, as Traffic counts it (parallel/communicator.h)
};

/// Every collective of a step, from formulas (arXiv:1909.08053 section 3, arXiv:2205.05198 section
/// 4.2, arXiv:1910.02054 section 7); what the run's communicators count is equal to it. Groups of
/// one rank say nothing and are left out.
std::vector<StepTraffic> step_traffic(const TrainingModel& model);

/// Bytes that a rank of a group of `size` sends for a payload, by the algorithms of the MPI
/// communicator (docs/parallelism.md).
double bytes_sent(Collective collective, int64_t payload, int size);

}  // namespace gradus
