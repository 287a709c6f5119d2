#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace gradus {

/// RUN/metrics.jsonl: one JSON object a line, each with `event` and `step`. Numbers that JSON does
/// not have (NaN, infinities) are written as null.
///
/// A line that the system does not take, as from a full disk, is kept in memory and tried again
/// with the next: lines stay in order, and no part of one stays in the file. So are all while the
/// file cannot be opened. Beyond 4 MiB the oldest that are kept are lost.
class MetricsFile {
 public:
  /// The first try opens it for appending, after the lines of work that a resumed run does again
  /// were dropped (drop_later_metrics).
  MetricsFile(const std::filesystem::path& path, int64_t last_step, bool evaluation_due = false);
  MetricsFile(const MetricsFile&) = delete;
  MetricsFile& operator=(const MetricsFile&) = delete;
  ~MetricsFile();

  /// What was found in the file when it was opened; once.
  std::vector<std::string> take_warnings() { return std::exchange(warnings_, {}); }

  /// Adds one line to those to be written.
  void keep(const nlohmann::json& line);
  /// Hands what is kept to the system. Returns what a user has to know, or nothing: that lines are
  /// kept from now on, or that those that were kept have been written.
  std::string try_again();
  /// Both.
  std::string write(const nlohmann::json& line) {
    keep(line);
    return try_again();
  }
  /// Tries for the last time. Returns what a user has to know, or nothing.
  std::string finish();

 private:
  void open();
  bool flush();
  void lose_oldest();

  std::filesystem::path path_;
  int64_t last_step_;
  bool evaluation_due_;
  std::vector<std::string> warnings_;
  int descriptor_ = -1;
  std::string pending_;  ///< whole lines, the oldest first
  std::string reason_;   ///< why lines are kept; empty: none are
  int64_t kept_ = 0;     ///< lines of pending_
  int64_t late_ = 0;     ///< of these, those that a try has failed for
  int64_t lost_ = 0;
};

}  // namespace gradus
