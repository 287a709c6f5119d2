// The side of the calling threads: they leave orders and wait.
#include "parallel/mpi_engine.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "core/error.h"

namespace gradus {
namespace {

// How long an error that passes by waits for operations under way before it stops them.
constexpr std::chrono::seconds kGrace{2};
// How long the communication thread may take over what it does at once; asking all judges who
// reports takes it six (mpi_control.cpp).
constexpr std::chrono::seconds kPatience{8};

// Enough for every grouped exchange of a pipeline; a larger group makes its slot grow once.
constexpr size_t kTransfersReserved = 8;

}  // namespace

MpiEngine::MpiEngine(const MpiEngineOptions& options) : options_(options), slots_(kSlots) {
  free_.reserve(kSlots);
  for (uint32_t slot = kSlots; slot > 0; --slot) free_.push_back(slot - 1);
  for (Slot& slot : slots_) slot.messages.reserve(kTransfersReserved);
  submitted_.reserve(kSlots);
  queue_.reserve(2 * kSlots);
  thread_ = std::thread([this] { run(); });
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return started_ || stopped_; });
  if (!started_) {
    lock.unlock();
    thread_.join();
    std::rethrow_exception(start_error_);
  }
}

MpiEngine::~MpiEngine() {
  {
    const std::lock_guard lock(mutex_);
    stop_requested_ = true;
    orders_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void MpiEngine::throw_if_failed() const {
  if (failed_) throw MpiError("{}", failure_);
  if (stopped_) throw MpiError("this rank has finished its part in the job");
}

void MpiEngine::order(Urgency urgency, std::function<void()> command) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return command_ == nullptr || failed_ || stopped_; });
  throw_if_failed();
  command_ = std::move(command);
  command_error_ = nullptr;
  urgency_ = urgency;
  orders_ = true;
  wake_.notify_one();
  changed_.wait(lock, [this] { return command_ == nullptr || failed_ || stopped_; });
  if (command_ != nullptr) throw_if_failed();
  if (command_error_ != nullptr) std::rethrow_exception(std::exchange(command_error_, nullptr));
}

MpiGroup& MpiEngine::split(int color, const std::string& name) {
  // MPI_Comm_split blocks the communication thread, so it begins when every rank is there; the
  // barrier waits under the eyes of the watchdog.
  MpiOperationSpec barrier;
  barrier.collective = Collective::barrier;
  wait(submit(*world_, barrier));
  MpiGroup* group = nullptr;
  order(Urgency::after_operations, [&] {
    MPI_Comm comm = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split(world_->comm, color, rank_, &comm), "MPI_Comm_split");
    group = &make_group(comm, name);
  });
  return *group;
}

void MpiEngine::release(MpiGroup& group) noexcept {
  {
    // After a failure, or after the end, the communicators go with the process.
    const std::lock_guard lock(mutex_);
    if (failed_ || stopped_) return;
  }
  if (std::uncaught_exceptions() > 0) return;
  try {
    order(Urgency::after_operations, [&] {
      if (last_group_ == &group) last_group_ = nullptr;
      check_mpi(MPI_Comm_free(&group.comm), "MPI_Comm_free");
      std::erase_if(groups_, [&](const auto& owned) { return owned.get() == &group; });
    });
  } catch (...) {
    // The failure is kept; the next call reports it.
  }
}

void MpiEngine::trace(Trace* trace) noexcept {
  try {
    call([this, trace] { trace_ = trace; });
  } catch (...) {
    // The failure is kept; the next call reports it.
  }
}

