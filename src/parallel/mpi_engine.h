#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "core/trace.h"
#include "parallel/communicator.h"
#include "parallel/late_delivery.h"
#include "parallel/local_peers.h"
#include "parallel/mpi_control.h"
#include "parallel/mpi_operation.h"

namespace gradus {

struct MpiEngineOptions {
  /// An operation without progress for longer is taken for stuck; for half as long, where some rank
  /// does not even answer.
  double timeout_s = 600.0;
  /// See BootstrapOptions.
  bool late = false;
  /// Prints a failure of which the calling thread has not heard, since it computes.
  std::function<void(int rank, int size, const std::string& failure)> report;
  MpiLimits limits;
};

/// Another rank prints and ends the job; if that has not happened by then, this one does.
inline constexpr std::chrono::seconds kOtherRankPatience{10};
/// For the launcher to forward what was printed before it kills.
inline constexpr std::chrono::milliseconds kForwarding{100};

/// The communication thread and what it owns: MPI, from MPI_Init_thread to MPI_Finalize or
/// MPI_Abort. All other threads only leave orders and wait.
///
/// MPI makes progress only inside its calls, so overlap with computation needs a thread that is in
/// them. It starts operations in program order, up to kMaxActive at a time, and polls them; idle,
/// it sleeps on a condition variable and looks for control messages every few milliseconds.
/// In the steady state nothing here allocates (MPI itself may).
///
/// Once anything has failed the thread touches neither MPI (but for MPI_Abort) nor any buffer
/// again; every wait and every new call throws the MpiError that tells the cause.
class MpiEngine final : public CompletionSource {
 public:
  /// Throws MpiError when MPI cannot be started.
  explicit MpiEngine(const MpiEngineOptions& options);
  /// Does not finalise: without finish(), the end of this process makes the launcher end the
  /// others.
  ~MpiEngine() override;

  int rank() const { return rank_; }
  int size() const { return size_; }
  int local_rank() const { return local_rank_; }
  int local_size() const { return local_size_; }
  /// Lowest rank on this rank's machine.
  int machine() const { return machine_; }
  MpiGroup& world() { return *world_; }

  /// Collective over all ranks, after every earlier operation: the group of those with the same
  /// colour, ordered by rank.
  MpiGroup& split(int color, const std::string& name);
  void release(MpiGroup& group) noexcept;
  /// Runs `function` on the communication thread, at once.
  void call(std::function<void()> function) { order(Urgency::at_once, std::move(function)); }

  /// From now on records every operation, from its start to its end; null: no longer. It must
  /// outlive that. Does nothing after a failure, when nobody records any more.
  void trace(Trace* trace) noexcept;

  /// Leaves an order. Throws MpiError after a failure, and when kSlots operations have not been
  /// waited for.
  uint64_t submit(MpiGroup& group, MpiOperationSpec spec, std::span<const Transfer> transfers = {});
  void wait(uint64_t ticket);
  void wait(Executor&, uint64_t ticket) override { wait(ticket); }
  void abandon(uint64_t ticket) noexcept override;

  /// True if this rank is the one that prints why the job ends.
  bool claim_report() noexcept;
  /// MPI_Abort. For when the message is out.
  [[noreturn]] void abort(int exit_code) noexcept;
  /// Waits for all ranks (as long as it takes), then MPI_Finalize.
  void finish();

 private:
  static constexpr int kSlots = 1024;
  static constexpr int kMaxActive = 16;
  static constexpr int kMaxReductions = 4;

  enum class State : uint32_t { free, queued, done, failed };
  struct Slot {
    std::atomic<State> state{State::free};
    bool awaited = false;  ///< under mutex_: someone waits, or gave it up
    MpiGroup* group = nullptr;
    MpiOperationSpec spec;
    std::vector<MpiMessage> messages;
    LateDelivery late;
  };
  struct Active {
    MpiOperation operation;
    uint32_t slot = 0;
    int staging = -1;  ///< index into staging_, or none
    Trace::Clock::time_point begin;
    MpiOperation::Clock::time_point asked;  ///< when the others were last asked; never: 0
  };
  using RankAnswer = std::optional<MpiRankStatus>;  ///< nullopt: none came
  enum class Urgency { after_operations, at_once };

  // The calling threads' side.
  void order(Urgency urgency, std::function<void()> command);
  void throw_if_failed() const;  // under mutex_
  void mark_awaited(Slot& slot);
  void halt() noexcept;

  // The communication thread's side.
  void run();
  void initialise();
  void serve();
  bool take_orders();
  void run_command();
  size_t startable() const;
  bool start_operations();
  bool progress_operations();
  void rest(bool moved);
  void look_around();
  void check_watchdog();
  void check_peers();
  std::map<int, RankAnswer> ask_all(const MpiGroup& group);
  [[noreturn]] void give_up(const MpiOperation& operation, std::chrono::duration<double> still,
                            const std::map<int, RankAnswer>& answers);
  MpiRankStatus status_of(int32_t group_id) const;
  void fail(const std::string& message) noexcept;
  void await_abort();
  bool may_report();  // under mutex_
  void meet_peers(MPI_Comm machine);
  MpiGroup& make_group(MPI_Comm comm, const std::string& name);
  void finalise();
  bool busy() const { return !active_.empty() || queue_begin_ < queue_end_; }

  const MpiEngineOptions options_;
  int rank_ = 0, size_ = 1, local_rank_ = 0, local_size_ = 1, machine_ = 0;
  MpiGroup* world_ = nullptr;

  std::mutex mutex_;
  std::condition_variable wake_;     ///< the communication thread has orders
  std::condition_variable changed_;  ///< a command is over, or the engine started, failed, stopped
  std::atomic<bool> orders_{false};  ///< something below, guarded by mutex_, is new
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_;
  std::vector<uint32_t> submitted_;  ///< not yet seen by the communication thread
  std::function<void()> command_;
  Urgency urgency_ = Urgency::at_once;
  std::exception_ptr command_error_;
  bool started_ = false;
  bool failed_ = false;
  bool stopped_ = false;  ///< the thread is at its end, or waits for nothing but abort
  bool halt_requested_ = false;
  bool claim_requested_ = false;
  bool stop_requested_ = false;
  std::optional<int> abort_code_;
  std::optional<bool> report_granted_;
  bool reported_ = false;
  std::string failure_;
  std::exception_ptr start_error_;

  // Of the communication thread alone.
  std::vector<std::unique_ptr<MpiGroup>> groups_;
  int32_t next_group_id_ = 0;
  std::unique_ptr<MpiControl> control_;
  LocalPeers peers_;
  std::optional<MpiOperation::Clock::time_point> peer_ended_;  ///< when that was first seen
  std::vector<uint32_t> queue_;  ///< in program order, from queue_begin_
  size_t queue_begin_ = 0;
  size_t queue_end_ = 0;  ///< up to here operations may start
  std::vector<std::unique_ptr<Active>> pool_;
  std::vector<std::unique_ptr<Active>> active_;
  std::vector<std::vector<std::byte>> staging_;
  std::vector<int> free_staging_;
  const MpiGroup* last_group_ = nullptr;
  MpiOperationSpec last_spec_;
  MpiOperation::Clock::time_point last_movement_;
  MpiOperation::Clock::time_point next_check_;
  Trace* trace_ = nullptr;
  int polls_ = 0;
  bool finalised_ = false;

  std::thread thread_;
};

}  // namespace gradus
