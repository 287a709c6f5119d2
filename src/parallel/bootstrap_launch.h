#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace gradus {

/// How this process was started, as far as its environment tells.
struct Launch {
  std::string launcher;     ///< "mpirun", "srun", "a PMI launcher"; empty: started plainly
  std::optional<int> size;  ///< ranks of the job, where the environment says
  std::optional<int> rank;

  /// True when other ranks may exist.
  bool parallel() const { return !launcher.empty() && size.value_or(2) > 1; }
};

/// environment: nullptr or the value, as std::getenv. A shell inside a Slurm allocation or batch
/// script is a plain start; a task of srun is not.
Launch detect_launch(const std::function<const char*(const char*)>& environment);

/// For a plain start: what in the environment speaks of several ranks all the same, as torchrun and
/// other launchers that MPI knows nothing of leave it, and what to do; empty when nothing does.
std::string overlooked_ranks(const std::function<const char*(const char*)>& environment);

/// What to say, once a machine, where the shared memory that Open MPI moves messages in has no room
/// for the ranks of this machine: MPI_Init then ends the job in words of its own, or in none. Empty
/// where there is room, on all but the first rank of a machine, and where other settings of Open
/// MPI do without. free_bytes: of /dev/shm; negative: unknown.
std::string crowded_shared_memory(const std::function<const char*(const char*)>& environment,
                                  int64_t free_bytes);

}  // namespace gradus
