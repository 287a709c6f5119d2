#include "parallel/bootstrap_launch.h"

#include <charconv>
#include <cstring>

#include "core/error.h"

namespace gradus {
namespace {

std::optional<int> integer(const std::function<const char*(const char*)>& environment,
                           const char* name) {
  const char* text = environment(name);
  if (text == nullptr || *text == '\0') return std::nullopt;
  int value = 0;
  const char* end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, value);
  if (error != std::errc() || stop != end || value < 0) {
    throw MpiError("the launcher set {}={}, which is not a number of ranks", name, text);
  }
  return value;
}

}  // namespace

Launch detect_launch(const std::function<const char*(const char*)>& environment) {
  const auto set = [&](const char* name) { return environment(name) != nullptr; };
  if (set("OMPI_COMM_WORLD_SIZE")) {
    return {"mpirun", integer(environment, "OMPI_COMM_WORLD_SIZE"),
            integer(environment, "OMPI_COMM_WORLD_RANK")};
  }
  // Only tasks that srun starts have a step and a number within it; a batch script has neither
  // more than one task nor peers, whatever SLURM_NTASKS says about the allocation.
  if (set("SLURM_STEP_NUM_TASKS") && set("SLURM_STEP_ID")) {
    return {"srun", integer(environment, "SLURM_STEP_NUM_TASKS"),
            integer(environment, "SLURM_PROCID")};
  }
  if (set("PMI_SIZE")) {
    return {"a PMI launcher", integer(environment, "PMI_SIZE"), integer(environment, "PMI_RANK")};
  }
  if (set("PMIX_RANK")) {
    return {"a PMIx launcher", std::nullopt, integer(environment, "PMIX_RANK")};
  }
  return {};
}

}  // namespace gradus
