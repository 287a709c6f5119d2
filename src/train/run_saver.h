#pragma once

#include <spdlog/logger.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "train/config.h"
#include "train/run_checkpoint.h"
#include "train/run_data.h"
#include "train/signals.h"
#include "train/training_model.h"

namespace gradus {

/// Saves a run as it goes. A disk that is full or fails does not end the run: it goes on with its
/// older checkpoint, and saving is tried again. A run that is not fit to be saved (unfit_to_save)
/// keeps its older checkpoints as they are, until a good step makes up for it. All ranks of the run
/// call each member together, but for the const ones.
class RunSaver {
 public:
  /// found: the step of the run's own checkpoint that it goes on from. What is passed by reference
  /// must outlive this.
  RunSaver(std::filesystem::path run, const Config& config, const RunData& data,
           TrainingModel& model, spdlog::logger& log, StopSignals& signals,
           std::optional<int64_t> found);

  /// Whether the run is fit to be saved, which is asked before anything else is made ready for it.
  /// Where not, says so once, and wants to try again after the next step.
  bool fit(const RunProgress& progress);
  /// The same for the last time: throws NumericError, with what remains, where it is not. occasion:
  /// what the step is, for that message: "the last one".
  void require_fit(const RunProgress& progress, const std::string& occasion);

  /// Saves a run that is fit: tries once; says what became of it. Does nothing where this step is
  /// saved already. Throws what is no fault of the disk: errors other than IoError.
  void save(const RunProgress& progress);
  /// For the last time: tries a few times over several seconds, then throws IoError, with what
  /// remains.
  void save_or_throw(const RunProgress& progress);

  /// What remains of a run that cannot go on as it is, and what to do with it.
  std::string advice() const;
  /// Whether a save has failed and it is time to try again. Ranks may differ: the first decides.
  bool try_again() const;
  /// The newest step that is saved in the run's folder, as far as this run knows.
  std::optional<int64_t> saved_step() const { return saved_step_; }

 private:
  void write(const RunProgress& progress);
  std::string remaining() const;

  std::filesystem::path run_;
  const Config& config_;
  const RunData& data_;
  TrainingModel& model_;
  spdlog::logger& log_;
  StopSignals& signals_;
  std::optional<int64_t> saved_step_;
  std::optional<std::chrono::steady_clock::time_point> failed_;  ///< when, if the last try did
  bool postponed_ = false;  ///< until the run is fit to be saved
};

}  // namespace gradus
