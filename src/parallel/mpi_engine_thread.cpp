// The communication thread.
#include <fmt/ranges.h>
#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <set>
#include <utility>

#include "core/counted.h"
#include "core/error.h"
#include "parallel/mpi_engine.h"

namespace gradus {
namespace {

using Clock = MpiOperation::Clock;

// Idle: how often control messages are looked for.
constexpr std::chrono::milliseconds kIdleInterval{10};
// Busy, with nothing moving: poll, then let others run between polls, then sleep between polls.
constexpr int kSpins = 16;
constexpr std::chrono::milliseconds kYieldFor{100};
constexpr std::chrono::microseconds kNap{200};
constexpr int kPollsPerControl = 64;
constexpr std::chrono::milliseconds kWatchdogInterval{100};
// A thread that has not looked for so long was stopped, perhaps with the whole job (a scheduler may
// do that): the others get their time anew.
constexpr std::chrono::seconds kSuspension{2};
// The launcher, if it is quick, says in its own words which rank has ended, and ends this one.
constexpr std::chrono::milliseconds kLauncherPatience{1000};
// How long the calling thread may take to hear of a failure.
constexpr std::chrono::seconds kCallerPatience{3};
// Of the timeout: without progress for so long, ranks are asked whether they are there at all.
constexpr double kSilenceShare = 0.5;
// Ranks that the stuck operation does not wait for itself, of which so many are named at most.
constexpr size_t kMostBeyond = 8;
// How long other ranks may take over an answer; they look every kIdleInterval.
constexpr std::chrono::milliseconds kAnswerPatience{2000};

}  // namespace

void MpiEngine::run() {
  try {
    initialise();
  } catch (...) {
    const std::lock_guard lock(mutex_);
    start_error_ = std::current_exception();
    stopped_ = true;
    changed_.notify_all();
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    started_ = true;
    changed_.notify_all();
  }
  try {
    serve();
  } catch (const std::exception& error) {
    fail(error.what());
    await_abort();
  }
  const std::lock_guard lock(mutex_);
  stopped_ = true;
  changed_.notify_all();
}

void MpiEngine::initialise() {
  int provided = MPI_THREAD_SINGLE;
  check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  if (provided < MPI_THREAD_FUNNELED) {
    throw MpiError("this MPI library was built without support for threads (MPI_THREAD_FUNNELED)");
  }
  // Inherited by every communicator made from it.
  check_mpi(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(MPI_COMM_WORLD, &size_), "MPI_Comm_size");

  MPI_Comm machine_comm = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL,
                                &machine_comm),
            "MPI_Comm_split_type");
  check_mpi(MPI_Comm_rank(machine_comm, &local_rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(machine_comm, &local_size_), "MPI_Comm_size");
  machine_ = rank_;
  check_mpi(MPI_Bcast(&machine_, 1, MPI_INT, 0, machine_comm), "MPI_Bcast");
  meet_peers(machine_comm);
  check_mpi(MPI_Comm_free(&machine_comm), "MPI_Comm_free");

  MPI_Comm control_comm = MPI_COMM_NULL;
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &control_comm), "MPI_Comm_dup");
  control_ =
      std::make_unique<MpiControl>(control_comm, [this](int32_t id) { return status_of(id); });

  for (int i = 0; i < kMaxActive; ++i) {
    pool_.push_back(std::make_unique<Active>());
    pool_.back()->operation.reserve(size_);
  }
  active_.reserve(kMaxActive);
  staging_.resize(kMaxReductions);
  for (int i = 0; i < kMaxReductions; ++i) free_staging_.push_back(i);

  MPI_Comm world_comm = MPI_COMM_NULL;
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &world_comm), "MPI_Comm_dup");
  world_ = &make_group(world_comm, "world");
  last_movement_ = next_check_ = Clock::now();
}

void MpiEngine::meet_peers(MPI_Comm machine) {
  const PeerProcess self = PeerProcess::self(rank_);
  std::vector<PeerProcess> all(static_cast<size_t>(local_size_));
  constexpr int kBytes = sizeof(PeerProcess);
  check_mpi(MPI_Allgather(&self, kBytes, MPI_BYTE, all.data(), kBytes, MPI_BYTE, machine),
            "MPI_Allgather");
  for (const PeerProcess& peer : all) {
    if (peer.rank != rank_) peers_.watch(peer);
  }
}

