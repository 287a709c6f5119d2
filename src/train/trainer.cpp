#include "train/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <thread>
#include <vector>

#include "checkpoint/checkpoint_folder.h"
#include "core/atomic_file.h"
#include "core/error.h"
#include "core/rng.h"
#include "optim/schedule.h"
#include "parallel/gather_values.h"

namespace gradus {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// Whether something that happens every `every` steps happens at this one; 0: it never does.
bool due(int64_t step, int64_t every) { return every > 0 && step % every == 0; }

constexpr int kAttempts = 20;
constexpr std::chrono::milliseconds kBetweenAttempts{100};

/// Opening a folder makes the client of a network file system ask the server what is in it.
void list_afresh(const std::filesystem::path& folder) {
  std::error_code ignored;
  std::filesystem::directory_iterator(folder.empty() ? "." : folder, ignored);
}

/// JSON has no NaN and no infinities.
nlohmann::json number(double value) {
  return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json();
}

}  // namespace

/// What ranks must have in common to start.
struct Trainer::Start {
  int64_t step = -1;        ///< of the checkpoint; -1: none
  uint64_t checkpoint = 0;  ///< what it says of itself, as a hash
  int64_t tokens = 0;
  int64_t validation = -1;
  uint64_t training_text = 0;    ///< of the shards, in order
  uint64_t validation_text = 0;  ///< 0: none
  uint64_t tokenizer = 0;

  bool operator==(const Start&) const = default;
};

/// What happened since the last line of metrics.
struct Trainer::Interval {
  int64_t steps = 0;
  double seconds = 0.0;  ///< of training steps alone
};

Trainer::Trainer(const Options& options, Executor& x, Parallelism& parallel, spdlog::logger& log)
    : options_(options),
      config_(options_.config),
      log_(log),
      run_(config_.run.dir),
      data_(RunData::open(config_)),
      model_(config_, config_.model.vocab_size.value_or(data_.tokenizer->vocab_size()), x,
             parallel),
      stepper_(config_, model_) {
  check_run_folder();
  const std::optional<Checkpoint> checkpoint = checkpoint_to_resume();
  refuse_different_starts(checkpoint);
  if (checkpoint) {
    for (const std::string& change : check_run(*checkpoint, config_, *data_.tokenizer)) {
      log_.warn("changed since {}: {}", checkpoint->path().filename().string(), change);
    }
  }
  if (first_rank()) prepare_run_folder();
  meet();
  refuse_folder_of_its_own();
  baseline_bytes_ = resident_memory();
  model_.allocate(model_.bytes_of_neighbours(options_.machine));
  meet();  // before any rank fills its memory: what is free is divided among all
  if (checkpoint) {
    progress_ = load_run(*checkpoint, model_);
    saved_step_ = checkpoint->path().parent_path() == run_ / kCheckpointsName ? progress_.step : -1;
    log_.info("going on from {} at step {}", checkpoint->path().string(), progress_.step);
  } else {
    model_.initialize(static_cast<uint64_t>(config_.seed));
  }
  if (first_rank())
    metrics_.emplace(run_ / "metrics.jsonl", progress_.step, progress_.evaluation_due);
  log_start();
}

/// Before anything looks into it, and without making it: a run may yet be refused.
void Trainer::check_run_folder() const {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(run_, error);
  if (error == std::errc::not_a_directory ||
      (std::filesystem::exists(status) && !std::filesystem::is_directory(status))) {
    throw IoError("run.dir {} cannot be a folder: it, or what it lies in, is a file; set another",
                  run_.string());
  }
}

std::optional<Checkpoint> Trainer::checkpoint_to_resume() {
  std::vector<std::string> refused;
  std::optional<Checkpoint> checkpoint;
  switch (config_.checkpoint.resume.mode) {
    case Resume::Mode::automatic:
      checkpoint = find_latest(run_, refused);
      break;
    case Resume::Mode::from_path:
      checkpoint = open_checkpoint(config_.checkpoint.resume.path, refused);
      refuse_going_back(*checkpoint);
      break;
    case Resume::Mode::never:
      if (!list_step_folders(run_ / kCheckpointsName).empty()) {
        throw ConfigError(
            "checkpoint.resume is never, and {} already holds checkpoints: set another run.dir, or "
            "remove that folder",
            run_.string());
      }
      break;
  }
  for (const std::string& line : refused) log_.warn("not used: {}", line);
  return checkpoint;
}

/// Within one run folder the newest step is the run: steps beyond an older one would be taken for
/// its continuation.
void Trainer::refuse_going_back(const Checkpoint& checkpoint) const {
  const std::filesystem::path checkpoints = run_ / kCheckpointsName;
  std::error_code error;
  if (!std::filesystem::equivalent(checkpoint.path().parent_path(), checkpoints, error)) return;
  const std::vector<std::filesystem::path> folders = list_step_folders(checkpoints);
  const int64_t newest = folders.empty() ? 0 : step_of(folders.front()).value_or(0);
  if (newest > checkpoint.step()) {
    throw ConfigError(
        "checkpoint.resume goes back to step {} of {}, which goes on to step {}: set another "
        "run.dir to "
        "branch off, or remove the later folders of {}",
        checkpoint.step(), run_.string(), newest, checkpoints.string());
  }
}

