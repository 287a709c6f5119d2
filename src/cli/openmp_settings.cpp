#include "cli/openmp_settings.h"

#include <fmt/format.h>
#include <sched.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace gradus::cli {
namespace {

constexpr const char* kSpinCount = "GOMP_SPINCOUNT";

/// The file that this process executes, by the name that it was started under: processes are
/// listed by it. Null when it was started through the dynamic loader (ld.so PROGRAM), which cannot
/// be told its program again; then the kernel had no interpreter to load beside it.
const char* executed_file() {
  if (getauxval(AT_BASE) == 0) return nullptr;
  return reinterpret_cast<const char*>(getauxval(AT_EXECFN));
}

// Noted before main(): afterwards nobody knows it any more.
cpu_set_t cpus_at_start;
bool cpus_noted = false;

void note_cpus() {
  // Not the library's function: a sanitizer's stands in front of it and is not ready yet.
  cpus_noted = syscall(SYS_sched_getaffinity, 0, sizeof(cpus_at_start), &cpus_at_start) > 0;
}

void free_initial_thread() {
  if (cpus_noted) sched_setaffinity(0, sizeof(cpus_at_start), &cpus_at_start);
}

}  // namespace

// libgomp binds in a constructor of its own. What is in .preinit_array of the executable runs
// before the constructors of every library.
extern "C" {
[[gnu::section(".preinit_array"), gnu::used]] void (*const gradus_note_cpus)() = note_cpus;
}

std::string apply_openmp_settings(char** argv) {
  free_initial_thread();
  if (std::getenv(kSpinCount) != nullptr || std::getenv("OMP_WAIT_POLICY") != nullptr) return {};
  const char* file = executed_file();
  if (file == nullptr) {
    return fmt::format(
        "started through the dynamic loader: set {}=1000 for machines that are not idle",
        kSpinCount);
  }
  setenv(kSpinCount, "1000", 1);
  execv(file, argv);
  const int first_error = errno;
  execv("/proc/self/exe", argv);
  unsetenv(kSpinCount);
  return fmt::format(
      "{} could not be executed again ({}): set {}=1000 for machines that are not idle", file,
      std::strerror(first_error), kSpinCount);
}

}  // namespace gradus::cli
