#include "fault.h"

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string_view>

#include "cudasim/control.h"

namespace cudasim {
namespace {

struct Faults {
  std::mutex mutex;
  cudaError_t error = cudaSuccess;
  std::string message;
};

Faults& faults() {
  static Faults instance;
  return instance;
}

}  // namespace

std::string to_string(Site site) {
  std::string_view file = site.file;
  size_t begin = file.size();
  for (int folders = 0; folders < 3 && begin != std::string_view::npos; ++folders) {
    begin = begin == 0 ? std::string_view::npos : file.rfind('/', begin - 1);
  }
  if (begin != std::string_view::npos) {
    file.remove_prefix(begin + 1);
  }
  return std::string(file) + ":" + std::to_string(site.line);
}

void report_fault(cudaError_t error, const std::string& message) {
  Faults& all = faults();
  const std::lock_guard lock(all.mutex);
  std::fprintf(stderr, "cudasim: %s\n", message.c_str());
  if (all.error == cudaSuccess) {
    all.error = error;
    all.message = message;
  }
  if (std::getenv("GRADUS_CUDASIM_ABORT") != nullptr) {
    std::abort();
  }
}

cudaError_t device_error() {
  Faults& all = faults();
  const std::lock_guard lock(all.mutex);
  return all.error;
}

void clear_faults() {
  Faults& all = faults();
  const std::lock_guard lock(all.mutex);
  all.error = cudaSuccess;
  all.message.clear();
}

std::string last_fault() {
  Faults& all = faults();
  const std::lock_guard lock(all.mutex);
  return all.message;
}

}  // namespace cudasim