/// Ranks that go on from different checkpoints, or read different data, would train on: sums over
/// ranks hide that they are of different things.
void Trainer::refuse_different_starts(const std::optional<Checkpoint>& checkpoint) {
  Communicator* const world = model_.parallel().world;
  if (world == nullptr) return;
  const Start mine{
      .step = checkpoint ? checkpoint->step() : -1,
      .checkpoint =
          checkpoint ? rng_site(checkpoint->state().dump() + checkpoint->file("config.yaml")) : 0,
      .tokens = data_.train.token_count(),
      .validation = data_.val ? data_.val->samples_per_epoch() : -1,
      .training_text = data_.train.checksum(),
      .validation_text = data_.val ? data_.val->checksum() : 0,
      .tokenizer = data_.tokenizer->hash()};
  const std::vector<Start> starts = gather_values(model_.executor(), *world, mine);
  const Start& first = starts.front();
  const auto other = std::ranges::find_if(starts, [&](const Start& s) { return s != first; });
  if (other == starts.end()) return;
  const auto rank = other - starts.begin();
  if (other->step != first.step || other->checkpoint != first.checkpoint) {
    const auto found = [](const Start& start) {
      return start.step < 0 ? std::string("none") : fmt::format("that of step {}", start.step);
    };
    throw CheckpointError(
        "the ranks do not go on from one checkpoint: rank 0 found {}, rank {} found {}{}; run.dir "
        "{} "
        "(or what checkpoint.resume names) must be a folder that all ranks share",
        found(first), rank, found(*other), other->step == first.step ? " of another run" : "",
        run_.string());
  }
  const bool same_size = other->tokens == first.tokens && other->validation == first.validation;
  throw DataError(
      "the ranks read different data: rank 0 has {} tokens of training text and {} samples of "
      "validation text, rank {} has {} and {}{}{}; give all of them the same data.train and "
      "data.val, in the same order",
      first.tokens, std::max<int64_t>(first.validation, 0), rank, other->tokens,
      std::max<int64_t>(other->validation, 0), same_size ? ", of other content or order" : "",
      other->tokenizer == first.tokenizer ? "" : ", tokenized by another tokenizer");
}

/// Every rank writes its part of each checkpoint into the folder that the first rank has just made.
void Trainer::refuse_folder_of_its_own() const {
  // A network file system may remember for a while that the folder was not there.
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    if (std::filesystem::exists(run_ / "config.yaml")) return;
    list_afresh(run_.parent_path());
    list_afresh(run_);
    std::this_thread::sleep_for(kBetweenAttempts);
  }
  throw IoError(
      "run.dir {} is not the folder that rank 0 has made: it must be one that all ranks share",
      run_.string());
}

bool Trainer::first_rank() const {
  return model_.parallel().world == nullptr || model_.parallel().world->rank() == 0;
}

/// Waits until every rank is here.
void Trainer::meet() {
  Communicator* const world = model_.parallel().world;
  if (world != nullptr) world->barrier(model_.executor()).wait(model_.executor());
}

/// Whether any rank was asked to stop: all of them stop after the same step.
bool Trainer::stop_asked() {
  int32_t asked = signals_.received() != nullptr ? 1 : 0;
  if (Communicator* const world = model_.parallel().world; world != nullptr) {
    const Tensor flag(&asked, DType::i32, Device::cpu, {1});
    world->all_reduce(model_.executor(), flag, flag, ReduceOp::max).wait(model_.executor());
  }
  return asked != 0;
}

void Trainer::prepare_run_folder() {
  std::error_code error;
  std::filesystem::create_directories(run_, error);
  if (error) throw IoError("cannot create run.dir {}: {}", run_.string(), error.message());
  AtomicFile file(run_ / "config.yaml");
  file.write(to_yaml(config_));
  file.publish();
}

void Trainer::log_start() {
  const Sizes& sizes = model_.gpt().sizes();
  const int64_t tokens = config_.train.global_batch * sizes.T;
  log_.info("{} parameters, {} layers of {} channels, vocabulary {}, {}",
            model_.parameters().logical_numel(), sizes.L, sizes.C, sizes.V,
            to_string(config_.train.precision));
  log_.info("{} tokens of training text, {} a step in {} micro-batch{}, {} threads",
            data_.train.token_count(), tokens, model_.micro_batches(),
            model_.micro_batches() == 1 ? "" : "es", model_.executor().threads());
  if (model_.parallel().ranks() > 1) log_.info("{}", describe(model_.parallel()));
  log_.info("memory {} (gradus plan shows what for); run folder {}",
            format_bytes(model_.arena().plan().total_bytes()), run_.string());
  if (!data_.no_val.empty()) log_.warn("nothing is evaluated: {}", data_.no_val);
}

