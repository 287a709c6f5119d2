#include "heap_calls.h"

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>

#include "support/onednn_calls.h"

namespace {

std::atomic<int64_t> calls = 0;
std::atomic<bool> trap = false;

void count() {
  if (gradus::test::inside_onednn) return;
  calls.fetch_add(1, std::memory_order_relaxed);
  if (trap.load(std::memory_order_relaxed)) std::raise(SIGTRAP);
}

}  // namespace

#if defined(__SANITIZE_ADDRESS__)

// The sanitizer owns malloc, and tells of each request. Declared here because GCC has the function
// in its library and the header not in every package of it.
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*malloc_hook)(const volatile void*,
                                                                             size_t),
                                                         void (*free_hook)(const volatile void*));

namespace {
[[maybe_unused]] const int installed = __sanitizer_install_malloc_and_free_hooks(
    [](const volatile void*, size_t) { count(); }, [](const volatile void*) {});
}  // namespace

#else

// glibc's own names for what is replaced here; free() stays as it is.
extern "C" {
void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* memory, size_t size);
void* __libc_memalign(size_t alignment, size_t size);

void* malloc(size_t size) {
  count();
  return __libc_malloc(size);
}
void* calloc(size_t number, size_t size) {
  count();
  return __libc_calloc(number, size);
}
void* realloc(void* memory, size_t size) {
  count();
  return __libc_realloc(memory, size);
}
void* memalign(size_t alignment, size_t size) {
  count();
  return __libc_memalign(alignment, size);
}
void* aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }
int posix_memalign(void** memory, size_t alignment, size_t size) {
  void* got = memalign(alignment, size);
  if (got == nullptr) return ENOMEM;
  *memory = got;
  return 0;
}
}

#endif

namespace gradus::test {

int64_t heap_calls() { return calls.load(std::memory_order_relaxed); }

TrapHeapCalls::TrapHeapCalls() { trap = true; }
TrapHeapCalls::~TrapHeapCalls() { trap = false; }

}  // namespace gradus::test