MpiGroup& MpiEngine::make_group(MPI_Comm comm, const std::string& name) {
  auto group = std::make_unique<MpiGroup>();
  group->comm = comm;
  group->name = name;
  check_mpi(MPI_Comm_rank(comm, &group->rank), "MPI_Comm_rank");
  int size = 0;
  check_mpi(MPI_Comm_size(comm, &size), "MPI_Comm_size");
  // The members' groups so far differ; one past the highest id of any is new to all.
  check_mpi(MPI_Allreduce(&next_group_id_, &group->id, 1, MPI_INT32_T, MPI_MAX, comm),
            "MPI_Allreduce");
  next_group_id_ = group->id + 1;

  MPI_Group members = MPI_GROUP_NULL;
  MPI_Group all = MPI_GROUP_NULL;
  check_mpi(MPI_Comm_group(comm, &members), "MPI_Comm_group");
  check_mpi(MPI_Comm_group(MPI_COMM_WORLD, &all), "MPI_Comm_group");
  std::vector<int> ranks(static_cast<size_t>(size));
  for (int i = 0; i < size; ++i) ranks[static_cast<size_t>(i)] = i;
  group->world_ranks.resize(static_cast<size_t>(size));
  check_mpi(MPI_Group_translate_ranks(members, size, ranks.data(), all, group->world_ranks.data()),
            "MPI_Group_translate_ranks");
  check_mpi(MPI_Group_free(&members), "MPI_Group_free");
  check_mpi(MPI_Group_free(&all), "MPI_Group_free");

  if (size > 1) {
    const size_t bytes = static_cast<size_t>(group->staging_bytes());
    for (std::vector<std::byte>& staging : staging_) {
      if (staging.size() < bytes) staging.resize(bytes);
    }
  }
  groups_.push_back(std::move(group));
  return *groups_.back();
}

void MpiEngine::serve() {
  for (;;) {
    if (orders_.exchange(false, std::memory_order_acquire) && !take_orders()) return;
    run_command();
    if (finalised_) return;
    const bool started = start_operations();
    const bool moved = progress_operations() || started;
    if (busy()) {
      rest(moved);
      continue;
    }
    control_->service();
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, kIdleInterval, [this] { return orders_.load(std::memory_order_relaxed); });
    last_movement_ = Clock::now();
    lock.unlock();
    look_around();
  }
}

/// False when the thread is to end.
bool MpiEngine::take_orders() {
  std::unique_lock lock(mutex_);
  if (abort_code_.has_value()) {
    const int code = *abort_code_;
    lock.unlock();
    MPI_Abort(MPI_COMM_WORLD, code);
    std::_Exit(code);
  }
  if (stop_requested_) return false;
  if (halt_requested_) throw MpiError("communication was stopped after an error on this rank");
  if (std::exchange(claim_requested_, false)) {
    lock.unlock();
    const bool granted = control_->claim_report(kAnswerPatience);
    lock.lock();
    report_granted_ = granted;
    changed_.notify_all();
  }
  if (queue_begin_ == queue_.size()) {
    queue_.clear();
    queue_begin_ = 0;
  } else if (queue_begin_ >= kSlots) {
    queue_.erase(queue_.begin(), queue_.begin() + static_cast<std::ptrdiff_t>(queue_begin_));
    queue_begin_ = 0;
  }
  queue_.insert(queue_.end(), submitted_.begin(), submitted_.end());
  submitted_.clear();
  queue_end_ = startable();
  return true;
}

/// The end of what may start. Held back or not, operations start in program order: one that is
/// waited for brings all before it along.
size_t MpiEngine::startable() const {
  size_t end = queue_.size();
  const bool all = command_ != nullptr && urgency_ == Urgency::after_operations;
  if (!options_.late || all) return end;
  while (end > queue_begin_ && !slots_[queue_[end - 1]].awaited) --end;
  return end;
}

void MpiEngine::run_command() {
  std::unique_lock lock(mutex_);
  if (command_ == nullptr) return;
  if (urgency_ == Urgency::after_operations &&
      (!active_.empty() || queue_begin_ < queue_.size() || !submitted_.empty())) {
    return;
  }
  std::exception_ptr error;
  lock.unlock();
  try {
    command_();
  } catch (...) {
    error = std::current_exception();
  }
  lock.lock();
  command_ = nullptr;
  command_error_ = error;
  changed_.notify_all();
}

