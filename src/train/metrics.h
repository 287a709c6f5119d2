#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

namespace gradus {

/// RUN/metrics.jsonl: one JSON object a line, each with `event` and `step`. Numbers that JSON does
/// not have (NaN, infinities) are written as null.
class MetricsFile {
 public:
  /// Opens for appending. Lines of steps after `last_step` are dropped first: they belong to work
  /// that a resumed run does again; and so is that step's evaluation when it is still to be made.
  /// Throws IoError.
  MetricsFile(const std::filesystem::path& path, int64_t last_step, bool evaluation_due = false);

  /// Writes one line and hands it to the system. Throws IoError.
  void write(const nlohmann::json& line);

 private:
  std::filesystem::path path_;
  std::ofstream out_;
};

}  // namespace gradus
