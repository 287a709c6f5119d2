#include "train/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "train/metrics_history.h"

namespace gradus {
namespace {

constexpr size_t kKeptBytes = size_t{4} << 20;

std::string lines(int64_t count) { return fmt::format("{} line{}", count, count == 1 ? "" : "s"); }

}  // namespace

MetricsFile::MetricsFile(const std::filesystem::path& path, int64_t last_step, bool evaluation_due)
    : path_(path), last_step_(last_step), evaluation_due_(evaluation_due) {}

MetricsFile::~MetricsFile() {
  if (descriptor_ < 0) return;
  flush();
  ::close(descriptor_);
}

/// Throws IoError.
void MetricsFile::open() {
  warnings_ = drop_later_metrics(path_, last_step_, evaluation_due_);
  // Nonblocking: a pipe in the file's place must not hold up the run when nobody reads it.
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0666);
  if (descriptor_ < 0) throw IoError("cannot write {}: {}", path_.string(), std::strerror(errno));
}

void MetricsFile::keep(const nlohmann::json& line) {
  pending_ += line.dump() + '\n';
  ++kept_;
}

std::string MetricsFile::try_again() {
  const int64_t late_before = std::exchange(late_, 0);
  const bool failed_before = !reason_.empty();
  if (!flush()) {
    lose_oldest();
    late_ = kept_;
    if (failed_before) return {};
    return fmt::format("{}; its lines are kept, and tried again with each new one", reason_);
  }
  if (!failed_before) return {};
  std::string said = fmt::format("{} is written again, with the {} that had been kept",
                                 path_.string(), lines(late_before));
  if (lost_ > 0) said += fmt::format("; {} before them are lost", lines(std::exchange(lost_, 0)));
  return said;
}

std::string MetricsFile::finish() {
  if (flush()) return {};
  if (kept_ + lost_ == 0) return reason_;
  return fmt::format("{}: {} could not be written and are lost: {}", path_.string(),
                     lines(kept_ + lost_), reason_);
}

/// False when the system did not take all of it. What it took of a line is taken back.
bool MetricsFile::flush() {
  try {
    if (descriptor_ < 0) open();
  } catch (const IoError& error) {
    reason_ = error.what();
    return false;
  }
  size_t taken = 0;
  while (taken < pending_.size()) {
    const ssize_t count = ::write(descriptor_, pending_.data() + taken, pending_.size() - taken);
    if (count >= 0) {
      taken += static_cast<size_t>(count);
      continue;
    }
    if (errno == EINTR) continue;
    reason_ = fmt::format("cannot write {}: {}", path_.string(), std::strerror(errno));
    break;
  }
  size_t whole = taken == 0 ? 0 : pending_.rfind('\n', taken - 1) + 1;  // npos + 1 is 0
  if (whole < taken) {
    // Not possible in a pipe: then the rest of the line follows later.
    const off_t end = ::lseek(descriptor_, 0, SEEK_END);
    const auto part = static_cast<off_t>(taken - whole);
    if (end < part || ::ftruncate(descriptor_, end - part) != 0) whole = taken;
  }
  kept_ -= std::count(pending_.begin(), pending_.begin() + static_cast<ptrdiff_t>(whole), '\n');
  pending_.erase(0, whole);
  if (!pending_.empty()) return false;
  reason_.clear();
  return true;
}

void MetricsFile::lose_oldest() {
  while (pending_.size() > kKeptBytes) {
    pending_.erase(0, pending_.find('\n') + 1);
    --kept_;
    ++lost_;
  }
}

}  // namespace gradus
