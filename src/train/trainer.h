#pragma once

#include <spdlog/logger.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/folder_lock.h"
#include "data/loader.h"
#include "data/tokenizer.h"
#include "train/config.h"
#include "train/run_checkpoint.h"
#include "train/run_data.h"
#include "train/run_records.h"
#include "train/run_saver.h"
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
  /// What is passed by reference must outlive this. Opens the data, locks the run's folder, finds
  /// the checkpoint to go on from, checks it, and only then allocates. Changes no checkpoint or
  /// record of the run. Throws any of the errors of these.
  Trainer(const Options& options, Executor& x, Parallelism& parallel, spdlog::logger& log,
          StopSignals& signals);

  enum class Outcome { finished, interrupted };
  /// Makes the steps that are left. No checkpoint or record of the run changes before one is made;
  /// where none is left, nothing does. Throws NumericError where the run ends in steps that were
  /// skipped, and so without a checkpoint of its last one.
  Outcome run();

  /// What `gradus generate` takes to see what was learned: the run's folder, or the checkpoint that
  /// the run started from where it has none of its own.
  std::string generates_from() const;

  const TrainingModel& model() const { return model_; }

 private:
  struct Interval;
  struct Asked {
    bool stop = false;
    bool save = false;
    bool refused_products = false;
    bool unverified = false;
  };
  enum class Saving : uint8_t { on_the_way, last };

  bool first_rank() const;
  void meet();
  void lock_run_folder();
  void tell_signals();
  Asked asked_of_any();
  void write_metrics(const nlohmann::json& line);
  void log_start();
  void log_step(const StepState& state, Interval& interval);
  void handle_nonfinite(const StepState& state);
  StepState step(double lr);
  void say_refused_products(bool of_any);
  void say_late_stop(const std::string& stopped_by);
  void evaluate_if_due();
  void check_replicas();
  void require_verified_data();
  void save_before(const UnusableBatch& reason);
  void save(Saving saving, const std::string& occasion = "");
  Outcome make_steps();

  Options options_;
  const Config& config_;
  spdlog::logger& log_;
  StopSignals& signals_;
  std::filesystem::path run_;
  std::optional<FolderLock> lock_;  ///< of the first rank
  RunData data_;
  TrainingModel model_;
  Stepper stepper_;
  std::optional<RunRecords> records_;  ///< of the first rank
  RunProgress progress_;
  std::optional<RunSaver> saver_;
  std::filesystem::path started_from_;  ///< the checkpoint, if from one
  int64_t first_step_ = 0;              ///< that this process made, less one
  bool data_verified_ = false;          ///< all of it, on all ranks
  bool unverified_ = false;             ///< some of it, on some rank, when last asked
  bool said_refused_products_ = false;
  bool said_late_stop_ = false;
  int64_t checked_step_ = -1;   ///< that replicas were last compared after
  int64_t baseline_bytes_ = 0;  ///< resident before the arena was allocated
};

}  // namespace gradus