uint64_t MpiEngine::submit(MpiGroup& group, MpiOperationSpec spec,
                           std::span<const Transfer> transfers) {
  uint32_t index = 0;
  {
    const std::lock_guard lock(mutex_);
    throw_if_failed();
    if (free_.empty()) {
      throw MpiError("{} operations are outstanding and none of them has been waited for", kSlots);
    }
    index = free_.back();
    free_.pop_back();
    Slot& slot = slots_[index];
    slot.messages.clear();
    for (const Transfer& transfer : transfers) {
      slot.messages.push_back({transfer.receives(), transfer.peer,
                               const_cast<std::byte*>(transfer.tensor.data()),
                               transfer.tensor.bytes()});
    }
    if (spec.collective == Collective::exchange) {
      spec.sequence = group.exchanges++;
    } else {
      spec.sequence = group.collectives++;
    }
    if (options_.late) slot.late.redirect(spec, slot.messages, group.size());
    slot.group = &group;
    slot.spec = spec;
    slot.awaited = false;
    slot.state.store(State::queued, std::memory_order_relaxed);
    submitted_.push_back(index);
    orders_.store(true, std::memory_order_release);
  }
  wake_.notify_one();
  return index;
}

void MpiEngine::mark_awaited(Slot& slot) {
  if (!options_.late) return;
  {
    const std::lock_guard lock(mutex_);
    slot.awaited = true;
    orders_.store(true, std::memory_order_release);
  }
  wake_.notify_one();
}

void MpiEngine::wait(uint64_t ticket) {
  Slot& slot = slots_[ticket];
  mark_awaited(slot);
  slot.state.wait(State::queued, std::memory_order_acquire);
  const bool failed = slot.state.load(std::memory_order_acquire) == State::failed;
  if (options_.late && !failed) slot.late.deliver();
  const std::lock_guard lock(mutex_);
  slot.state.store(State::free, std::memory_order_relaxed);
  free_.push_back(static_cast<uint32_t>(ticket));
  if (failed) throw MpiError("{}", failure_);
}

void MpiEngine::abandon(uint64_t ticket) noexcept {
  Slot& slot = slots_[ticket];
  mark_awaited(slot);
  if (std::uncaught_exceptions() == 0) {
    slot.state.wait(State::queued, std::memory_order_acquire);
    const bool done = slot.state.load(std::memory_order_acquire) == State::done;
    if (options_.late && done) slot.late.deliver();
  } else {
    // An error is on its way to the user, and the other ranks may never take part in this. What
    // they did take part in ends soon; the rest is stopped, since the buffers are about to go.
    const auto deadline = MpiOperation::Clock::now() + kGrace;
    while (slot.state.load(std::memory_order_acquire) == State::queued) {
      if (MpiOperation::Clock::now() > deadline) {
        halt();
        break;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  const std::lock_guard lock(mutex_);
  slot.state.store(State::free, std::memory_order_relaxed);
  free_.push_back(static_cast<uint32_t>(ticket));
}

void MpiEngine::halt() noexcept {
  std::unique_lock lock(mutex_);
  halt_requested_ = true;
  orders_ = true;
  wake_.notify_one();
  changed_.wait_for(lock, kPatience, [this] { return failed_ || stopped_; });
}

bool MpiEngine::claim_report() noexcept {
  try {
    std::unique_lock lock(mutex_);
    if (!failed_ && !stopped_) {
      claim_requested_ = true;
      orders_ = true;
      wake_.notify_one();
      changed_.wait_for(lock, kPatience,
                        [this] { return report_granted_.has_value() || failed_ || stopped_; });
    }
    return may_report();
  } catch (...) {
    return true;
  }
}

/// Once: the calling thread or the communication thread.
bool MpiEngine::may_report() {
  return report_granted_.value_or(true) && !std::exchange(reported_, true);
}

void MpiEngine::abort(int exit_code) noexcept {
  {
    std::unique_lock lock(mutex_);
    abort_code_ = exit_code;
    orders_ = true;
    wake_.notify_one();
    changed_.wait_for(lock, kPatience, [] { return false; });
  }
  // The communication thread is caught in a call. Leaving without MPI_Finalize also makes the
  // launcher end the other ranks.
  std::_Exit(exit_code);
}

void MpiEngine::finish() {
  MpiOperationSpec barrier;
  barrier.collective = Collective::barrier;
  barrier.watched = false;  // a rank may have a lot to write before it is done
  wait(submit(*world_, barrier));
  order(Urgency::after_operations, [this] { finalise(); });
}

}  // namespace gradus
