#include "train/trainer.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "checkpoint/checkpoint_folder.h"
#include "core/counted.h"
#include "core/error.h"
#include "kernels/implementation.h"
#include "optim/schedule.h"
#include "train/replica_check.h"
#include "train/run_start.h"

namespace gradus {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// Whether something that happens every `every` steps happens at this one; 0: it never does.
bool due(int64_t step, int64_t every) { return every > 0 && step % every == 0; }

/// For people: the sign of a NaN means nothing, and differs between processors.
double shown(double value) {
  // Not its magnitude: of an exponential the compiler knows that to be itself.
  return std::isnan(value) ? std::numeric_limits<double>::quiet_NaN() : value;
}

/// The same with so many decimals; of a run that has blown up, as a power of ten.
std::string decimal(double value, int places) {
  constexpr double kMostInDigits = 1e7;
  return std::abs(value) < kMostInDigits || !std::isfinite(value)
             ? fmt::format("{:.{}f}", shown(value), places)
             : fmt::format("{:.{}e}", value, places);
}

/// JSON has no NaN and no infinities.
nlohmann::json number(double value) {
  return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json();
}

}  // namespace

/// What happened since the last line of metrics.
struct Trainer::Interval {
  int64_t steps = 0;
  double seconds = 0.0;  ///< of training steps alone
};

Trainer::Trainer(const Options& options, Executor& x, Parallelism& parallel, spdlog::logger& log,
                 StopSignals& signals)
    : options_(options),
      config_(options_.config),
      log_(log),
      signals_(signals),
      run_(config_.run.dir),
      data_(RunData::open(config_)),
      model_(config_, config_.model.vocab_size.value_or(data_.tokenizer->vocab_size()), x,
             parallel),
      stepper_(config_, model_) {
  check_run_folder(config_);
  lock_run_folder();
  std::vector<std::string> remarks;
  const std::optional<Checkpoint> checkpoint = checkpoint_to_resume(config_, remarks);
  for (const std::string& line : remarks) log_.warn("{}", line);
  if (Communicator* const world = parallel.world; world != nullptr) {
    refuse_different_starts(x, *world, config_, checkpoint, data_);
  }
  if (checkpoint) {
    for (const std::string& line :
         check_run(*checkpoint, config_, *data_.tokenizer, data_.identity())) {
      log_.warn("{}", line);
    }
  }
  baseline_bytes_ = resident_memory();
  model_.allocate(model_.bytes_of_neighbours(options_.machine));
  meet();  // before any rank fills its memory: what is free is divided among all
  std::optional<int64_t> saved_step;
  if (checkpoint) {
    progress_ = load_run(*checkpoint, model_);
    if (belongs_to_run(*checkpoint, config_)) saved_step = progress_.step;
    started_from_ = checkpoint->path();
    log_.info("going on from {} at step {}", started_from_.string(), progress_.step);
  } else {
    model_.initialize(static_cast<uint64_t>(config_.seed));
  }
  first_step_ = progress_.step;
  if (first_rank()) records_.emplace(config_, log_);
  saver_.emplace(run_, config_, data_, model_, log_, signals_, saved_step);
  check_replicas();
  log_start();
}

bool Trainer::first_rank() const {
  return model_.parallel().world == nullptr || model_.parallel().world->rank() == 0;
}

/// Waits until every rank is here.
void Trainer::meet() {
  Communicator* const world = model_.parallel().world;
  if (world != nullptr) world->barrier(model_.executor()).wait(model_.executor());
}

/// Taken before anything in the folder is read: another run may be writing it.
void Trainer::lock_run_folder() {
  meet();  // all have their data: a rank that is refused for its own leaves no folder behind
  if (first_rank()) {
    lock_.emplace(run_, "run.dir");
    if (!lock_->unguarded().empty()) log_.warn("{}", lock_->unguarded());
  }
  meet();
}

/// What would be lost if a second signal ended the run now.
void Trainer::tell_signals() {
  signals_.set_progress(progress_.step, saver_->saved_step().value_or(first_step_));
}

/// What was asked of any rank, or holds for any: all of them stop, or save, after the same step.
Trainer::Asked Trainer::asked_of_any() {
  const RefusedProducts& refused = refused_products(model_.executor());
  std::array<int32_t, 4> asked = {signals_.received() != nullptr ? 1 : 0,
                                  first_rank() && saver_->try_again() ? 1 : 0,
                                  refused.count > 0 ? 1 : 0, data_.verification->reading() ? 1 : 0};
  if (Communicator* const world = model_.parallel().world; world != nullptr) {
    const Tensor flags(asked.data(), DType::i32, Device::cpu, {4});
    world->all_reduce(model_.executor(), flags, flags, ReduceOp::max).wait(model_.executor());
  }
  return {.stop = asked[0] != 0,
          .save = asked[1] != 0,
          .refused_products = asked[2] != 0,
          .unverified = asked[3] != 0};
}

