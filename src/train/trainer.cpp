#include "train/trainer.h"

#include <fmt/format.h>

#include <cmath>
#include <vector>

#include "checkpoint/checkpoint_folder.h"
#include "core/error.h"
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

Trainer::Trainer(const Options& options, Executor& x, Parallelism& parallel, spdlog::logger& log)
    : options_(options),
      config_(options_.config),
      log_(log),
      run_(config_.run.dir),
      data_(RunData::open(config_)),
      model_(config_, config_.model.vocab_size.value_or(data_.tokenizer->vocab_size()), x,
             parallel),
      stepper_(config_, model_) {
  check_run_folder(config_);
  std::vector<std::string> refused;
  const std::optional<Checkpoint> checkpoint = checkpoint_to_resume(config_, refused);
  for (const std::string& line : refused) log_.warn("not used: {}", line);
  if (Communicator* const world = parallel.world; world != nullptr) {
    refuse_different_starts(x, *world, config_, checkpoint, data_);
  }
  if (checkpoint) {
    for (const std::string& change : check_run(*checkpoint, config_, *data_.tokenizer)) {
      log_.warn("changed since {}: {}", checkpoint->path().filename().string(), change);
    }
  }
  if (first_rank()) {
    prepare_run_folder(config_);
    remove_leftovers(run_ / kCheckpointsName);
  }
  if (parallel.world != nullptr) refuse_folders_apart(x, *parallel.world, config_);
  baseline_bytes_ = resident_memory();
  model_.allocate(model_.bytes_of_neighbours(options_.machine));
  meet();  // before any rank fills its memory: what is free is divided among all
  if (checkpoint) {
    progress_ = load_run(*checkpoint, model_);
    saved_step_ = belongs_to_run(*checkpoint, config_) ? progress_.step : -1;
    log_.info("going on from {} at step {}", checkpoint->path().string(), progress_.step);
  } else {
    model_.initialize(static_cast<uint64_t>(config_.seed));
  }
  check_replicas();
  if (first_rank()) {
    metrics_.emplace(run_ / "metrics.jsonl", progress_.step, progress_.evaluation_due);
  }
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

/// Whether any rank was asked to stop: all of them stop after the same step.
bool Trainer::stop_asked() {
  int32_t asked = signals_.received() != nullptr ? 1 : 0;
  if (Communicator* const world = model_.parallel().world; world != nullptr) {
    const Tensor flag(&asked, DType::i32, Device::cpu, {1});
    world->all_reduce(model_.executor(), flag, flag, ReduceOp::max).wait(model_.executor());
  }
  return asked != 0;
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
    if (due(progress_.step, config_.parallel.check_replicas)) check_replicas();
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

/// Copies that have drifted apart are neither trained on nor saved.
void Trainer::check_replicas() {
  if (config_.parallel.check_replicas == 0 || checked_step_ == progress_.step) return;
  stepper_.wait_for_weights();
  gradus::check_replicas(model_);
  checked_step_ = progress_.step;
}

void Trainer::save() {
  if (saved_step_ == progress_.step) return;
  check_replicas();
  const SaveResult result = save_run(run_, progress_, config_, *data_.tokenizer, model_);
  saved_step_ = progress_.step;
  if (!first_rank()) return;
  log_.info("saved {} ({})", result.path.string(), format_bytes(result.bytes));
  for (const std::string& warning : result.warnings) log_.warn("{}", warning);
}

}  // namespace gradus
