#include "train/run_saver.h"

#include <fmt/format.h>

#include <array>
#include <string>
#include <thread>
#include <utility>

#include "checkpoint/checkpoint_folder.h"
#include "core/error.h"

namespace gradus {
namespace {

using Clock = std::chrono::steady_clock;

/// Between tries while the run goes on: somebody may be making room.
constexpr std::chrono::seconds kUntilNextTry{60};
/// Before each further try at the end, within what schedulers leave a job for its end.
constexpr std::array kPauses = {std::chrono::seconds{1}, std::chrono::seconds{2},
                                std::chrono::seconds{4}};

}  // namespace

RunSaver::RunSaver(std::filesystem::path run, const Config& config, const RunData& data,
                   TrainingModel& model, spdlog::logger& log, StopSignals& signals,
                   std::optional<int64_t> found)
    : run_(std::move(run)),
      config_(config),
      data_(data),
      model_(model),
      log_(log),
      signals_(signals),
      saved_step_(found) {}

bool RunSaver::try_again() const {
  return postponed_ || (failed_ && Clock::now() - *failed_ >= kUntilNextTry);
}

std::string RunSaver::advice() const {
  return remaining() + (saved_step_
                            ? "; go on from there with a lower optim.lr, or from an earlier "
                              "one in another run.dir (checkpoint.resume: PATH)"
                            : "; start again with a lower optim.lr");
}

std::string RunSaver::remaining() const {
  if (!saved_step_) return "nothing of this run is saved";
  return fmt::format("its newest checkpoint is {}",
                     (run_ / kCheckpointsName / step_folder_name(*saved_step_)).string());
}

void RunSaver::write(const RunProgress& progress) {
  const SaveResult result =
      save_run(run_, progress, config_, *data_.tokenizer, data_.identity(), model_);
  saved_step_ = progress.step;
  signals_.set_progress(progress.step, progress.step);  // before the log, which may have to wait
  failed_.reset();
  if (result.path.empty()) return;  // another rank has it
  log_.info("saved {} ({})", result.path.string(), format_bytes(result.bytes));
  for (const std::string& warning : result.warnings) log_.warn("{}", warning);
}

bool RunSaver::fit(const RunProgress& progress) {
  if (const std::string unfit = unfit_to_save(model_); !unfit.empty()) {
    if (!postponed_) log_.warn("step {} is not saved: {}; {}", progress.step, unfit, remaining());
    postponed_ = true;
    return false;
  }
  postponed_ = false;
  return true;
}

void RunSaver::require_fit(const RunProgress& progress, const std::string& occasion) {
  if (const std::string unfit = unfit_to_save(model_); !unfit.empty()) {
    const StepState state = model_.optimizer().state();
    throw NumericError(
        "step {}, {}, is not saved: {}{}; {}{}", progress.step, occasion, unfit,
        state.fault() == StepFault::none ? ""
                                         : fmt::format(", so that the weights are those of step {}",
                                                       progress.step - state.skipped_in_row),
        advice(),
        progress.step == config_.train.steps ? "; with more train.steps another step is the last"
                                             : "");
  }
}

void RunSaver::save(const RunProgress& progress) {
  if (saved_step_ == progress.step) return;
  try {
    write(progress);
  } catch (const IoError& error) {
    failed_ = Clock::now();
    log_.warn("step {} is not saved: {}; the run goes on, {}, and saving is tried again",
              progress.step, error.what(), remaining());
  }
}

void RunSaver::save_or_throw(const RunProgress& progress) {
  if (saved_step_ == progress.step) return;
  for (const std::chrono::seconds pause : kPauses) {
    try {
      return write(progress);
    } catch (const IoError& error) {
      log_.warn("step {} is not saved: {}; trying again in {} s", progress.step, error.what(),
                pause.count());
    }
    std::this_thread::sleep_for(pause);
  }
  try {
    write(progress);
  } catch (const IoError& error) {
    throw IoError("the weights of step {} were not saved: {}; {}", progress.step, error.what(),
                  remaining());
  }
}

}  // namespace gradus
