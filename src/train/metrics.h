#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace gradus {

/// RUN/metrics.jsonl: one JSON object a line, each with `event` and `step`. Numbers that JSON does
/// not have (NaN, infinities) are written as null.
///
/// A line that the system does not take, as from a full disk, is kept in memory and tried again
/// with the next: lines stay in order, and no part of one stays in the file. Beyond 4 MiB the
/// oldest that are kept are lost.
class MetricsFile {
 public:
  /// Opens for appending, after the lines of work that a resumed run does again were dropped
  /// (drop_later_metrics). Throws IoError.
  MetricsFile(const std::filesystem::path& path, int64_t last_step, bool evaluation_due = false);
  MetricsFile(const MetricsFile&) = delete;
  MetricsFile& operator=(const MetricsFile&) = delete;
  ~MetricsFile();

  /// What was found in the file when it was opened.
  const std::vector<std::string>& warnings() const { return warnings_; }

  /// Writes one line and hands it to the system. Returns what a user has to know, or nothing: that
  /// lines are kept from now on, or that those that were kept have been written.
  std::string write(const nlohmann::json& line);
  /// Tries for the last time. Returns what a user has to know, or nothing.
  std::string finish();

 private:
  bool flush();
  void lose_oldest();

  std::filesystem::path path_;
  std::vector<std::string> warnings_;
  int descriptor_ = -1;
  std::string pending_;  ///< whole lines, the oldest first
  std::string reason_;   ///< why lines are kept; empty: none are
  int64_t kept_ = 0;     ///< lines of pending_
  int64_t lost_ = 0;
};

}  // namespace gradus
