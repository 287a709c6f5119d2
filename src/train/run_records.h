#pragma once

#include <spdlog/logger.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "train/config.h"
#include "train/metrics.h"
#include "train/run_state.h"

namespace gradus {

/// What the first rank writes down of a run beside its checkpoints: config.yaml and metrics.jsonl.
/// A disk that is full or fails does not end the run: that is said once, and what is to be written
/// is tried again with each line of metrics and before each save.
class RunRecords {
 public:
  /// Both must outlive this.
  RunRecords(const Config& config, spdlog::logger& log) : config_(config), log_(log) {}

  /// The first step was made: until then the files stay as they were, and lines are kept. start:
  /// where the run was before. Does nothing when it is called again.
  void open(const RunProgress& start);
  /// A line of metrics.
  void write(const nlohmann::json& line);
  /// Tries again what could not be written.
  void try_again();
  /// Tries for the last time, and says what is lost.
  void finish();

 private:
  void write_config();

  const Config& config_;
  spdlog::logger& log_;
  std::optional<MetricsFile> metrics_;
  std::vector<nlohmann::json> lines_;  ///< until the first step was made
  bool config_due_ = false;
  bool said_config_ = false;
};

}  // namespace gradus
