#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(CUDASIM_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace cudasim {
namespace {

namespace context = boost::context;

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = size_t{256} << 10;
#else
constexpr size_t kStackBytes = size_t{64} << 10;
#endif

/// The stack belongs to the Fiber.
struct NoAllocator {
  context::stack_context allocate() { return {}; }
  void deallocate(context::stack_context&) {}
};

// What AddressSanitizer must know of a switch to another stack, before and after it.
void before_switch([[maybe_unused]] void** fake_stack, [[maybe_unused]] const void* bottom,
                   [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fake_stack, bottom, bytes);
#endif
}
void after_switch([[maybe_unused]] void* fake_stack, [[maybe_unused]] const void** old_bottom,
                  [[maybe_unused]] size_t* old_bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, old_bottom, old_bytes);
#endif
}

}  // namespace

Fiber::Fiber(int number, std::function<void()> body) : body_(std::move(body)) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t bytes = kStackBytes + page;
  void* mapping = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) {
    throw std::bad_alloc();
  }
  mprotect(mapping, page, PROT_NONE);
  mapping_ = static_cast<std::byte*>(mapping);
  stack_ = mapping_ + page;
  stack_bytes_ = kStackBytes - static_cast<size_t>(number % 61) * 64;
#if defined(CUDASIM_TSAN)
  thread_sanitizer_ = __tsan_create_fiber(0);
  __tsan_set_fiber_name(thread_sanitizer_, "thread of a block");
#endif
  create();
}

Fiber::~Fiber() {
  abandon();
#if defined(CUDASIM_TSAN)
  __tsan_destroy_fiber(thread_sanitizer_);
#endif
  new (&inside_) context::fiber();
  munmap(mapping_, static_cast<size_t>(stack_ - mapping_) + kStackBytes);
}

void Fiber::create() {
  context::stack_context stack;
  stack.sp = stack_ + stack_bytes_;
  stack.size = stack_bytes_;
  const context::preallocated place(stack.sp, stack.size, stack);
  // The object there may hold a body to be forgotten, which its destructor would unwind.
  new (&inside_)
      context::fiber(std::allocator_arg, place, NoAllocator{}, [this](context::fiber&& outside) {
        after_switch(nullptr, &outside_stack_, &outside_bytes_);
        outside_ = std::move(outside);
        for (;;) {
          body_();
          suspend();
        }
        return context::fiber();
      });
}

void Fiber::resume() {
  void* fake_stack = nullptr;
  before_switch(&fake_stack, stack_, stack_bytes_);
#if defined(CUDASIM_TSAN)
  outside_thread_sanitizer_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(thread_sanitizer_, __tsan_switch_to_fiber_no_sync);
#endif
  inside_ = std::move(inside_).resume();
  after_switch(fake_stack, nullptr, nullptr);
}

void Fiber::suspend() {
  void* fake_stack = nullptr;
  before_switch(&fake_stack, outside_stack_, outside_bytes_);
#if defined(CUDASIM_TSAN)
  __tsan_switch_to_fiber(outside_thread_sanitizer_, __tsan_switch_to_fiber_no_sync);
#endif
  outside_ = std::move(outside_).resume();
  after_switch(fake_stack, &outside_stack_, &outside_bytes_);
}

void Fiber::abandon() {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_, kStackBytes);
#endif
  create();
}

}  // namespace cudasim