void Trainer::log_start() {
  const Sizes& sizes = model_.gpt().sizes();
  const int64_t tokens = config_.train.global_batch * sizes.T;
  log_.info("{}, {} of {}, vocabulary {}, {}",
            counted(model_.parameters().logical_numel(), "parameter"), counted(sizes.L, "layer"),
            counted(sizes.C, "channel"), sizes.V, to_string(config_.train.precision));
  log_.info("{} of training text, {} a step in {}, {}", counted(data_.train.token_count(), "token"),
            tokens, counted(model_.micro_batches(), "micro-batch"),
            counted(model_.executor().threads(), "thread"));
  if (model_.parallel().ranks() > 1) log_.info("{}", describe(model_.parallel()));
  log_.info("memory {} (gradus plan shows what for); run folder {}",
            format_bytes(model_.arena().plan().total_bytes()), run_.string());
  for (const std::string& warning : data_.warnings) log_.warn("{}", warning);
  if (!data_.no_val.empty()) log_.warn("nothing is evaluated: {}", data_.no_val);
}

Trainer::Outcome Trainer::run() {
  try {
    const Outcome outcome = make_steps();
    if (records_) records_->finish();
    return outcome;
  } catch (...) {
    if (records_) records_->finish();
    throw;
  }
}

Trainer::Outcome Trainer::make_steps() {
  if (progress_.step >= config_.train.steps) {
    log_.info("already trained to step {}; raise train.steps to go on", progress_.step);
    return Outcome::finished;
  }
  if (first_rank()) {
    make_run_folder(config_);
    remove_leftovers(run_ / kCheckpointsName);
  }
  if (Communicator* const world = model_.parallel().world; world != nullptr) {
    refuse_folders_apart(model_.executor(), *world, config_);
  }
  const RunProgress start = progress_;
  evaluate_if_due();  // what a signal left undone
  signals_.training_begins();
  Interval interval;
  while (progress_.step < config_.train.steps) {
    tell_signals();
    const Clock::time_point begin = Clock::now();
    const double lr = learning_rate(config_.optim, progress_.step, config_.train.steps);
    const StepState state = step(lr);
    progress_.step += 1;
    progress_.samples += config_.train.global_batch;
    const bool last = progress_.step == config_.train.steps;
    tell_signals();
    const Asked asked =
        asked_of_any();  // weights of other replicas may still be on their way before it
    unverified_ = asked.unverified;
    // A skipped step is not saved: the run stops with the next one that is applied.
    const bool stop = asked.stop && !last && state.fault() == StepFault::none;
    if (due(progress_.step, config_.parallel.check_replicas)) check_replicas();
    interval.steps += 1;
    interval.seconds += seconds_since(begin);

    if (records_) records_->open(start);
    if (state.nonfinite != 0) handle_nonfinite(state);
    say_refused_products(asked.refused_products);
    if (last || progress_.step == 1 || due(progress_.step, config_.log.every)) {
      log_step(state, interval);
    }
    progress_.evaluation_due = data_.val && (last || due(progress_.step, config_.eval.every));
    if (!asked.stop || last) evaluate_if_due();
    const char* signal = signals_.received();
    const std::string stopped_by = signal == nullptr ? "a signal to another rank" : signal;
    if (asked.stop && !stop && !last) say_late_stop(stopped_by);
    if (last || stop) {
      save(Saving::last, last ? "the last one" : "where it was stopped by " + stopped_by);
    } else if (asked.save || due(progress_.step, config_.checkpoint.every)) {
      save(Saving::on_the_way);
    }
    if (stop) {
      log_.info("stopped by {} after step {}. To go on: {}", stopped_by, progress_.step,
                options_.resume_command);
      return Outcome::interrupted;
    }
  }
  return Outcome::finished;
}

void Trainer::write_metrics(const nlohmann::json& line) {
  if (records_) records_->write(line);
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
  log_.info("step {:>6}/{}  loss {}  norm {}  lr {:.2e}  {:.1f} ms  {:.0f} tokens/s",
            progress_.step, config_.train.steps, decimal(state.loss, 4),
            decimal(state.grad_norm, 3), state.lr, step_ms, tokens_per_s);
}

