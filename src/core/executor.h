#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <memory>
#include <typeindex>
#include <utility>
#include <vector>

#include "core/tensor.h"

namespace gradus {

/// Told of every tensor that an operation wrote, in program order. Used to find the first
/// non-finite value of a replayed step, and to trace what a step spends its time on.
class OperationObserver {
 public:
  virtual ~OperationObserver() = default;
  virtual void completed(const char* operation, const ConstTensor& written) = 0;
  /// A communication has been waited for; `written` is undefined where it wrote nothing.
  virtual void waited(const char* operation, const ConstTensor& written) {
    if (written.defined()) completed(operation, written);
  }
};

/// What an operation runs on: a device, its threads and its scratch memory. One an (MPI) rank;
/// passed to every operation, never global.
class Executor {
 public:
  /// threads: of this process for CPU work; 0 takes every core this process may run on,
  /// or as many as its control group grants the time of (core/control_group.h).
  explicit Executor(Device device = Device::cpu, int threads = 0);
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  Device device() const { return device_; }
  /// By which work is cut. OpenMP may give a smaller team, which then does all of it
  /// (core/thread_team.h).
  int threads() const { return threads_; }

  /// From now on scratch comes from this memory (the arena's) and from nowhere else. An undefined
  /// tensor goes back to allocating it at need, as tests and tools do.
  void bind_scratch(Tensor memory);
  /// Bytes of bound scratch memory that are not taken; without bound memory there is no limit.
  int64_t scratch_left() const {
    return scratch_.defined() ? scratch_.bytes() - scratch_used_
                              : std::numeric_limits<int64_t>::max();
  }

  /// What operations keep between calls on this executor, such as compiled primitives: one T,
  /// default-constructed at the first call and destroyed with the executor.
  template <typename T>
  T& state() {
    std::shared_ptr<void>& slot = state_slot(typeid(T));
    if (slot == nullptr) slot = std::make_shared<T>();
    return *static_cast<T*>(slot.get());
  }

  void observe(OperationObserver* observer) { observer_ = observer; }
  /// Each operation ends with this.
  void completed(const char* operation, std::initializer_list<ConstTensor> written) {
    if (observer_ == nullptr) return;
    for (const ConstTensor& tensor : written) {
      if (tensor.defined()) observer_->completed(operation, tensor);
    }
  }
  /// Each wait for a communication ends with this.
  void waited(const char* operation, const ConstTensor& written) {
    if (observer_ != nullptr) observer_->waited(operation, written);
  }

 private:
  friend class Scratch;

  std::shared_ptr<void>& state_slot(std::type_index type);

  Device device_;
  int threads_;
  OperationObserver* observer_ = nullptr;
  Tensor scratch_;
  int64_t scratch_used_ = 0;
  std::vector<std::pair<std::type_index, std::shared_ptr<void>>> states_;
};

/// The bytes that `count` elements of T take in scratch memory, alignment included. An operation
/// with scratch declares `<operation>_scratch(...)`, the sum of these over its takes.
template <typename T>
constexpr int64_t scratch_bytes(int64_t count) {
  return (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
}

/// Scratch memory of one operation: taken piece by piece, given back together at the end of the
/// scope.
class Scratch {
 public:
  explicit Scratch(Executor& x) : x_(x), begin_(x.scratch_used_) {}
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  /// Uninitialised, aligned to 64 bytes. Throws MemoryError when the bound memory does not suffice.
  template <typename T>
  T* take(int64_t count) {
    return static_cast<T*>(take_bytes(scratch_bytes<T>(count)));
  }

 private:
  void* take_bytes(int64_t bytes);

  Executor& x_;
  int64_t begin_;
  std::vector<void*> owned_;
};

}  // namespace gradus
