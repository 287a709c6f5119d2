#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/bootstrap_cores.h"
#include "parallel/communicator.h"
#include "parallel/self_communicator.h"

namespace gradus {

class MpiEngine;
struct Launch;
class Trace;

struct BootstrapOptions {
  /// Seconds without progress after which an operation counts as stuck. Unset: the environment's
  /// GRADUS_COMMUNICATION_TIMEOUT, else 600.
  std::optional<double> communication_timeout_s;
  /// Bind this rank's threads to its share of the machine's cores.
  bool bind_cores = true;
  /// Longest single message; longer ones are cut up.
  int64_t message_bytes = int64_t{1} << 30;
  /// Up to this many gathered bytes, an all_reduce takes one round of messages instead of two.
  int64_t direct_all_reduce_bytes = 4096;
  /// Start each operation only when it, or a later one, is waited for, and hand over its result
  /// only in its own wait. For tests: what is read too early, or written over, is then always
  /// wrong, not only on a slow network.
  bool late = false;
};

/// This process's place in the job, from its construction to finish(). Started by mpirun or srun,
/// it starts MPI; started plainly, it is the only rank and MPI is never called. One a process.
///
/// Constructing it binds the calling thread to this rank's cores, so it comes before anything that
/// makes threads. Devices follow local_rank(), never rank().
class Bootstrap final : public Job {
 public:
  /// Collective over the job. Throws MpiError when MPI cannot be started, when the launcher
  /// promises ranks that MPI does not see, and when the build has no MPI for several ranks.
  explicit Bootstrap(const BootstrapOptions& options = {});
  /// Without finish(), ends the job: the other ranks would wait for this one for ever.
  ~Bootstrap() override;
  Bootstrap(const Bootstrap&) = delete;
  Bootstrap& operator=(const Bootstrap&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  /// Among the ranks on this machine.
  int local_rank() const { return local_rank_; }
  int local_size() const { return local_size_; }
  /// What the ranks on this machine have in common, and no other has: the lowest of them.
  int machine() const { return machine_; }

  /// CPUs of this rank, not shared with another unless the machine has fewer than ranks.
  const CpuSet& cores() const { return cores_.cpus; }
  /// Computing threads for the Executor: one a core, or as many as this rank's share of the CPU
  /// time that its control group grants.
  int threads() const { return cores_.threads; }

  /// See overlooked_ranks (parallel/bootstrap_launch.h).
  const std::string& overlooked() const { return overlooked_; }

  /// Every rank's `mine`, by rank. Collective; for small things at start (addresses, ids).
  std::vector<std::string> exchange(std::string_view mine);
  /// The group of the ranks that give the same colour (>= 0), ordered by rank. Collective over the
  /// job, in the same order everywhere. The group must go before finish().
  std::unique_ptr<Communicator> split(int color, const std::string& name);

  /// Records this rank's communication from now on; null: no longer. A rank alone has none. After
  /// a failure of communication nothing is recorded.
  void trace(Trace* trace) noexcept;

  /// Prints "gradus: rank 2 of 4: MESSAGE" and ends every rank with exit code 1, within seconds.
  /// When several ranks fail at once, one of them prints.
  [[noreturn]] void abort(const std::string& message) noexcept override;
  /// The same with another exit code.
  [[noreturn]] void abort(const std::string& message, int exit_code) noexcept;
  /// The orderly end: returns when every rank has called it.
  void finish();

 private:
  void start(const Launch& launch, const BootstrapOptions& options);
  void start_engine(const BootstrapOptions& options);
  void divide_cores(bool bind);
  void divide_quota();

  int rank_ = 0, size_ = 1, local_rank_ = 0, local_size_ = 1;
  int machine_ = 0;
  CoreShare cores_;
  std::string overlooked_;
  bool finished_ = false;
  std::unique_ptr<MpiEngine> engine_;  ///< of several ranks only
};

/// Runs `body` as this process's rank and returns the process's exit code: body's, which all ranks
/// must agree on, or 1 after an error. An exception of body, on whatever rank, is printed once,
/// "gradus: rank 2 of 4: data error: …", and ends every rank. What main() consists of.
int run_job(const BootstrapOptions& options, const std::function<int(Bootstrap&)>& body) noexcept;

}  // namespace gradus