/// Once: what a step multiplies it multiplies in every step.
void Trainer::say_refused_products(bool of_any) {
  if (!of_any || std::exchange(said_refused_products_, true)) return;
  const RefusedProducts& mine = refused_products(model_.executor());
  log_.warn("{}", mine.count > 0
                      ? describe(mine)
                      : "oneDNN of another rank did not take some matrix products: the packed "
                        "product computed them, in the accumulator type's arithmetic");
}

void Trainer::handle_nonfinite(const StepState& state) {
  std::string where;
  if (state.fault() == StepFault::overflow) where = model_.optimizer().describe_overflow();
  if (where.empty()) where = stepper_.find_nonfinite();
  log_.warn("step {} changed nothing: loss {}, gradient norm {}; {}", progress_.step,
            shown(state.loss), shown(state.grad_norm), where);
  write_metrics({{"event", "skipped"},
                 {"step", progress_.step},
                 {"loss", number(state.loss)},
                 {"grad_norm", number(state.grad_norm)},
                 {"first_nonfinite", where},
                 {"skipped", state.skipped}});
  if (state.skipped_in_row >= config_.train.max_skipped_steps) {
    throw NumericError(
        "{} in a row changed nothing, up to step {}; {}. The weights are those of step {}, and "
        "nothing was saved since: {}",
        counted(state.skipped_in_row, "step"), progress_.step, where,
        progress_.step - state.skipped_in_row, saver_->advice());
  }
}

void Trainer::say_late_stop(const std::string& stopped_by) {
  if (std::exchange(said_late_stop_, true)) return;
  log_.warn(
      "{}: step {} changed nothing, and is not saved: stopping after the next that is applied",
      stopped_by, progress_.step);
}

void Trainer::evaluate_if_due() {
  if (!progress_.evaluation_due || !data_.val) return;
  progress_.evaluation_due = false;
  Stepper::Evaluation result;
  try {
    result = stepper_.evaluate(*data_.val, config_.eval.tokens);
  } catch (const UnusableBatch& reason) {
    progress_.evaluation_due = true;
    save_before(reason);
    throw;
  }
  const double perplexity = std::exp(result.loss);
  write_metrics({{"event", "eval"},
                 {"step", progress_.step},
                 {"loss", number(result.loss)},
                 {"perplexity", number(perplexity)},
                 {"targets", result.targets}});
  log_.info("step {:>6}  validation loss {}  perplexity {}  ({})", progress_.step,
            decimal(result.loss, 4), decimal(perplexity, 3), counted(result.targets, "token"));
}

/// Copies that have drifted apart are neither trained on nor saved.
void Trainer::check_replicas() {
  if (config_.parallel.check_replicas == 0 || checked_step_ == progress_.step) return;
  stepper_.wait_for_weights();
  gradus::check_replicas(model_);
  checked_step_ = progress_.step;
}

StepState Trainer::step(double lr) {
  data_.verification->check();
  try {
    return stepper_.run(data_.train, progress_.samples, lr);
  } catch (const UnusableBatch& reason) {
    save_before(reason);
    throw;
  }
}

/// Saves the steps that were made before the data could no longer be read.
void Trainer::save_before(const UnusableBatch& reason) {
  if (progress_.step == first_step_) return;
  log_.warn("the data failed after step {}: {}", progress_.step, reason.what());
  save(Saving::last, "where the data failed");
}

/// Weights that learned from damaged shards are not kept: before the first checkpoint every rank
/// waits until all of them have verified theirs.
void Trainer::require_verified_data() {
  if (data_verified_) return;
  if (unverified_) log_.info("waiting until the data is verified, then saving");
  data_.verification->finish();
  constexpr bool kUnwatched = false;  // large shards on slow disks take as long as they take
  Communicator* const world = model_.parallel().world;
  if (world != nullptr) world->barrier(model_.executor(), kUnwatched).wait(model_.executor());
  data_verified_ = true;
}

/// occasion: what the step is, where it is the last to be saved.
void Trainer::save(Saving saving, const std::string& occasion) {
  if (saver_->saved_step() == progress_.step) return;
  if (saving == Saving::last) {
    saver_->require_fit(progress_, occasion);
  } else if (!saver_->fit(progress_)) {
    return;
  }
  require_verified_data();
  check_replicas();
  if (records_) records_->try_again();
  if (saving == Saving::last) {
    saver_->save_or_throw(progress_);
  } else {
    saver_->save(progress_);
  }
}

std::string Trainer::generates_from() const {
  return saver_->saved_step() || started_from_.empty() ? run_.string() : started_from_.string();
}

}  // namespace gradus