Trainer::Outcome Trainer::run() {
  evaluate_if_due();  // what a signal left undone
  if (progress_.step >= config_.train.steps) {
    log_.info("already trained to step {}; raise train.steps to go on", progress_.step);
    return Outcome::finished;
  }
  Interval interval;
  while (progress_.step < config_.train.steps) {
    const Clock::time_point begin = Clock::now();
    const double lr = learning_rate(config_.optim, progress_.step, config_.train.steps);
    const StepState state = stepper_.run(data_.train, progress_.samples, lr);
    progress_.step += 1;
    progress_.samples += config_.train.global_batch;
    const bool last = progress_.step == config_.train.steps;
    const bool stop =
        stop_asked();  // weights of other replicas may still be on their way before it
    interval.steps += 1;
    interval.seconds += seconds_since(begin);

    if (state.nonfinite != 0) handle_nonfinite(state);
    if (last || progress_.step == 1 || due(progress_.step, config_.log.every)) {
      log_step(state, interval);
    }
    progress_.evaluation_due = data_.val && (last || due(progress_.step, config_.eval.every));
    if (!stop || last) evaluate_if_due();
    if (last || stop || due(progress_.step, config_.checkpoint.every)) save();
    if (stop && !last) {
      const char* signal = signals_.received();
      log_.info("stopped by {} after step {}. To go on: {}",
                signal == nullptr ? "a signal to another rank" : signal, progress_.step,
                options_.resume_command);
      return Outcome::interrupted;
    }
  }
  return Outcome::finished;
}

void Trainer::write_metrics(const nlohmann::json& line) {
  if (metrics_) metrics_->write(line);
}

void Trainer::log_step(const StepState& state, Interval& interval) {
  const double step_ms = 1e3 * interval.seconds / static_cast<double>(interval.steps);
  const double tokens =
      static_cast<double>(config_.train.global_batch * model_.gpt().sizes().T * interval.steps);
  const double tokens_per_s = tokens / interval.seconds;
  interval = {};
  write_metrics({{"event", "train"},
                 {"step", progress_.step},
                 {"loss", number(state.loss)},
                 {"grad_norm", number(state.grad_norm)},
                 {"lr", state.lr},
                 {"tokens", progress_.samples * model_.gpt().sizes().T},
                 {"tokens_per_s", tokens_per_s},
                 {"step_ms", step_ms},
                 {"skipped", state.skipped},
                 {"arena_bytes", model_.arena().plan().total_bytes()},
                 {"baseline_bytes", baseline_bytes_},
                 {"resident_bytes", resident_memory()},
                 {"peak_bytes", peak_resident_memory()}});
  log_.info("step {:>6}/{}  loss {:.4f}  norm {:.3f}  lr {:.2e}  {:.1f} ms  {:.0f} tokens/s",
            progress_.step, config_.train.steps, state.loss, state.grad_norm, state.lr, step_ms,
            tokens_per_s);
}

void Trainer::handle_nonfinite(const StepState& state) {
  const std::string where = stepper_.find_nonfinite();
  log_.warn("step {} changed nothing: loss {}, gradient norm {}; {}", progress_.step, state.loss,
            state.grad_norm, where);
  write_metrics({{"event", "skipped"},
                 {"step", progress_.step},
                 {"loss", number(state.loss)},
                 {"grad_norm", number(state.grad_norm)},
                 {"first_nonfinite", where},
                 {"skipped", state.skipped}});
  if (state.skipped_in_row >= config_.train.max_skipped_steps) {
    throw NumericError(
        "{} steps in a row had a loss or gradient norm that is not finite, up to step {}; {}. The "
        "weights are those of step {}; lower optim.lr or go on from an earlier checkpoint",
        state.skipped_in_row, progress_.step, where, progress_.step - state.skipped_in_row);
  }
}

void Trainer::evaluate_if_due() {
  if (!progress_.evaluation_due || !data_.val) return;
  progress_.evaluation_due = false;
  const Stepper::Evaluation result = stepper_.evaluate(*data_.val, config_.eval.batches);
  const double perplexity = std::exp(result.loss);
  write_metrics({{"event", "eval"},
                 {"step", progress_.step},
                 {"loss", number(result.loss)},
                 {"perplexity", number(perplexity)},
                 {"targets", result.targets}});
  log_.info("step {:>6}  validation loss {:.4f}  perplexity {:.3f}  ({} tokens)", progress_.step,
            result.loss, perplexity, result.targets);
}

void Trainer::save() {
  if (saved_step_ == progress_.step) return;
  const SaveResult result = save_run(run_, progress_, config_, *data_.tokenizer, model_);
  saved_step_ = progress_.step;
  if (!first_rank()) return;
  log_.info("saved {} ({})", result.path.string(), format_bytes(result.bytes));
  for (const std::string& warning : result.warnings) log_.warn("{}", warning);
}

}  // namespace gradus
