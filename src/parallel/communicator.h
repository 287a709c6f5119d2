#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/executor.h"
#include "core/tensor.h"

namespace gradus {

enum class ReduceOp : uint8_t { sum, max };

enum class Collective : uint8_t {
  all_reduce,
  all_gather,
  reduce_scatter,
  all_to_all,
  broadcast,
  exchange,
  barrier
};
inline constexpr int kCollectives = 7;

constexpr const char* to_string(Collective collective) {
  constexpr std::array<const char*, kCollectives> kNames = {
      "all_reduce", "all_gather", "reduce_scatter", "all_to_all",
      "broadcast",  "exchange",   "barrier"};
  return kNames[static_cast<size_t>(collective)];
}

/// What one rank did on one communicator, by kind of collective.
struct Traffic {
  int64_t calls = 0;
  /// Payload: the whole tensor of all_reduce and broadcast, the gathered one of all_gather, the
  /// unreduced one of reduce_scatter, the input of all_to_all, what exchange sends. The formulas
  /// of the papers are in these.
  int64_t bytes = 0;
  int64_t sent = 0;  ///< bytes that this rank handed to the transport
};

/// One message of a grouped exchange.
struct Transfer {
  static Transfer send(const ConstTensor& tensor, int peer) { return {tensor, Tensor(), peer}; }
  static Transfer recv(const Tensor& tensor, int peer) { return {tensor, tensor, peer}; }

  bool receives() const { return into.defined(); }

  ConstTensor tensor;
  Tensor into;  ///< undefined when sending
  int peer = 0;
};

/// Tells when operations are over; each kind of communicator has one.
class CompletionSource {
 public:
  virtual ~CompletionSource() = default;
  /// Returns once the operation is over as seen by x. Throws the communicator's error.
  virtual void wait(Executor& x, uint64_t ticket) = 0;
  /// For a handle that is destroyed without wait(): on return nobody touches the operation's
  /// buffers any more, if need be because the communicator has stopped working altogether.
  virtual void abandon(uint64_t ticket) noexcept = 0;
};

/// An operation under way. Its tensors must stay as they are until wait(): inputs unwritten,
/// outputs unread. Must be waited for; a handle destroyed unwaited (an exception passes by) blocks
/// until its buffers are free of use.
class [[nodiscard]] Pending {
 public:
  Pending() = default;
  /// Over already. `written`: undefined, or what x's observer is told of.
  Pending(Collective collective, const Tensor& written)
      : written_(written), collective_(collective), waited_(false) {}
  Pending(CompletionSource& source, uint64_t ticket, Collective collective, const Tensor& written)
      : source_(&source),
        ticket_(ticket),
        written_(written),
        collective_(collective),
        waited_(false) {}
  Pending(Pending&& other) noexcept { *this = std::move(other); }
  Pending& operator=(Pending&& other) noexcept;
  ~Pending() { abandon(); }

  /// Work that x starts after this call sees the operation's outputs. A second call does nothing.
  void wait(Executor& x);

 private:
  void abandon() noexcept;

  CompletionSource* source_ = nullptr;
  uint64_t ticket_ = 0;
  Tensor written_;
  Collective collective_ = Collective::barrier;
  bool waited_ = true;
};

/// Operations that are waited for together, such as those of one transition. Room for kRoom under
/// way; one more first waits for the oldest. Does not allocate.
class [[nodiscard]] PendingSet {
 public:
  static constexpr size_t kRoom = 16;

  void add(Executor& x, Pending pending);
  void wait(Executor& x);

