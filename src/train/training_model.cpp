#include "train/training_model.h"

#include <utility>

#include "model/gpt_parameters.h"
#include "model/initialize.h"
#include "train/precision_preset.h"

namespace gradus {
namespace {

Parameters::Options parameter_options(const Config& config, const TensorParallel& tp) {
  return {.precision = precision_of(config.train.precision),
          .tp_rank = tp.rank(),
          .tp_size = tp.size()};
}

Gpt::Options gpt_options(const Config& config, int64_t vocabulary) {
  return {.model = config.model,
          .vocabulary = vocabulary,
          .precision = precision_of(config.train.precision),
          .keep = keep_for(config.train.recompute),
          .B = config.train.micro_batch,
          .T = config.model.context};
}

}  // namespace

TrainingModel::TrainingModel(const Config& config, int64_t vocabulary, Executor& x,
                             TensorParallel& tp)
    : x_(x),
      tp_(tp),
      micro_batches_(config.train.global_batch / config.train.micro_batch),
      parameters_(gpt_parameters(config.model, vocabulary, tp.size()),
                  parameter_options(config, tp)),
      optimizer_(config.optim, parameters_, &tp),
      gpt_(gpt_options(config, vocabulary), tp) {}

void TrainingModel::declare(TensorVisitor& visitor) {
  parameters_.declare(visitor);
  optimizer_.declare(visitor);
  const Shape batch{micro_batches_ * gpt_.sizes().B, gpt_.sizes().T};
  tokens_ = visitor.declare("tokens", DType::i32, batch, Lifetime::persistent());
  targets_ = visitor.declare("targets", DType::i32, batch, Lifetime::persistent());
  loss_ = visitor.declare("loss", DType::fp64, {1}, Lifetime::persistent());
  gpt_.declare(visitor, parameters_, x_);
}

std::unique_ptr<MemoryPlan> TrainingModel::plan() {
  auto plan = std::make_unique<MemoryPlan>(x_.device());
  declare(*plan);
  plan->lay_out();
  return plan;
}

void TrainingModel::allocate(int sharers) {
  arena_ = std::make_unique<Arena>(plan(), sharers);
  declare(*arena_);
  arena_->check_complete();
  x_.bind_scratch(arena_->scratch());
}

void TrainingModel::initialize(uint64_t seed) {
  optimizer_.reset(x_);
  for (const Parameter& parameter : parameters_.all()) {
    initialize_parameter(x_, parameter, optimizer_.master(parameter), seed);
  }
  optimizer_.publish_master(x_);
}

}  // namespace gradus
