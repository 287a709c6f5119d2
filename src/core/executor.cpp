#include "core/executor.h"

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <new>

#include "core/control_group.h"
#include "core/error.h"

namespace gradus {
namespace {

int cores_of_process() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  const CpuQuota quota = control_group_cpus("/");
  return quota.limited() ? std::min(CPU_COUNT(&set), quota.threads(1)) : CPU_COUNT(&set);
}

}  // namespace

Executor::Executor(Device device, int threads)
    : device_(device), threads_(threads > 0 ? threads : cores_of_process()) {
  if (device != Device::cpu) throw CudaError("this build has no CUDA backend; use device: cpu");
  omp_set_dynamic(0);  // the team that is asked for, whatever the machine's load
}

Executor::~Executor() = default;

void Executor::bind_scratch(Tensor memory) {
  scratch_ = memory;
  scratch_used_ = 0;
}

std::shared_ptr<void>& Executor::state_slot(std::type_index type) {
  for (auto& [key, slot] : states_) {
    if (key == type) return slot;
  }
  return states_.emplace_back(type, nullptr).second;
}

Scratch::~Scratch() {
  x_.scratch_used_ = begin_;
  for (void* block : owned_) std::free(block);
}

void* Scratch::take_bytes(int64_t bytes) {
  if (x_.scratch_.defined()) {
    if (x_.scratch_used_ + bytes > x_.scratch_.bytes()) {
      throw MemoryError("an operation asked for {} bytes of scratch memory, {} of {} are free",
                        bytes, x_.scratch_.bytes() - x_.scratch_used_, x_.scratch_.bytes());
    }
    void* piece = x_.scratch_.data() + x_.scratch_used_;
    x_.scratch_used_ += bytes;
    return piece;
  }
  void* block = std::aligned_alloc(64, static_cast<size_t>(bytes > 0 ? bytes : 64));
  if (block == nullptr) throw std::bad_alloc();
  owned_.push_back(block);
  return block;
}

}  // namespace gradus
