#include "device.h"

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "cudasim/control.h"
#include "fault.h"
#include "program_symbols.h"
#include "stray_access.h"

namespace cudasim {
namespace {

constexpr size_t kSharedWithoutConsent = size_t{48} << 10;

uint64_t seed_of_environment() {
  const char* text = std::getenv("GRADUS_CUDASIM_SEED");
  return text == nullptr ? 0 : std::strtoull(text, nullptr, 10);
}

/// Says at exit what the program has left open.
struct Books {
  ~Books() {
    const std::string open = Device::get().open_resources();
    if (!open.empty()) {
      std::fprintf(stderr, "cudasim: left open at exit:\n%s", open.c_str());
      if (std::getenv("GRADUS_CUDASIM_LEAKS") == nullptr) {
        std::fflush(stderr);
        std::_Exit(1);
      }
    }
  }
};

}  // namespace

std::unique_lock<std::recursive_mutex> Device::lock() {
  static auto* mutex = new std::recursive_mutex;
  return std::unique_lock(*mutex);
}

Device& Device::get() {
  static auto* device = new Device;  // outlives whatever frees memory at exit
  static const Books books;
  return *device;
}

Device::Device() {
  set_seed(seed_of_environment());
  watch_stray_accesses();
}
Device::~Device() = default;

void Device::set_seed(uint64_t seed) {
  random_ = Random(seed);
  lazy_ = random_.below(2) == 0;
}

bool Device::knows(cudaStream_t stream) const {
  return stream == nullptr || stream == cudaStreamLegacy || streams_.count(stream) > 0;
}

CUstream_st& Device::stream_of(cudaStream_t stream) {
  return stream == nullptr || stream == cudaStreamLegacy ? default_stream_ : *stream;
}

cudaStream_t Device::create_stream(bool blocking) {
  auto* stream = new CUstream_st{.blocking = blocking, .number = ++count_, .last = nullptr};
  streams_.insert(stream);
  return stream;
}

void Device::destroy(cudaStream_t stream) {
  finish(stream);
  streams_.erase(stream);
  delete stream;
}

cudaEvent_t Device::create_event(bool timing) {
  auto* event = new CUevent_st{.timing = timing, .number = ++count_, .recorded = nullptr};
  events_.insert(event);
  return event;
}

void Device::destroy(cudaEvent_t event) {
  events_.erase(event);
  delete event;
}

std::shared_ptr<Operation> Device::submit(cudaStream_t handle, std::function<void()> work,
                                          std::shared_ptr<Operation> after) {
  step();
  CUstream_st& stream = stream_of(handle);
  auto operation = std::make_shared<Operation>();
  operation->work = std::move(work);
  const auto wait_for = [&](const std::shared_ptr<Operation>& other) {
    if (other != nullptr && !other->done) {
      operation->after.push_back(other);
    }
  };
  wait_for(after);
  if (stream.last != nullptr && !stream.last->done) {
    operation->previous = stream.last;
  }
  // The default stream waits for what was put on every blocking stream, and they for it.
  if (&stream == &default_stream_) {
    for (cudaStream_t other : streams_) {
      if (other->blocking) {
        wait_for(other->last);
      }
    }
  } else if (stream.blocking) {
    wait_for(default_stream_.last);
  }
  stream.last = operation;
  return operation;
}

void Device::finish(const std::shared_ptr<Operation>& operation) {
  if (operation == nullptr || operation->done) {
    return;
  }
  // A stream may be long: its operations are done in a loop, not by recursion.
  std::vector<std::shared_ptr<Operation>> chain;
  for (auto at = operation; at != nullptr && !at->done; at = at->previous) {
    chain.push_back(at);
  }
  while (!chain.empty()) {
    const std::shared_ptr<Operation> next = std::move(chain.back());
    chain.pop_back();
    for (const auto& other : next->after) {
      finish(other);
    }
    if (next->work && device_error() == cudaSuccess) {
      const DeviceOpen open(memory_);
      next->work();
    }
    next->when = std::chrono::steady_clock::now();
    next->done = true;
    next->work = nullptr;
    next->previous = nullptr;
    next->after.clear();
  }
}

void Device::finish(cudaStream_t stream) { finish(stream_of(stream).last); }

void Device::finish_all() {
  std::vector<std::shared_ptr<Operation>> ends;
  ends.push_back(default_stream_.last);
  for (cudaStream_t stream : streams_) {
    ends.push_back(stream->last);
  }
  for (size_t i = ends.size(); i > 1; --i) {
    std::swap(ends[i - 1], ends[random_.below(static_cast<uint32_t>(i))]);
  }
  for (const auto& end : ends) {
    finish(end);
  }
}

void Device::step(bool always) {
  if (!always && (lazy_ || random_.below(2) == 0)) {
    return;
  }
  std::vector<std::shared_ptr<Operation>> ends;
  for (cudaStream_t stream : streams_) {
    if (stream->last != nullptr && !stream->last->done) {
      ends.push_back(stream->last);
    }
  }
  if (default_stream_.last != nullptr && !default_stream_.last->done) {
    ends.push_back(default_stream_.last);
  }
  if (ends.empty()) {
    return;
  }
  // The oldest operation of a drawn stream.
  auto operation = ends[random_.below(static_cast<uint32_t>(ends.size()))];
  while (operation->previous != nullptr && !operation->previous->done) {
    operation = operation->previous;
  }
  finish(operation);
}

void Device::run(const Grid& grid) {
  if (blocks_ == nullptr) {
    blocks_ = std::make_unique<BlockRunner>();
  }
  // Blocks may come in any order.
  const uint64_t count = uint64_t{grid.blocks.x} * grid.blocks.y * grid.blocks.z;
  const bool backwards = random_.below(2) == 1;
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t flat = backwards ? count - 1 - i : i;
    const uint3 block{static_cast<unsigned>(flat % grid.blocks.x),
                      static_cast<unsigned>(flat / grid.blocks.x % grid.blocks.y),
                      static_cast<unsigned>(flat / grid.blocks.x / grid.blocks.y)};
    if (!blocks_->run(grid, block, Random(random_.next()))) {
      break;
    }
  }
  check_fences(kernel_name(grid.kernel));
}

void Device::check_fences(const std::string& who) {
  const std::string broken = memory_.broken_fence();
  if (!broken.empty()) {
    report_fault(cudaErrorIllegalAddress, who + " wrote " + broken);
  }
}

size_t Device::shared_limit(const void* kernel) const {
  const auto found = shared_limits_.find(kernel);
  return found == shared_limits_.end() ? kSharedWithoutConsent : found->second;
}

void Device::reset() {
  finish_all();
  clear_faults();
  shared_limits_.clear();
}

std::string Device::open_resources() const {
  std::string text = memory_.open();
  for (cudaStream_t stream : streams_) {
    text += "stream " + std::to_string(stream->number) + "\n";
  }
  for (cudaEvent_t event : events_) {
    text += "event " + std::to_string(event->number) + "\n";
  }
  return text;
}

void set_seed(uint64_t seed) {
  const auto lock = Device::lock();
  Device::get().set_seed(seed);
}

std::string open_resources() {
  const auto lock = Device::lock();
  return Device::get().open_resources();
}

}  // namespace cudasim
