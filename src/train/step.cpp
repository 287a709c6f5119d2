#include "train/step.h"

#include <algorithm>
#include <functional>

#include "core/error.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "train/first_nonfinite.h"

namespace gradus {
namespace {

std::span<int32_t> span_of(const Tensor& tensor) {
  return {tensor.as<int32_t>(), static_cast<size_t>(tensor.numel())};
}

int64_t count_targets(const Tensor& targets) {
  const auto ids = span_of(targets);
  return std::ranges::count_if(ids, [](int32_t id) { return id != kIgnoredTarget; });
}

}  // namespace

Stepper::Stepper(const Config& config, TrainingModel& model)
    : config_(config),
      model_(model),
      reads_(model.parallel()),
      sync_(model),
      schedule_(model.gpt(), model.parallel().pp) {}

MicroBatch Stepper::micro_batch(int64_t index) const {
  const int64_t B = model_.gpt().sizes().B;
  return {.tokens = model_.tokens().slice(0, index * B, B),
          .targets = model_.targets().slice(0, index * B, B),
          .loss_sum = model_.loss(),
          .gradient_scale = 1.0 / static_cast<double>(target_count_),
          .dropout = {.p = config_.model.dropout,
                      .seed = static_cast<uint64_t>(config_.seed),
                      .first_sample = first_sample_ + index * B}};
}

void Stepper::forward(int64_t index, int64_t slot) {
  if (replay_ != nullptr) replay_->begin_pass(index, false);
  model_.gpt().forward_stage(model_.executor(), micro_batch(index), sync_, slot);
}

void Stepper::backward(int64_t index, int64_t slot) {
  if (replay_ != nullptr) replay_->begin_pass(index, true);
  sync_.begin_backward(index == model_.micro_batches() - 1);
  model_.gpt().backward_stage(model_.executor(), micro_batch(index), sync_, slot);
}

void Stepper::accumulate_gradients() {
  Executor& x = model_.executor();
  model_.optimizer().zero_gradients(x);
  fill(x, model_.loss(), 0.0);
  schedule_.train(
      x, model_.micro_batches(), [this](int64_t index, int64_t slot) { forward(index, slot); },
      [this](int64_t index, int64_t slot) { backward(index, slot); });
  if (replay_ != nullptr) replay_->begin_pass(model_.micro_batches(), false);  // after all of them
  sync_.finish_gradients();
  sum_over_replicas_and_stages(model_.loss());
  scale(x, model_.loss(), 1.0 / static_cast<double>(target_count_));
}

/// Of what only the last stage has (others: zero), each replica for its own samples.
void Stepper::sum_over_replicas_and_stages(const Tensor& inout) {
  model_.parallel().dp.all_reduce(model_.executor(), inout);
  model_.parallel().pp.all_reduce(model_.executor(), inout);
}

StepState Stepper::run(const Loader& loader, int64_t first_sample, double lr) {
  const int64_t own = first_sample + model_.parallel().dp.rank() * model_.tokens().size(0);
  reads_.read(loader, own, span_of(model_.tokens()), span_of(model_.targets()));
  return run(first_sample, lr);
}

StepState Stepper::run(int64_t first_sample, double lr) {
  Executor& x = model_.executor();
  first_sample_ = first_sample + model_.parallel().dp.rank() * model_.tokens().size(0);
  target_count_ = reads_.agree(x, count_targets(model_.targets()));
  if (target_count_ == 0) {
    throw DataError("the batch at sample {} has no target to learn from: every one is masked",
                    first_sample);
  }
  accumulate_gradients();
  model_.optimizer().step(x, lr, model_.loss());
  sync_.gather_weights();
  return model_.optimizer().state();
}

std::string Stepper::find_nonfinite() {
  Executor& x = model_.executor();
  sync_.wait_for_weights();
  std::string weights;
  for (const Parameter& parameter : model_.parameters().all()) {
    if (weights.empty() && !all_finite(x, parameter.value)) {
      weights = fmt::format("the weights of {} are not finite", parameter.spec.name);
    }
  }
  // Ranks hold different parts and must agree before any of them starts the replay's collectives.
  weights = first_finding(x, model_.parallel().world, weights, 0.0);
  if (!weights.empty()) return weights;
  FirstNonfinite first(x, model_.parallel());
  replay_ = &first;
  accumulate_gradients();
  replay_ = nullptr;
  const std::string found = first.agree();
  if (!found.empty()) return found;
  return "every tensor of the step is finite: the sum of squares of the gradients overflowed";
}

/// Fills the first micro-batch with batch number `batch` of the first `samples` samples; what is
/// beyond them counts for nothing.
void Stepper::read_evaluation_batch(const Loader& loader, int64_t batch, int64_t samples) {
  const Sizes& sizes = model_.gpt().sizes();
  const auto tokens = span_of(model_.tokens().slice(0, 0, sizes.B));
  const auto targets = span_of(model_.targets().slice(0, 0, sizes.B));
  const int64_t count = std::min(sizes.B, samples - batch * sizes.B);
  const auto used = static_cast<size_t>(count * sizes.T);
  reads_.read(loader, batch * sizes.B, tokens.first(used), targets.first(used));
  std::ranges::fill(tokens.subspan(used), 0);
  std::ranges::fill(targets.subspan(used), kIgnoredTarget);
}

Stepper::Evaluation Stepper::evaluate(const Loader& loader, const EvalTokens& tokens) {
  Executor& x = model_.executor();
  const Sizes& sizes = model_.gpt().sizes();
  const DataParallel& dp = model_.parallel().dp;
  int64_t samples = loader.samples_per_epoch();
  if (tokens.count) samples = std::min(samples, (*tokens.count - 1) / sizes.T + 1);
  const int64_t batches = (samples - 1) / sizes.B + 1;
  const int64_t own = (batches - dp.rank() + dp.size() - 1) / dp.size();  // taken in turns
  const MicroBatch batch{.tokens = model_.tokens().slice(0, 0, sizes.B),
                         .targets = model_.targets().slice(0, 0, sizes.B),
                         .loss_sum = model_.loss()};
  const auto pass = [&](int64_t index, int64_t) {
    read_evaluation_batch(loader, index * dp.size() + dp.rank(), samples);
    model_.gpt().forward(x, batch, sync_);
  };
  fill(x, model_.loss(), 0.0);
  schedule_.evaluate(x, own, std::ref(pass));
  reads_.agree(x, 0);
  sum_over_replicas_and_stages(model_.loss());
  Evaluation result;
  result.targets = samples * sizes.T;
  result.loss = *model_.loss().as<double>() / static_cast<double>(result.targets);
  return result;
}

}  // namespace gradus