/// Program order: an operation that finds no room keeps all later ones waiting.
bool MpiEngine::start_operations() {
  bool started = false;
  while (queue_begin_ < queue_end_ && !pool_.empty()) {
    const uint32_t index = queue_[queue_begin_];
    Slot& slot = slots_[index];
    const bool needs_staging = slot.spec.reduces();
    if (needs_staging && free_staging_.empty()) break;
    ++queue_begin_;
    started = true;
    active_.push_back(std::move(pool_.back()));
    pool_.pop_back();
    Active& active = *active_.back();
    active.slot = index;
    active.staging = -1;
    active.begin = Trace::Clock::now();
    active.asked = {};
    std::byte* staging = nullptr;
    if (needs_staging) {
      active.staging = free_staging_.back();
      free_staging_.pop_back();
      staging = staging_[static_cast<size_t>(active.staging)].data();
    }
    last_group_ = slot.group;
    last_spec_ = slot.spec;
    active.operation.begin(*slot.group, slot.spec, slot.messages, options_.limits, staging);
  }
  return started;
}

bool MpiEngine::progress_operations() {
  bool moved = false;
  // active_ is whole at any time: an operation that fails leaves it as it is then, and others may
  // still ask what this rank does.
  for (size_t i = 0; i < active_.size();) {
    Active& active = *active_[i];
    moved = active.operation.progress() || moved;
    if (!active.operation.finished()) {
      ++i;
      continue;
    }
    moved = true;
    if (trace_ != nullptr) {
      const MpiOperation& operation = active.operation;
      trace_->record(Trace::Track::communication, to_string(operation.spec().collective),
                     operation.group().name.c_str(), active.begin, Trace::Clock::now());
    }
    if (active.staging >= 0) free_staging_.push_back(active.staging);
    std::atomic<State>& state = slots_[active.slot].state;
    state.store(State::done, std::memory_order_release);
    state.notify_all();
    pool_.push_back(std::move(active_[i]));
    active_.erase(active_.begin() + static_cast<std::ptrdiff_t>(i));
  }
  return moved;
}

void MpiEngine::rest(bool moved) {
  if (++polls_ % kPollsPerControl == 0) control_->service();
  if (moved) {
    polls_ = 0;
    last_movement_ = Clock::now();
    look_around();
    return;
  }
  if (polls_ < kSpins) return;
  if (Clock::now() - last_movement_ < kYieldFor) {
    sched_yield();
  } else {
    std::this_thread::sleep_for(kNap);
  }
  look_around();
}

/// At intervals, whether communication goes on or not.
void MpiEngine::look_around() {
  const Clock::time_point now = Clock::now();
  if (now < next_check_) return;
  if (now - next_check_ > kSuspension) {
    for (const std::unique_ptr<Active>& active : active_) active->operation.restart_clock();
  }
  next_check_ = now + kWatchdogInterval;
  control_->service();
  check_watchdog();
  check_peers();
}

/// No rank ends before all have called finish(), after which nobody looks.
void MpiEngine::check_peers() {
  const std::optional<PeerProcess> peer = peers_.ended();
  if (!peer.has_value()) return;
  if (!peer_ended_.has_value()) peer_ended_ = Clock::now();
  if (Clock::now() - *peer_ended_ < kLauncherPatience) return;
  throw MpiError("rank {} (process {} on this machine) ended before the job did", peer->rank,
                 peer->pid);
}

void MpiEngine::check_watchdog() {
  const Clock::time_point now = Clock::now();
  const std::chrono::duration<double> timeout(options_.timeout_s);
  for (const std::unique_ptr<Active>& active : active_) {
    const MpiOperation& operation = active->operation;
    const Clock::time_point since = operation.last_progress();
    if (now - std::max(since, active->asked) <= timeout * kSilenceShare) continue;
    const std::map<int, RankAnswer> answers = ask_all(operation.group());
    const bool late = operation.spec().watched && now - since > timeout;
    const bool silence =
        std::ranges::any_of(answers, [](const auto& answer) { return !answer.second.has_value(); });
    if (late || silence) give_up(operation, now - since, answers);
    active->asked = Clock::now();
  }
}

/// All other ranks of the job, members of the group or not: a partner may wait for a third.
std::map<int, MpiEngine::RankAnswer> MpiEngine::ask_all(const MpiGroup& group) {
  std::vector<int> others;
  for (int rank = 0; rank < size_; ++rank) {
    if (rank != rank_) others.push_back(rank);
  }
  const std::vector<RankAnswer> statuses = control_->ask(others, group.id, kAnswerPatience);
  std::map<int, RankAnswer> answers;
  for (size_t i = 0; i < others.size(); ++i) answers[others[i]] = statuses[i];
  return answers;
}

