#pragma once

#include <spdlog/logger.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "data/loader.h"
#include "data/tokenizer.h"
#include "train/config.h"
#include "train/metrics.h"
#include "train/run_checkpoint.h"
#include "train/run_data.h"
#include "train/signals.h"
#include "train/step.h"
#include "train/training_model.h"

namespace gradus {

/// Trains as a configuration says: steps, evaluation, metrics, checkpoints, stopping.
class Trainer {
 public:
  struct Options {
    Config config;
    /// What a user types to go on, for the message of an interrupted run.
    std::string resume_command;
    int machine = 0;  ///< the same on all ranks that share one (Bootstrap::machine)
  };
  /// x, parallel and log must outlive this. Opens the data and the run's folder, finds the
  /// checkpoint to go on from, checks it, and only then allocates. Throws any of the errors of
  /// these.
  Trainer(const Options& options, Executor& x, Parallelism& parallel, spdlog::logger& log);

  enum class Outcome { finished, interrupted };
  Outcome run();

  const TrainingModel& model() const { return model_; }

 private:
  struct Interval;

  bool first_rank() const;
  void meet();
  bool stop_asked();
  void write_metrics(const nlohmann::json& line);
  void log_start();
  void log_step(const StepState& state, Interval& interval);
  void handle_nonfinite(const StepState& state);
  void evaluate_if_due();
  void check_replicas();
  void save();

  StopSignals signals_;  // first: loading a checkpoint may take long
  Options options_;
  const Config& config_;
  spdlog::logger& log_;
  std::filesystem::path run_;
  RunData data_;
  TrainingModel model_;
  Stepper stepper_;
  std::optional<MetricsFile> metrics_;
  RunProgress progress_;
  int64_t saved_step_ = -1;
  int64_t checked_step_ = -1;   ///< that replicas were last compared after
  int64_t baseline_bytes_ = 0;  ///< resident before the arena was allocated
};

}  // namespace gradus
