#include "parallel/communicator.h"

#include <fmt/ranges.h>

#include <cstdlib>
#include <utility>

#include "core/error.h"

namespace gradus {
namespace {

bool overlap(const ConstTensor& a, const ConstTensor& b) {
  return a.bytes() > 0 && b.bytes() > 0 && a.data() < b.data() + b.bytes() &&
         b.data() < a.data() + a.bytes();
}

/// Says which call of which group a complaint is about.
class Checker {
 public:
  Checker(const Communicator& group, Collective collective)
      : group_(group), collective_(collective) {}

  void contiguous(const ConstTensor& tensor) const {
    if (!tensor.defined()) fail("a tensor is undefined");
    if (!tensor.contiguous()) fail("{} is not contiguous", describe(tensor));
    if (tensor.bytes() > 0 && tensor.data() == nullptr) fail("{} has no memory", describe(tensor));
  }

  /// out and in: one dtype, numel(out) · out_parts = numel(in) · in_parts.
  void pair(const ConstTensor& out, int64_t out_parts, const ConstTensor& in,
            int64_t in_parts) const {
    contiguous(out);
    contiguous(in);
    if (out.dtype() != in.dtype() || out.device() != in.device()) {
      fail("out {} on {} and in {} on {} differ", describe(out), to_string(out.device()),
           describe(in), to_string(in.device()));
    }
    if (out.numel() * out_parts != in.numel() * in_parts) {
      fail("out {} does not fit in {}: {} · {} elements are not {} · {}", describe(out),
           describe(in), out.numel(), out_parts, in.numel(), in_parts);
    }
  }

  void reducible(DType dtype, ReduceOp op) const {
    const bool real = dtype == DType::fp64 || dtype == DType::fp32 || dtype == DType::bf16;
    const bool integer = dtype == DType::i32 || dtype == DType::u8;
    if (real || (integer && op == ReduceOp::max)) return;
    fail("{} of {} is not supported: sum takes fp64, fp32 and bf16, max also i32 and u8",
         op == ReduceOp::sum ? "sum" : "max", to_string(dtype));
  }

  /// Where out and in overlap, in must be out or, if `part` lies inside `whole`, this rank's slice.
  void in_place_slice(const ConstTensor& whole, const ConstTensor& part) const {
    if (overlap(whole, part) && part.data() != whole.data() + group_.rank() * part.bytes()) {
      fail("{} overlaps {} and is not its slice {}", describe(part), describe(whole),
           group_.rank());
    }
  }

  void peer(int peer) const {
    if (peer < 0 || peer >= group_.size()) fail("rank {} is not in the group", peer);
  }

  template <typename... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) const {
    throw ShapeError("{} of group {} (ranks {}): {}", to_string(collective_), group_.name(),
                     fmt::join(group_.world_ranks(), " "),
                     fmt::format(format, std::forward<Args>(args)...));
  }

 private:
  const Communicator& group_;
  Collective collective_;
};

}  // namespace

Pending& Pending::operator=(Pending&& other) noexcept {
  if (this == &other) return *this;
  abandon();
  source_ = std::exchange(other.source_, nullptr);
  ticket_ = other.ticket_;
  written_ = other.written_;
  collective_ = other.collective_;
  waited_ = std::exchange(other.waited_, true);
  return *this;
}

void Pending::wait(Executor& x) {
  if (waited_) return;
  waited_ = true;
  if (source_ != nullptr) std::exchange(source_, nullptr)->wait(x, ticket_);
  x.waited(to_string(collective_), written_);
}

void Pending::abandon() noexcept {
  if (source_ != nullptr) std::exchange(source_, nullptr)->abandon(ticket_);
}

void PendingSet::add(Executor& x, Pending pending) {
  Pending& place = pending_[added_++ % kRoom];
  place.wait(x);
  place = std::move(pending);
}

void PendingSet::wait(Executor& x) {
  for (Pending& pending : pending_) pending.wait(x);
}

Communicator::Communicator(std::string name, int rank, std::vector<int> world_ranks, Job& job)
    : name_(std::move(name)), rank_(rank), world_ranks_(std::move(world_ranks)), job_(job) {}

void Communicator::abort(const std::string& message) noexcept {
  job_.abort(message);
  std::_Exit(EXIT_FAILURE);  // not reached; GCC 12 loses [[noreturn]] of virtual functions
}

Pending Communicator::all_reduce(Executor& x, const Tensor& out, const ConstTensor& in,
                                 ReduceOp op) {
  const Checker check(*this, Collective::all_reduce);
  check.pair(out, 1, in, 1);
  check.reducible(in.dtype(), op);
  if (overlap(out, in) && out.data() != in.data()) {
    check.fail("out {} overlaps in {} without being it", describe(out), describe(in));
  }
  count(Collective::all_reduce, in.bytes());
  return start_all_reduce(x, out, in, op);
}

Pending Communicator::all_gather(Executor& x, const Tensor& out, const ConstTensor& in) {
  const Checker check(*this, Collective::all_gather);
  check.pair(out, 1, in, size());
  check.in_place_slice(out, in);
  count(Collective::all_gather, out.bytes());
  return start_all_gather(x, out, in);
}

Pending Communicator::reduce_scatter(Executor& x, const Tensor& out, const ConstTensor& in,
                                     ReduceOp op) {
  const Checker check(*this, Collective::reduce_scatter);
  check.pair(out, size(), in, 1);
  check.reducible(in.dtype(), op);
  check.in_place_slice(in, out);
  count(Collective::reduce_scatter, in.bytes());
  return start_reduce_scatter(x, out, in, op);
}

Pending Communicator::all_to_all(Executor& x, const Tensor& out, const ConstTensor& in) {
  const Checker check(*this, Collective::all_to_all);
  check.pair(out, 1, in, 1);
  if (in.numel() % size() != 0) {
    check.fail("in {} has {} elements, not a multiple of the group's {} ranks", describe(in),
               in.numel(), size());
  }
  if (overlap(out, in)) check.fail("out {} overlaps in {}", describe(out), describe(in));
  count(Collective::all_to_all, in.bytes());
  return start_all_to_all(x, out, in);
}

Pending Communicator::broadcast(Executor& x, const Tensor& inout, int root) {
  const Checker check(*this, Collective::broadcast);
  check.contiguous(inout);
  check.peer(root);
  count(Collective::broadcast, inout.bytes());
  return start_broadcast(x, inout, root);
}

Pending Communicator::exchange(Executor& x, std::span<const Transfer> transfers) {
  const Checker check(*this, Collective::exchange);
  int64_t bytes = 0;
  for (const Transfer& transfer : transfers) {
    check.contiguous(transfer.tensor);
    check.peer(transfer.peer);
    if (transfer.peer == rank()) check.fail("rank {} exchanges with itself", transfer.peer);
    if (!transfer.receives()) bytes += transfer.tensor.bytes();
  }
  count(Collective::exchange, bytes);
  return start_exchange(x, transfers);
}

Pending Communicator::barrier(Executor& x, bool watched) {
  count(Collective::barrier, 0);
  return start_barrier(x, watched);
}

Traffic Communicator::traffic(Collective collective) const {
  return traffic_[static_cast<size_t>(collective)];
}

void Communicator::count(Collective collective, int64_t bytes) {
  Traffic& traffic = traffic_[static_cast<size_t>(collective)];
  ++traffic.calls;
  traffic.bytes += bytes;
}

}  // namespace gradus
