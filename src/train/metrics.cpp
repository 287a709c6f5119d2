#include "train/metrics.h"

#include <cerrno>
#include <cstring>
#include <string>

#include "core/atomic_file.h"
#include "core/error.h"

namespace gradus {
namespace {

/// The file's lines up to a step, with or without its evaluation. A last line that a kill cut short
/// is dropped too.
std::string lines_until(const std::filesystem::path& path, int64_t last_step, bool evaluation_due) {
  std::ifstream in(path);
  std::string kept;
  std::string line;
  while (std::getline(in, line)) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    if (json.is_discarded() || !json.is_object()) continue;
    const int64_t step = json.value("step", int64_t{0});
    const bool again = evaluation_due && step == last_step && json.value("event", "") == "eval";
    if (step <= last_step && !again) kept += line + "\n";
  }
  return kept;
}

}  // namespace

MetricsFile::MetricsFile(const std::filesystem::path& path, int64_t last_step, bool evaluation_due)
    : path_(path) {
  if (std::filesystem::exists(path)) {
    const std::string kept = lines_until(path, last_step, evaluation_due);
    AtomicFile file(path);
    file.write(kept);
    file.publish();
  }
  out_.open(path, std::ios::app);
  if (!out_) throw IoError("cannot write {}: {}", path.string(), std::strerror(errno));
}

void MetricsFile::write(const nlohmann::json& line) {
  out_ << line.dump() << '\n' << std::flush;
  if (!out_) throw IoError("cannot write {}: {}", path_.string(), std::strerror(errno));
}

}  // namespace gradus
