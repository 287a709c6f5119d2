#include "parallel/bootstrap_launch.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cstring>
#include <string_view>

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

std::string overlooked_ranks(const std::function<const char*(const char*)>& environment) {
  struct Convention {
    const char* size;
    const char* rank;  ///< set for each process; null: of an allocation, for all of them
    const char* who;
  };
  constexpr std::array kConventions = {
      Convention{"WORLD_SIZE", "RANK", "as torchrun sets them"},
      Convention{"FLUX_JOB_SIZE", "FLUX_TASK_RANK", "as flux run sets them"},
      Convention{"PALS_SIZE", "PALS_RANKID", "as PALS sets them"},
      Convention{"SLURM_NTASKS", nullptr, "the tasks of a Slurm allocation"},
  };
  const auto text = [&](const char* name) -> std::string_view {
    const char* value = name == nullptr ? nullptr : environment(name);
    return value == nullptr ? "" : value;
  };
  for (const Convention& convention : kConventions) {
    const std::string_view size = text(convention.size);
    int ranks = 0;
    std::from_chars(size.data(), size.data() + size.size(), ranks);
    if (ranks < 2) continue;
    if (convention.rank == nullptr) {
      return fmt::format("{}={} is set, {}: start them with srun or mpirun -np {}", convention.size,
                         ranks, convention.who, ranks);
    }
    if (text(convention.rank).empty()) continue;
    return fmt::format(
        "{}={} and {}={} are set, {}, which gradus does not learn its ranks from: start it with "
        "mpirun -np {} or srun",
        convention.size, ranks, convention.rank, text(convention.rank), convention.who, ranks);
  }
  return {};
}

std::string crowded_shared_memory(const std::function<const char*(const char*)>& environment,
                                  int64_t free_bytes) {
  constexpr int64_t kMiB = int64_t{1} << 20;
  // Of a rank, as Open MPI lays it out unless told otherwise.
  constexpr int64_t kSegment = 4 * kMiB;
  const int64_t ranks = integer(environment, "OMPI_COMM_WORLD_LOCAL_SIZE").value_or(1);
  const bool first = integer(environment, "OMPI_COMM_WORLD_LOCAL_RANK").value_or(0) == 0;
  const char* transports = environment("OMPI_MCA_btl");
  const std::string_view btl = transports == nullptr ? "" : transports;
  const bool left_out = btl.starts_with('^') != (btl.find("vader") == std::string_view::npos &&
                                                 btl.find("sm") == std::string_view::npos);
  const bool elsewhere = environment("OMPI_MCA_btl_vader_backing_directory") != nullptr ||
                         environment("OMPI_MCA_btl_sm_backing_directory") != nullptr;
  if (!first || ranks < 2 || free_bytes < 0 || free_bytes >= ranks * kSegment || elsewhere ||
      (!btl.empty() && left_out)) {
    return {};
  }
  return fmt::format(
      "/dev/shm has {:.1f} MiB free, and Open MPI needs {} MiB of it for the {} ranks of this "
      "machine: make it larger (docker run --shm-size=1g; mount -o remount,size=1g /dev/shm), or "
      "do without it (OMPI_MCA_btl=self,tcp)",
      static_cast<double>(free_bytes) / kMiB, ranks * kSegment / kMiB, ranks);
}

}  // namespace gradus
