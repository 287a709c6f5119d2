#include "train/run_records.h"

#include <filesystem>
#include <string>
#include <utility>

#include "core/error.h"
#include "train/run_start.h"

namespace gradus {

void RunRecords::open(const RunProgress& start) {
  if (metrics_) return;
  config_due_ = true;
  metrics_.emplace(std::filesystem::path(config_.run.dir) / "metrics.jsonl", start.step,
                   start.evaluation_due);
  try_again();
  for (const nlohmann::json& line : std::exchange(lines_, {})) write(line);
}

void RunRecords::write(const nlohmann::json& line) {
  if (!metrics_) {
    lines_.push_back(line);
    return;
  }
  metrics_->keep(line);
  try_again();
}

void RunRecords::try_again() {
  if (!metrics_) return;
  write_config();
  const std::string said = metrics_->try_again();
  for (const std::string& warning : metrics_->take_warnings()) log_.warn("{}", warning);
  if (!said.empty()) log_.warn("{}", said);
}

void RunRecords::finish() {
  if (!metrics_) return;
  write_config();
  const std::string lost = metrics_->finish();
  if (!lost.empty()) log_.warn("{}", lost);
}

void RunRecords::write_config() {
  if (!config_due_) return;
  try {
    write_resolved_config(config_);
    config_due_ = false;
  } catch (const IoError& error) {
    if (!std::exchange(said_config_, true)) log_.warn("{}; it is tried again", error.what());
  }
}

}  // namespace gradus
