#include "infer/generation_threads.h"

#include <algorithm>
#include <system_error>

#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/checkpoint_writer.h"
#include "core/error.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;

// Read in about a millisecond by one core; a thread that has less waits longer than it works.
constexpr int64_t kBytesOfAThread = int64_t{16} << 20;

int64_t bytes_in(const fs::path& step_folder) {
  std::error_code error;
  const auto bytes = fs::file_size(step_folder / kModelFile, error);
  return error ? 0 : static_cast<int64_t>(bytes);
}

}  // namespace

int generation_threads(int64_t weight_bytes, int most) {
  const int64_t worth_it = weight_bytes / kBytesOfAThread;
  return static_cast<int>(std::clamp<int64_t>(worth_it, 1, std::max(1, most)));
}

int64_t stored_weight_bytes(const fs::path& path) {
  if (const int64_t bytes = bytes_in(path); bytes > 0) return bytes;
  for (const fs::path& checkpoints : {path / kCheckpointsName, path}) {
    try {
      const std::vector<fs::path> folders = list_step_folders(checkpoints);
      if (!folders.empty()) return bytes_in(folders.front());
    } catch (const IoError&) {
      return 0;  // whoever opens it says what is wrong
    }
  }
  return 0;
}

}  // namespace gradus
