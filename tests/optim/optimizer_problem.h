#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/arena.h"
#include "kernels/elementwise.h"
#include "optim/optimizer.h"
#include "support/tensors.h"

namespace gradus::test {

inline constexpr int64_t kPaddedRows = 16;

/// Matrices and vectors, odd sizes, padded and tied rows, packed entries, several chunks of a norm.
inline std::vector<ParamSpec> optimizer_table() {
  return {
      {.name = "token",
       .shape = {13, 11},
       .cut = TpCut::rows,
       .padded_rows = kPaddedRows,
       .decay = true,
       .tied = {"head"}},
      {.name = "position", .shape = {5, 11}, .decay = true},
      {.name = "ln", .shape = {11}, .bucket = 1},
      {.name = "q", .shape = {11, 11}, .bucket = 1, .cut = TpCut::rows, .decay = true},
      {.name = "k",
       .shape = {11, 11},
       .bucket = 1,
       .cut = TpCut::rows,
       .packed = true,
       .decay = true},
      {.name = "q.bias", .shape = {11}, .bucket = 1, .cut = TpCut::rows},
      {.name = "up", .shape = {97, 23}, .bucket = 1, .cut = TpCut::rows, .decay = true},
      {.name = "ln_f", .shape = {11}, .bucket = 2},
  };
}

/// Remembers what an arena hands out, by name.
class TensorRecorder final : public TensorVisitor {
 public:
  explicit TensorRecorder(Arena& arena) : arena_(arena) {}
  Tensor declare(std::string name, DType dtype, const Shape& shape,
                 const Lifetime& lifetime) override {
    return tensors[name] = arena_.declare(name, dtype, shape, lifetime);
  }
  std::map<std::string, Tensor> tensors;

 private:
  Arena& arena_;
};

/// Parameters and an optimizer with memory, of a rank alone or of one replica; weights drawn from a
/// fixed stream, the same for every replica.
class OptimizerProblem {
 public:
  using Bytes = std::vector<std::byte>;

  explicit OptimizerProblem(const Precision& precision, const OptimConfig& config = {})
      : OptimizerProblem(Parameters::Options{.precision = precision}, config) {}

  explicit OptimizerProblem(const Parameters::Options& options, const OptimConfig& config = {})
      : parameters_(optimizer_table(), options), optimizer_(config, parameters_) {
    auto plan = std::make_unique<MemoryPlan>(Device::cpu);
    declare(*plan);
    plan->lay_out();
    arena_ = std::make_unique<Arena>(std::move(plan));
    TensorRecorder recorder(*arena_);
    declare(recorder);
    arena_->check_complete();
    tensors_ = recorder.tensors;
    optimizer_.reset(x_);
    std::mt19937_64 rng(test_seed());
    std::normal_distribution<double> draw(0.0, 0.5);
    for (const Parameter& p : parameters_.all()) {
      const HeldPart part = optimizer_.held(p, Optimizer::Kind::master);
      for (int64_t i = 0; i < p.spec.shape.numel(); ++i) {
        const double value = draw(rng);
        const int64_t held = i - part.first;
        if (held >= 0 && held < part.values.numel()) set_value(part.values, held, value);
      }
    }
    optimizer_.publish_master(x_);
  }

  const Parameters& parameters() const { return parameters_; }
  Optimizer& optimizer() { return optimizer_; }
  Executor& x() { return x_; }

  /// Random gradients of the logical elements: the same for the same number, on every replica, as
  /// after their sum over replicas.
  void draw_gradients(uint64_t number, double std_dev = 0.1) {
    optimizer_.zero_gradients(x_);
    std::mt19937_64 rng(test_seed() + 77 * number);
    std::normal_distribution<double> draw(0.0, std_dev);
    for (const Parameter& p : parameters_.all()) {
      for (int64_t i = 0; i < p.spec.shape.numel(); ++i) set_value(p.grad, i, draw(rng));
    }
    if (parameters_.sharding() != Sharding::gradients) return;
    for (const Bucket& bucket : parameters_.buckets()) {
      copy(x_, bucket.grad_shard, bucket.grad.slice(0, bucket.shard.begin, bucket.shard.numel()));
    }
  }

  StepState step(double lr, double loss = 2.5) {
    const Tensor loss_tensor(&loss, DType::fp64, Device::cpu, {1}, "loss");
    optimizer_.step(x_, lr, loss_tensor);
    return optimizer_.state();
  }

  static bool is_optimizer_state(const std::string& name) {
    return name.ends_with(".master") || name.ends_with(".adam_m") || name.ends_with(".adam_v");
  }
  /// Of weights, master weights and moments: what a step changes and a checkpoint keeps.
  Bytes bytes() const {
    Bytes all;
    for (const auto& [name, t] : tensors_) {
      if (!name.ends_with(".weights") && !is_optimizer_state(name)) continue;
      all.insert(all.end(), t.data(), t.data() + t.bytes());
    }
    return all;
  }

  const std::map<std::string, Tensor>& tensors() const { return tensors_; }

 private:
  void declare(TensorVisitor& visitor) {
    parameters_.declare(visitor);
    optimizer_.declare(visitor);
  }

  Executor x_{Device::cpu, 2};
  Parameters parameters_;
  Optimizer optimizer_;
  std::unique_ptr<Arena> arena_;
  std::map<std::string, Tensor> tensors_;
};

}  // namespace gradus::test
