#pragma once

#include <driver_types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "block.h"
#include "memory.h"
#include "random.h"

namespace cudasim {

/// One piece of work of a stream: done once everything before it on its stream is, and `after`.
struct Operation {
  std::function<void()> work;                     ///< nothing for a mark
  std::shared_ptr<Operation> previous;            ///< of the same stream; null once done
  std::vector<std::shared_ptr<Operation>> after;  ///< of other streams
  bool done = false;
  std::chrono::steady_clock::time_point when;
};

}  // namespace cudasim

struct CUstream_st {
  bool blocking = true;  ///< ordered with the default stream
  uint64_t number = 0;
  std::shared_ptr<cudasim::Operation> last;
};

struct CUevent_st {
  bool timing = true;
  uint64_t number = 0;
  std::shared_ptr<cudasim::Operation> recorded;
};

namespace cudasim {

/// The device: its memory, its streams, and what waits on them. Work is done when somebody must
/// wait for it, so as late as an order allows, or, by the seed, some of it whenever the program
/// calls.
class Device {
 public:
  /// Locks the device for one call of the runtime.
  static std::unique_lock<std::recursive_mutex> lock();
  static Device& get();

  ~Device();

  MemoryBook& memory() { return memory_; }

  bool knows(cudaStream_t stream) const;
  bool knows(cudaEvent_t event) const { return events_.count(event) > 0; }
  cudaStream_t create_stream(bool blocking);
  void destroy(cudaStream_t stream);
  cudaEvent_t create_event(bool timing);
  void destroy(cudaEvent_t event);

  /// Puts work on a stream (null: the default stream).
  std::shared_ptr<Operation> submit(cudaStream_t stream, std::function<void()> work,
                                    std::shared_ptr<Operation> after = nullptr);
  /// Does everything up to `operation`.
  void finish(const std::shared_ptr<Operation>& operation);
  void finish(cudaStream_t stream);
  void finish_all();
  std::shared_ptr<Operation> last_of(cudaStream_t stream) { return stream_of(stream).last; }
  /// Does, by chance, something of what could be done.
  void step(bool always = false);

  void run(const Grid& grid);
  /// The most dynamic shared memory that a block of `kernel` may have.
  size_t shared_limit(const void* kernel) const;
  void set_shared_limit(const void* kernel, size_t bytes) { shared_limits_[kernel] = bytes; }

  void set_seed(uint64_t seed);
  void reset();
  std::string open_resources() const;
  /// After work on the device: are all fences whole?
  void check_fences(const std::string& who);

 private:
  Device();
  CUstream_st& stream_of(cudaStream_t stream);

  MemoryBook memory_;
  CUstream_st default_stream_;
  std::set<cudaStream_t> streams_;
  std::set<cudaEvent_t> events_;
  std::map<const void*, size_t> shared_limits_;
  std::unique_ptr<BlockRunner> blocks_;
  Random random_{0};
  bool lazy_ = true;
  uint64_t count_ = 0;
};

}  // namespace cudasim
