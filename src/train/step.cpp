#include "train/step.h"

#include <algorithm>
#include <array>
#include <limits>

#include "core/error.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"

namespace gradus {
namespace {

/// Remembers the first tensor that was written with a value that is not finite.
class FirstNonfinite final : public OperationObserver {
 public:
  explicit FirstNonfinite(Executor& x) : x_(x) { x_.observe(this); }
  ~FirstNonfinite() override { x_.observe(nullptr); }
  FirstNonfinite(const FirstNonfinite&) = delete;
  FirstNonfinite& operator=(const FirstNonfinite&) = delete;

  void completed(const char* operation, const ConstTensor& written) override {
    ++count_;
    if (!found_.empty() || written.dtype() == DType::i32 || written.dtype() == DType::u8) return;
    if (finite(written)) return;
    found_ = fmt::format("{} wrote a non-finite value to {} (operation {} of the step)", operation,
                         describe(written), count_);
    found_at_ = count_;
  }
  const std::string& found() const { return found_; }
  /// Of the operation that wrote it, from the replay's start.
  int64_t operation() const { return found_at_; }

 private:
  /// all_finite of any view: q, k and v are strided ones of one tensor.
  bool finite(const ConstTensor& tensor, int axis = 0) {
    if (tensor.contiguous()) return all_finite(x_, tensor);
    for (int64_t i = 0; i < tensor.size(axis); ++i) {
      if (!finite(tensor.slice(axis, i, 1), axis + 1)) return false;
    }
    return true;
  }

  Executor& x_;
  std::string found_;
  int64_t found_at_ = 0;
  int64_t count_ = 0;
};

/// The finding of the rank that found something first, on every rank of tp; empty when none did.
std::string earliest_finding(Executor& x, TensorParallel& tp, const std::string& found,
                             int64_t operation) {
  if (tp.size() == 1) return found;
  constexpr int32_t kNone = std::numeric_limits<int32_t>::min();
  // The earliest operation, and of several ranks the first, is the largest of these.
  const auto mine =
      found.empty() ? kNone : static_cast<int32_t>(-(operation * tp.size() + tp.rank()));
  int32_t earliest = mine;
  tp.all_reduce(x, Tensor(&earliest, DType::i32, Device::cpu, {1}), ReduceOp::max);
  if (earliest == kNone) return {};
  std::array<char, 256> text{};
  if (mine == earliest) found.copy(text.data(), text.size() - 1);
  tp.all_reduce(x, Tensor(text.data(), DType::u8, Device::cpu, {256}), ReduceOp::max);
  return text.data();
}

std::span<int32_t> span_of(const Tensor& tensor) {
  return {tensor.as<int32_t>(), static_cast<size_t>(tensor.numel())};
}

int64_t count_targets(const Tensor& targets) {
  const auto ids = span_of(targets);
  return std::ranges::count_if(ids, [](int32_t id) { return id != kIgnoredTarget; });
}

}  // namespace

Stepper::Stepper(const Config& config, TrainingModel& model, LayerHooks& hooks)
    : config_(config), model_(model), hooks_(hooks) {}

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

void Stepper::accumulate_gradients() {
  Executor& x = model_.executor();
  model_.optimizer().zero_gradients(x);
  fill(x, model_.loss(), 0.0);
  for (int64_t m = 0; m < model_.micro_batches(); ++m) {
    model_.gpt().forward_backward(x, micro_batch(m), hooks_);
  }
  if (model_.tp().sequence_parallel()) sum_replicated_gradients();
  scale(x, model_.loss(), 1.0 / static_cast<double>(target_count_));
}

/// Under sequence parallelism each rank has seen its own tokens only, and parameters that are whole
/// on every rank (layernorms, biases behind row-parallel products, positions) have a part of their
/// gradient.
void Stepper::sum_replicated_gradients() {
  for (const Bucket& bucket : model_.parameters().buckets()) {
    for (const BucketSection& section : bucket.sections) {
      if (!section.replicated) continue;
      model_.tp().all_reduce(model_.executor(),
                             bucket.grad.slice(0, section.begin, section.end - section.begin));
    }
  }
}

StepState Stepper::run(const Loader& loader, int64_t first_sample, double lr) {
  loader.read(first_sample, span_of(model_.tokens()), span_of(model_.targets()));
  return run(first_sample, lr);
}

StepState Stepper::run(int64_t first_sample, double lr) {
  first_sample_ = first_sample;
  target_count_ = count_targets(model_.targets());
  if (target_count_ == 0) {
    throw DataError("the batch at sample {} has no target to learn from: every one is masked",
                    first_sample);
  }
  accumulate_gradients();
  model_.optimizer().step(model_.executor(), lr, model_.loss());
  return model_.optimizer().state();
}

std::string Stepper::find_nonfinite() {
  Executor& x = model_.executor();
  std::string weights;
  for (const Parameter& parameter : model_.parameters().all()) {
    if (weights.empty() && !all_finite(x, parameter.value)) {
      weights = fmt::format("the weights of {} are not finite", parameter.spec.name);
    }
  }
  // Ranks hold different parts and must agree before any of them starts the replay's collectives.
  weights = earliest_finding(x, model_.tp(), weights, 0);
  if (!weights.empty()) return weights;
  FirstNonfinite first(x);
  accumulate_gradients();
  x.observe(nullptr);
  const std::string found = earliest_finding(x, model_.tp(), first.found(), first.operation());
  if (!found.empty()) return found;
  return "every tensor of the step is finite: the sum of squares of the gradients overflowed";
}

Stepper::Evaluation Stepper::evaluate(const Loader& loader, int64_t batches) {
  Executor& x = model_.executor();
  const Sizes& sizes = model_.gpt().sizes();
  const int64_t samples = loader.samples_per_epoch();
  batches = std::min(batches, (samples + sizes.B - 1) / sizes.B);
  MicroBatch batch{.tokens = model_.tokens().slice(0, 0, sizes.B),
                   .targets = model_.targets().slice(0, 0, sizes.B),
                   .loss_sum = model_.loss()};
  const auto tokens = span_of(model_.tokens().slice(0, 0, sizes.B));
  const auto targets = span_of(model_.targets().slice(0, 0, sizes.B));
  Evaluation result;
  fill(x, model_.loss(), 0.0);
  for (int64_t b = 0; b < batches; ++b) {
    const int64_t count = std::min(sizes.B, samples - b * sizes.B);
    const auto used = static_cast<size_t>(count * sizes.T);
    loader.read(b * sizes.B, tokens.first(used), targets.first(used));
    std::ranges::fill(tokens.subspan(used), 0);
    std::ranges::fill(targets.subspan(used), kIgnoredTarget);
    result.targets += count * sizes.T;
    model_.gpt().forward(x, batch, hooks_);
  }
  result.loss = *model_.loss().as<double>() / static_cast<double>(result.targets);
  return result;
}

}  // namespace gradus
