#include "cli/openmp_settings.h"

#include <fmt/format.h>
#include <sys/auxv.h>
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

}  // namespace

std::string apply_openmp_settings(char** argv) {
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