 private:
  std::array<Pending, kRoom> pending_;  // over or empty ones too
  size_t added_ = 0;
};

/// What the communicators of a process are part of.
class Job {
 public:
  virtual ~Job() = default;
  /// Prints `message` once (however many ranks fail at the same time) and ends every rank with a
  /// non-zero exit code.
  [[noreturn]] virtual void abort(const std::string& message) noexcept = 0;
};

/// Collective operations of one group of ranks (a process group), whatever carries them.
///
/// Asynchronous in program order: a call returns at once; operations of one process start in the
/// order of the calls, over all its communicators. The ranks of a group call the same collectives
/// in the same order with the same sizes, and the whole program must be free of deadlock if every
/// call blocked until done: messages that cross each other belong into one exchange().
///
/// Tensors are contiguous and of one dtype. Reductions: sum of fp64, fp32, bf16; max of these, i32
/// and u8 (a NaN wins). Sums add the ranks' contributions in rank order, in fp32 (fp64 for fp64),
/// and round once, so equal inputs give equal bits on every rank and in every run. Data movement
/// takes every dtype. Tensors may be empty; counts beyond 2^31 are cut up.
///
/// Throws ShapeError when tensors do not fit, MpiError or NcclError (from the call or from the
/// wait) when the transport failed or the watchdog gave up.
class Communicator {
 public:
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return static_cast<int>(world_ranks_.size()); }
  /// Of the group, for messages: "tp", "dp", "world".
  const std::string& name() const { return name_; }
  /// The group's members as ranks of the whole job.
  std::span<const int> world_ranks() const { return world_ranks_; }

  /// out (n) = reduction over ranks of in (n). out may be in.
  Pending all_reduce(Executor& x, const Tensor& out, const ConstTensor& in,
                     ReduceOp op = ReduceOp::sum);
  /// out (size · n) = the ranks' in (n), in rank order. in may be this rank's slice of out.
  Pending all_gather(Executor& x, const Tensor& out, const ConstTensor& in);
  /// out (n) = this rank's slice of the reduction over ranks of in (size · n). out may be this
  /// rank's slice of in; the rest of in is left as it was.
  Pending reduce_scatter(Executor& x, const Tensor& out, const ConstTensor& in,
                         ReduceOp op = ReduceOp::sum);
  /// Slice r of out (size · n) = slice `rank` of rank r's in (size · n). out must not overlap in.
  Pending all_to_all(Executor& x, const Tensor& out, const ConstTensor& in);
  /// inout becomes the root's everywhere.
  Pending broadcast(Executor& x, const Tensor& inout, int root);
  /// Sends and receives that are posted together, so their order among each other cannot
  /// deadlock. Messages from one rank to another match in program order. Only the ranks that
  /// communicate need to call. A rank does not send to itself.
  Pending exchange(Executor& x, std::span<const Transfer> transfers);
  /// Over when every rank of the group has called it. watched: a rank that does not come within the
  /// watchdog's time counts as stuck; false where it may have a lot to write before, and counts as
  /// stuck only when it does not even answer.
  Pending barrier(Executor& x, bool watched = true);

  /// Ends every rank of the job, not only of the group; see Job.
  [[noreturn]] void abort(const std::string& message) noexcept;

  /// Since creation. `sent` is complete for operations that have been waited for.
  virtual Traffic traffic(Collective collective) const;

 protected:
  /// rank: this process's index in world_ranks. job must outlive the communicator.
  Communicator(std::string name, int rank, std::vector<int> world_ranks, Job& job);

  // The tensors given to these have been checked.
  virtual Pending start_all_reduce(Executor& x, const Tensor& out, const ConstTensor& in,
                                   ReduceOp op) = 0;
  virtual Pending start_all_gather(Executor& x, const Tensor& out, const ConstTensor& in) = 0;
  virtual Pending start_reduce_scatter(Executor& x, const Tensor& out, const ConstTensor& in,
                                       ReduceOp op) = 0;
  virtual Pending start_all_to_all(Executor& x, const Tensor& out, const ConstTensor& in) = 0;
  virtual Pending start_broadcast(Executor& x, const Tensor& inout, int root) = 0;
  virtual Pending start_exchange(Executor& x, std::span<const Transfer> transfers) = 0;
  virtual Pending start_barrier(Executor& x, bool watched) = 0;

 private:
  void count(Collective collective, int64_t bytes);

  std::string name_;
  int rank_;
  std::vector<int> world_ranks_;
  Job& job_;
  std::array<Traffic, kCollectives> traffic_{};
};

}  // namespace gradus
