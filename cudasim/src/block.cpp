#include "block.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

#include "cudasim/memory.h"
#include "fault.h"
#include "order.h"
#include "program_symbols.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

constinit thread_local uint3 threadIdx{};
constinit thread_local uint3 blockIdx{};
constinit thread_local dim3 blockDim{};
constinit thread_local dim3 gridDim{};

namespace cudasim {
namespace {

constinit thread_local BlockRunner* runner = nullptr;

constexpr size_t kSharedAlignment = 1024;
constexpr size_t kSharedFence = 1024;
/// NaN in every floating-point type, -1 in integers.
constexpr int kPoison = 0xff;

std::string text_of(uint3 v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

const char* name_of(WarpOperation operation) {
  switch (operation) {
    case WarpOperation::sync:
      return "__syncwarp";
    case WarpOperation::shuffle:
      return "a shuffle";
    case WarpOperation::all:
    case WarpOperation::any:
    case WarpOperation::ballot:
      return "a vote";
    case WarpOperation::ldmatrix:
      return "ldmatrix";
    case WarpOperation::mma:
      return "mma";
    default:
      return "a reduction";
  }
}

bool same(Site a, Site b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

}  // namespace

BlockRunner::BlockRunner() = default;
BlockRunner::~BlockRunner() = default;

bool BlockRunner::is_running() { return runner != nullptr && runner->inside_; }
BlockRunner& BlockRunner::current() { return *runner; }

bool BlockRunner::run(const Grid& grid, uint3 block, Random random) {
  random_ = random;
  prepare(grid, block);
  runner = this;
  release(&begin_);
  schedule();
  acquire(&end_);
  runner = nullptr;
  [[maybe_unused]] const std::byte* fence = shared_ + grid.shared_bytes;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(fence, kSharedFence);
#endif
  if (failed_) {
    abandon_all();
    return false;
  }
#if !defined(__SANITIZE_ADDRESS__)
  for (size_t i = 0; i < kSharedFence; ++i) {
    if (fence[i] != std::byte{kPoison}) {
      report_fault(cudaErrorIllegalAddress, kernel_name() + ": block " + text_of(block) +
                                                " wrote byte " +
                                                std::to_string(grid.shared_bytes + i) +
                                                " of dynamic shared memory, which has " +
                                                std::to_string(grid.shared_bytes) + " bytes");
      return false;
    }
  }
#endif
  return true;
}

void BlockRunner::prepare(const Grid& grid, uint3 block) {
  grid_ = &grid;
  gridDim = grid.blocks;
  blockIdx = block;
  if (indices_.empty() || blockDim.x != grid.threads.x || blockDim.y != grid.threads.y ||
      blockDim.z != grid.threads.z) {
    blockDim = grid.threads;
    indices_.clear();
    for (unsigned z = 0; z < blockDim.z; ++z) {
      for (unsigned y = 0; y < blockDim.y; ++y) {
        for (unsigned x = 0; x < blockDim.x; ++x) {
          indices_.push_back({x, y, z});
        }
      }
    }
  }
  threads_ = static_cast<int>(grid.threads.x * grid.threads.y * grid.threads.z);
  warp_count_ = (threads_ + kWarpSize - 1) / kWarpSize;
  exited_ = 0;
  failed_ = false;
  rendezvous_ = {};
  while (fibers_.size() < static_cast<size_t>(threads_)) {
    fibers_.push_back(
        std::make_unique<Fiber>(static_cast<int>(fibers_.size()), [this] { thread_main(); }));
  }
  copies_.resize(std::max(copies_.size(), static_cast<size_t>(threads_)));

  const size_t bytes = grid.shared_bytes + kSharedAlignment + kSharedFence;
  if (shared_memory_.size() < bytes) {
    shared_memory_.resize(bytes);
  }
  auto address = reinterpret_cast<uintptr_t>(shared_memory_.data());
  address = (address + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment;
  shared_ = reinterpret_cast<std::byte*>(address);
  std::memset(shared_, kPoison, grid.shared_bytes + kSharedFence);
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(shared_ + grid.shared_bytes, kSharedFence);
#endif
  poison_shared_variables();

  ready_ranks_ = 0;
  for (int w = 0; w < warp_count_; ++w) {
    Warp& warp = warps_[w];
    const int lanes = std::min(kWarpSize, threads_ - w * kWarpSize);
    warp.present = lanes == kWarpSize ? ~0u : (1u << lanes) - 1;
    warp.exited = 0;
    warp.ready = warp.present;
    warp.meeting_count = 0;
  }
  order_ = static_cast<Order>(random_.below(4));
  copies_land_between_ = random_.below(2) == 1;
  draw_priorities();
}

void BlockRunner::draw_priorities() {
  for (int i = 0; i < warp_count_; ++i) {
    warp_of_rank_[i] = order_ == Order::backwards ? warp_count_ - 1 - i : i;
  }
  if (order_ == Order::drawn_once || order_ == Order::drawn_often) {
    for (int i = warp_count_ - 1; i > 0; --i) {
      std::swap(warp_of_rank_[i], warp_of_rank_[random_.below(static_cast<uint32_t>(i + 1))]);
    }
  }
  ready_ranks_ = 0;
  for (int rank = 0; rank < warp_count_; ++rank) {
    Warp& warp = warps_[warp_of_rank_[rank]];
    warp.rank = rank;
    if (warp.ready != 0) {
      ready_ranks_ |= 1u << rank;
    }
  }
}

void BlockRunner::schedule() {
  while (exited_ < threads_) {
    if (order_ == Order::drawn_often && random_.below(64) == 0) {
      draw_priorities();
    }
    if (ready_ranks_ == 0) {
      report_fault(cudaErrorLaunchFailure, kernel_name() + ": block " + text_of(blockIdx) +
                                               " hangs: " + where_everyone_is());
      failed_ = true;
      return;
    }
    const int w = warp_of_rank_[std::countr_zero(ready_ranks_)];
    Warp& warp = warps_[w];
    uint32_t choice = warp.ready;
    if (order_ == Order::backwards) {
      choice = 1u << (31 - std::countl_zero(choice));
    } else if (order_ != Order::forwards) {
      // The first ready lane from a drawn one on.
      const int first = static_cast<int>(random_.below(kWarpSize));
      const uint32_t above = warp.ready >> first << first;
      choice = above != 0 ? above & -above : warp.ready & -warp.ready;
    }
    const int lane = std::countr_zero(choice);
    warp.ready &= ~(1u << lane);
    if (warp.ready == 0) {
      ready_ranks_ &= ~(1u << warp.rank);
    }
    running_ = w * kWarpSize + lane;
    threadIdx = indices_[static_cast<size_t>(running_)];
    inside_ = true;
    fibers_[static_cast<size_t>(running_)]->resume();
    inside_ = false;
    if (failed_) {
      return;
    }
  }
}

void BlockRunner::make_ready(int w, uint32_t lanes) {
  Warp& warp = warps_[w];
  warp.ready |= lanes;
  if (warp.ready != 0) {
    ready_ranks_ |= 1u << warp.rank;
  }
}

void BlockRunner::wait() {
  release(&end_);  // where a block fails, this was its end
  fibers_[static_cast<size_t>(running_)]->suspend();
}

void BlockRunner::thread_main() {
  acquire(&begin_);
  grid_->body();
  leave();
  release(&end_);
}

void BlockRunner::leave() {
  Copies& copies = copies_[static_cast<size_t>(running_)];
  for (const Copy& copy : copies.pending) {
    perform(copy);
  }
  copies.pending.clear();
  copies.groups = 0;
  ++exited_;
  Warp& warp = warps_[running_ / kWarpSize];
  const uint32_t bit = 1u << lane();
  warp.exited |= bit;
  if (rendezvous_.arrived > 0) {
    fail(cudaErrorLaunchFailure, [&] {
      return who() + " has ended while " + std::to_string(rendezvous_.arrived) + " of " +
             std::to_string(threads_) + " threads wait at the barrier at " +
             to_string(rendezvous_.site);
    });
  }
  for (int i = 0; i < warp.meeting_count; ++i) {
    if (warp.meetings[i].mask & bit) {
      fail(cudaErrorLaunchFailure, [&] {
        return who() + " has ended while others of its warp wait for it in " +
               name_of(warp.meetings[i].operation) + " at " + to_string(warp.meetings[i].site);
      });
    }
  }
}

void BlockRunner::stop() {
  failed_ = true;
  for (;;) {
    wait();
  }
}

std::string BlockRunner::who() const {
  return kernel_name() + ": thread " + text_of(threadIdx) + " of block " + text_of(blockIdx);
}

std::string BlockRunner::kernel_name() const { return cudasim::kernel_name(grid_->kernel); }

void BlockRunner::abandon_all() {
  for (int i = 0; i < threads_; ++i) {
    fibers_[static_cast<size_t>(i)]->abandon();
    copies_[static_cast<size_t>(i)] = {};
  }
}

std::string BlockRunner::where_everyone_is() const {
  std::string text =
      std::to_string(exited_) + " of " + std::to_string(threads_) + " threads have ended";
  if (rendezvous_.arrived > 0) {
    text += ", " + std::to_string(rendezvous_.arrived) + " wait at the barrier at " +
            to_string(rendezvous_.site);
  }
  for (int w = 0; w < warp_count_; ++w) {
    for (int i = 0; i < warps_[w].meeting_count; ++i) {
      const Meeting& meeting = warps_[w].meetings[i];
      text += ", " + std::to_string(std::popcount(meeting.arrived)) + " lanes of warp " +
              std::to_string(w) + " wait for " +
              std::to_string(std::popcount(meeting.mask & ~meeting.arrived)) + " others in " +
              name_of(meeting.operation) + " at " + to_string(meeting.site);
    }
  }
  return text;
}

int BlockRunner::barrier(Barrier kind, int predicate, Site site) {
  land_some_copies();
  Rendezvous& meet = rendezvous_;
  if (exited_ > 0) {
    fail(cudaErrorLaunchFailure, [&] {
      return who() + " comes to the barrier at " + to_string(site) + ", and " +
             std::to_string(exited_) + " of " + std::to_string(threads_) + " threads have ended";
    });
  }
  if (meet.arrived == 0) {
    meet.kind = kind;
    meet.site = site;
    meet.count = 0;
  } else if (meet.kind != kind || !same(meet.site, site)) {
    fail(cudaErrorLaunchFailure, [&] {
      return who() + " comes to the barrier at " + to_string(site) + " while " +
             std::to_string(meet.arrived) + " of " + std::to_string(threads_) +
             " threads wait at the barrier at " + to_string(meet.site);
    });
  }
  meet.count += predicate != 0;
  release(&rendezvous_);
  if (++meet.arrived < threads_) {
    wait();
    acquire(&rendezvous_);
    return meet.result;
  }
  meet.arrived = 0;
  switch (kind) {
    case Barrier::plain:
    case Barrier::count:
      meet.result = meet.count;
      break;
    case Barrier::conjunction:
      meet.result = meet.count == threads_;
      break;
    case Barrier::disjunction:
      meet.result = meet.count > 0;
      break;
  }
  for (int w = 0; w < warp_count_; ++w) {
    make_ready(w, warps_[w].present);
  }
  // The last one goes on in its turn.
  wait();
  acquire(&rendezvous_);
  return meet.result;
}

void BlockRunner::collective(WarpOperation operation, uint32_t mask, WarpWork work, const void* in,
                             size_t in_bytes, void* out, size_t out_bytes, Site site) {
  land_some_copies();
  const int w = running_ / kWarpSize;
  Warp& warp = warps_[w];
  const int lane = this->lane();
  const uint32_t bit = 1u << lane;
  const auto here = [&] { return std::string(name_of(operation)) + " at " + to_string(site); };
  if ((mask & bit) == 0) {
    fail(cudaErrorLaunchFailure,
         [&] { return who() + " comes to " + here() + ", whose mask leaves it out"; });
  }
  if ((mask & ~warp.present) != 0) {
    fail(cudaErrorLaunchFailure, [&] {
      return who() + " names lanes in the mask of " + here() + " that the block does not have";
    });
  }
  if ((mask & warp.exited) != 0) {
    fail(cudaErrorLaunchFailure, [&] {
      return who() + " names " + std::to_string(std::popcount(mask & warp.exited)) +
             " lanes in the mask of " + here() + " that have ended";
    });
  }
  Meeting* meeting = nullptr;
  for (int i = 0; i < warp.meeting_count; ++i) {
    Meeting& other = warp.meetings[i];
    if ((other.mask & mask) == 0) {
      continue;
    }
    if (other.mask != mask || other.operation != operation || !same(other.site, site)) {
      fail(cudaErrorLaunchFailure, [&] {
        return who() + " comes to " + here() + " while " +
               std::to_string(std::popcount(other.arrived)) + " lanes of its warp wait in " +
               name_of(other.operation) + " at " + to_string(other.site) +
               (other.mask != mask ? ", with another mask" : "");
      });
    }
    meeting = &other;
    break;
  }
  if (meeting == nullptr) {
    meeting = &warp.meetings[warp.meeting_count++];
    *meeting = {.mask = mask, .arrived = 0, .operation = operation, .site = site};
  }
  if (in_bytes > 0) {
    std::memcpy(warp.lanes[lane].in, in, in_bytes);
  }
  meeting->arrived |= bit;
  // Of a warp's operations only this one orders memory.
  const bool orders = operation == WarpOperation::sync;
  if (orders) {
    release(&warp);
  }
  if (meeting->arrived == mask) {
    *meeting = warp.meetings[--warp.meeting_count];
    if (work != nullptr) {
      work(mask, warp.lanes.data());
    }
    make_ready(w, mask);
  }
  wait();
  if (orders) {
    acquire(&warp);
  }
  if (out_bytes > 0) {
    std::memcpy(out, warp.lanes[lane].out, out_bytes);
  }
}

void BlockRunner::perform(const Copy& copy) {
  std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.source_bytes));
  std::memset(static_cast<std::byte*>(copy.to) + copy.source_bytes, 0,
              static_cast<size_t>(copy.bytes - copy.source_bytes));
}

void BlockRunner::copy(void* shared, const void* global, int bytes, int source_bytes, Site site) {
  if (source_bytes < 0 || source_bytes > bytes) {
    fail(cudaErrorLaunchFailure, [&] {
      return who() + " copies " + std::to_string(source_bytes) + " of " + std::to_string(bytes) +
             " bytes";
    });
  }
  check_aligned(shared, static_cast<size_t>(bytes), site);
  check_aligned(global, static_cast<size_t>(bytes), site);
  Copies& copies = copies_[static_cast<size_t>(running_)];
  const Copy copy{shared, global, bytes, source_bytes, copies.groups};
  if (random_.below(2) == 0) {
    perform(copy);
    return;
  }
  // What is there until it happens is nobody's to read.
  std::memset(shared, kPoison, static_cast<size_t>(bytes));
  copies.pending.push_back(copy);
}

void BlockRunner::land_some_copies() {
  Copies& copies = copies_[static_cast<size_t>(running_)];
  if (!copies_land_between_ || copies.pending.empty()) {
    return;
  }
  const auto lands = [this](const Copy& copy) {
    if (random_.below(4) != 0) {
      return false;
    }
    perform(copy);
    return true;
  };
  copies.pending.erase(std::remove_if(copies.pending.begin(), copies.pending.end(), lands),
                       copies.pending.end());
}

void BlockRunner::commit_copies() { ++copies_[static_cast<size_t>(running_)].groups; }

void BlockRunner::wait_for_copies(int pending) {
  Copies& copies = copies_[static_cast<size_t>(running_)];
  const int done = copies.groups - pending;  // groups below it
  size_t kept = 0;
  for (const Copy& copy : copies.pending) {
    if (copy.group < done) {
      perform(copy);
    } else {
      copies.pending[kept++] = copy;
    }
  }
  copies.pending.resize(kept);
}

// ---- what kernels call ----

int block_barrier(Barrier kind, int predicate, Site site) {
  return BlockRunner::current().barrier(kind, predicate, site);
}

void* dynamic_shared() { return BlockRunner::current().shared(); }

int lane() { return BlockRunner::current().lane(); }

void trap(Site site) {
  BlockRunner& block = BlockRunner::current();
  block.fail(cudaErrorLaunchFailure,
             [&] { return block.who() + " trapped at " + cudasim::to_string(site); });
}

void misaligned(const void* pointer, size_t bytes, Site site) {
  char text[32];
  std::snprintf(text, sizeof(text), "%p", pointer);
  if (runner == nullptr) {
    std::fprintf(stderr, "cudasim: the host accesses %zu bytes at %s, misaligned, at %s\n", bytes,
                 text, cudasim::to_string(site).c_str());
    std::abort();
  }
  BlockRunner& block = *runner;
  block.fail(cudaErrorMisalignedAddress, [&] {
    return block.who() + " accesses " + std::to_string(bytes) + " bytes at " + text +
           ", misaligned, at " + cudasim::to_string(site);
  });
}

void warp_collective(WarpOperation operation, uint32_t mask, WarpWork work, const void* in,
                     size_t in_bytes, void* out, size_t out_bytes, Site site) {
  BlockRunner::current().collective(operation, mask, work, in, in_bytes, out, out_bytes, site);
}

void cp_async(void* shared, const void* global, int bytes, int source_bytes, Site site) {
  BlockRunner::current().copy(shared, global, bytes, source_bytes, site);
}
void cp_async_commit() { BlockRunner::current().commit_copies(); }
void cp_async_wait(int pending) { BlockRunner::current().wait_for_copies(pending); }

}  // namespace cudasim