void MpiEngine::give_up(const MpiOperation& operation, std::chrono::duration<double> still,
                        const std::map<int, RankAnswer>& answers) {
  const MpiGroup& group = operation.group();
  const MpiOperationSpec& spec = operation.spec();
  const bool exchange = spec.collective == Collective::exchange;
  // Every member has to come to a collective; only the partners to an exchange.
  std::set<int> involved(group.world_ranks.begin(), group.world_ranks.end());
  if (exchange) {
    involved.clear();
    for (const int peer : operation.awaited_peers()) {
      involved.insert(group.world_ranks[static_cast<size_t>(peer)]);
    }
  }
  std::set<int> arrived{rank_};
  std::string others;
  size_t beyond = 0;
  for (const auto& [rank, status] : answers) {
    const bool here = involved.contains(rank);
    if (!here && ((status.has_value() && status->waits) || ++beyond > kMostBeyond)) continue;
    if (!status.has_value()) {
      others += fmt::format("\n  rank {} does not answer: it is stopped or gone", rank);
    } else if (!here) {
      others += fmt::format("\n  rank {} waits for nobody: it {}", rank, status->doing);
    } else if (exchange) {
      others += fmt::format("\n  rank {}, its partner, {}", rank, status->doing);
    } else if (status->collectives > spec.sequence) {
      arrived.insert(rank);
    } else {
      others += fmt::format("\n  rank {} has not called it: it {}", rank, status->doing);
    }
  }
  if (!exchange) {
    others = fmt::format("\n  called by {} {}", plural(std::ssize(arrived), "rank"),
                         fmt::join(arrived, " ")) +
             others;
  }
  throw MpiError(
      "{} is stuck: no progress for {:.1f} s on rank {}.{}\n  If a rank is only slow, "
      "raise GRADUS_COMMUNICATION_TIMEOUT (seconds; now {:g}, and half of it for ranks that do not "
      "answer).",
      describe(spec, group), still.count(), rank_, others, options_.timeout_s);
}

MpiRankStatus MpiEngine::status_of(int32_t group_id) const {
  MpiRankStatus status;
  for (const std::unique_ptr<MpiGroup>& group : groups_) {
    if (group->id == group_id) status.collectives = group->collectives;
  }
  if (!active_.empty()) {
    const MpiOperation& oldest = active_.front()->operation;
    status.waits = true;
    status.doing = fmt::format("waits in {}", describe(oldest.spec(), oldest.group()));
  } else if (last_group_ != nullptr) {
    status.doing = fmt::format("is not communicating; its last call was {}",
                               describe(last_spec_, *last_group_));
  } else {
    status.doing = "has not communicated yet";
  }
  return status;
}

/// From here on nothing but await_abort() runs on this thread: buffers of operations under way may
/// go as soon as the calling thread hears of it, and MPI could still write to them.
void MpiEngine::fail(const std::string& message) noexcept {
  bool granted = true;
  try {
    granted = control_->claim_report(kAnswerPatience);
  } catch (...) {
    // The transport is broken; better two messages than none.
  }
  const std::lock_guard lock(mutex_);
  failed_ = true;
  failure_ = message;
  if (!report_granted_.has_value()) report_granted_ = granted;
  for (Slot& slot : slots_) {
    if (slot.state.load(std::memory_order_relaxed) != State::queued) continue;
    slot.state.store(State::failed, std::memory_order_release);
    slot.state.notify_all();
  }
  changed_.notify_all();
}

void MpiEngine::await_abort() {
  std::unique_lock lock(mutex_);
  const auto told = [this] { return abort_code_.has_value() || stop_requested_; };
  if (!wake_.wait_for(lock, kCallerPatience, told)) {
    // The calling thread computes, or waits for a disk, and may do so for long.
    if (may_report()) {
      options_.report(rank_, size_, failure_);
      wake_.wait_for(lock, kForwarding, told);
    } else {
      wake_.wait_for(lock, kOtherRankPatience, told);
    }
    if (!told()) abort_code_ = EXIT_FAILURE;
  }
  if (!abort_code_.has_value()) return;
  const int code = *abort_code_;
  lock.unlock();
  MPI_Abort(MPI_COMM_WORLD, code);
  std::_Exit(code);
}

void MpiEngine::finalise() {
  control_->close();
  for (const std::unique_ptr<MpiGroup>& group : groups_) {
    check_mpi(MPI_Comm_free(&group->comm), "MPI_Comm_free");
  }
  check_mpi(MPI_Finalize(), "MPI_Finalize");
  finalised_ = true;
}

}  // namespace gradus
