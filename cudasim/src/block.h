#pragma once

#include <driver_types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "cudasim/block.h"
#include "cudasim/ptx.h"
#include "cudasim/warp.h"
#include "fault.h"
#include "fiber.h"
#include "random.h"

namespace cudasim {

inline constexpr int kWarpSize = 32;
inline constexpr int kMaxThreads = 1024;
inline constexpr int kMaxWarps = kMaxThreads / kWarpSize;

/// One launch of a kernel.
struct Grid {
  dim3 blocks;
  dim3 threads;
  size_t shared_bytes = 0;
  const void* kernel = nullptr;
  std::function<void()> body;
};

/// Runs blocks, one after another, on the OS thread that it was made on. A block's threads are
/// fibers that run until they wait for each other; which warp goes on, and which of its lanes, is
/// drawn by chance.
class BlockRunner {
 public:
  BlockRunner();
  ~BlockRunner();
  BlockRunner(const BlockRunner&) = delete;
  BlockRunner& operator=(const BlockRunner&) = delete;

  /// Runs one block; false if it went wrong, which has been reported.
  bool run(const Grid& grid, uint3 block, Random random);

  // For a thread that is running.
  static bool is_running();
  static BlockRunner& current();
  int barrier(Barrier kind, int predicate, Site site);
  void collective(WarpOperation operation, uint32_t mask, WarpWork work, const void* in,
                  size_t in_bytes, void* out, size_t out_bytes, Site site);
  void copy(void* shared, const void* global, int bytes, int source_bytes, Site site);
  void commit_copies();
  void wait_for_copies(int pending);
  void* shared() const { return shared_; }
  int lane() const { return running_ % kWarpSize; }
  /// Reports words(), and leaves the block: the calling thread does not go on, and nothing on its
  /// stack is destroyed, which is why the words are made here.
  template <typename Words>
  [[noreturn]] void fail(cudaError_t error, const Words& words) {
    report_fault(error, words());
    stop();
  }
  /// "kernel: thread (x, y, z) of block (x, y, z)" of the running thread.
  std::string who() const;
  std::string kernel_name() const;

 private:
  /// Lanes that wait for the rest of their mask.
  struct Meeting {
    uint32_t mask = 0;  ///< 0: none
    uint32_t arrived = 0;
    WarpOperation operation = WarpOperation::sync;
    Site site;
  };
  struct Warp {
    uint32_t present = 0;
    uint32_t exited = 0;
    uint32_t ready = 0;
    int rank = 0;  ///< its place in the order of priorities
    std::array<Meeting, kWarpSize> meetings;
    int meeting_count = 0;
    std::array<LaneSlot, kWarpSize> lanes;
  };
  /// An asynchronous copy that has not happened yet.
  struct Copy {
    void* to;
    const void* from;
    int bytes;
    int source_bytes;
    int group;
  };
  struct Copies {
    std::vector<Copy> pending;
    int groups = 0;  ///< committed so far
  };
  struct Rendezvous {
    int arrived = 0;
    Barrier kind = Barrier::plain;
    Site site;
    int count = 0;
    int result = 0;
  };
  enum class Order { forwards, backwards, drawn_once, drawn_often };

  void prepare(const Grid& grid, uint3 block);
  void schedule();
  void draw_priorities();
  void make_ready(int warp, uint32_t lanes);
  void wait();
  [[noreturn]] void stop();
  void thread_main();
  void leave();
  static void perform(const Copy& copy);
  /// Some of the running thread's copies happen, where they may.
  void land_some_copies();
  void abandon_all();
  std::string where_everyone_is() const;

  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::array<Warp, kMaxWarps> warps_;
  std::array<int, kMaxWarps> warp_of_rank_{};
  std::vector<Copies> copies_;
  std::vector<uint3> indices_;  ///< of the threads, in order
  uint32_t ready_ranks_ = 0;
  Rendezvous rendezvous_;
  Random random_{0};
  Order order_ = Order::forwards;
  const Grid* grid_ = nullptr;
  int threads_ = 0;
  int warp_count_ = 0;
  int exited_ = 0;
  int running_ = 0;
  bool copies_land_between_ = false;
  bool failed_ = false;
  bool inside_ = false;  ///< a thread is running
  char begin_ = 0;       ///< for ThreadSanitizer
  char end_ = 0;
  std::vector<std::byte> shared_memory_;
  std::byte* shared_ = nullptr;
};

}  // namespace cudasim
