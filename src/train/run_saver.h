#pragma once

#include <spdlog/logger.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>

#include "data/tokenizer.h"
#include "train/config.h"
#include "train/run_checkpoint.h"
#include "train/training_model.h"

namespace gradus {

/// Saves a run as it goes. A disk that is full or fails does not end the run: it goes on with its
/// older checkpoint, and saving is tried again. All ranks of the run call each member together, but
/// for the const ones.
class RunSaver {
 public:
  /// found: the step of the run's own checkpoint that it goes on from. What is passed by reference
  /// must outlive this.
  RunSaver(std::filesystem::path run, const Config& config, const Tokenizer& tokenizer,
           TrainingModel& model, spdlog::logger& log, std::optional<int64_t> found);

  /// Tries once; says what became of it. Does nothing where this step is saved already. Throws what
  /// is no fault of the disk: errors other than IoError.
  void save(const RunProgress& progress);
  /// For the last time: tries a few times over several seconds, then throws IoError, with what
  /// remains.
  void save_or_throw(const RunProgress& progress);

  /// Whether a save has failed and it is time to try again. Ranks may differ: the first decides.
  bool try_again() const;
  /// The newest step that is saved in the run's folder, as far as this run knows.
  std::optional<int64_t> saved_step() const { return saved_step_; }

 private:
  void write(const RunProgress& progress);
  std::string remaining() const;

  std::filesystem::path run_;
  const Config& config_;
  const Tokenizer& tokenizer_;
  TrainingModel& model_;
  spdlog::logger& log_;
  std::optional<int64_t> saved_step_;
  std::optional<std::chrono::steady_clock::time_point> failed_;  ///< when, if the last try did
};

}  // namespace gradus
