#include "train/training_model.h"

#include <utility>

#include "core/error.h"
#include "model/gpt_parameters.h"
#include "model/initialize.h"
#include "parallel/gather_values.h"
#include "train/config_check.h"
#include "train/pipeline_schedule.h"
#include "train/precision_preset.h"

namespace gradus {
namespace {

PipelineStage stage_of(const Config& config, int64_t vocabulary, const PipelineParallel& pp) {
  return pipeline_stage(config.model, vocabulary, pp.stage(), pp.stages());
}

Parameters::Options parameter_options(const Config& config, const PipelineStage& stage,
                                      const Parallelism& parallel) {
  return {.precision = precision_of(config.train.precision),
          .tp_rank = parallel.tp.rank(),
          .tp_size = parallel.tp.size(),
          .dp_rank = parallel.dp.rank(),
          .dp_size = parallel.dp.size(),
          .sharding = parallel.dp.sharding(),
          .holdings = bucket_holdings(config.model, stage)};
}

/// In the order of their price (docs/memory.md).
constexpr const char* kWhatWouldHelp =
    "To make it smaller: on several ranks parallel.zero: 1 and, with tp, parallel.sequence: true; "
    "train.recompute: selective, then full; a smaller train.micro_batch (the step stays the same); "
    "train.precision: bf16; more ranks; a smaller model.context or model";

/// Micro-batches of one replica in a step.
int64_t micro_batches_of(const Config& config, const DataParallel& dp) {
  const int64_t pass = config.train.micro_batch * dp.size();
  const int64_t batch = config.train.global_batch;
  if (batch % pass != 0) {
    throw ConfigError(
        "train.global_batch {} is not a multiple of train.micro_batch {} × dp {}: use global_batch "
        "{}, another micro_batch or another number of ranks",
        batch, config.train.micro_batch, dp.size(), nearest_multiples(batch, pass));
  }
  return batch / pass;
}

Gpt::Options gpt_options(const Config& config, int64_t vocabulary, const PipelineStage& stage,
                         const Parallelism& parallel) {
  return {.model = config.model,
          .vocabulary = vocabulary,
          .precision = precision_of(config.train.precision),
          .keep = keep_for(config.train.recompute),
          .B = config.train.micro_batch,
          .T = config.model.context,
          .stage = stage,
          .slots = micro_batches_in_flight(parallel.pp, micro_batches_of(config, parallel.dp))};
}

}  // namespace

TrainingModel::TrainingModel(const Config& config, int64_t vocabulary, Executor& x,
                             Parallelism& parallel)
    : x_(x),
      parallel_(parallel),
      micro_batches_(micro_batches_of(config, parallel.dp)),
      parameters_(gpt_parameters(config.model, vocabulary, parallel.tp.size()),
                  parameter_options(config, stage_of(config, vocabulary, parallel.pp), parallel)),
      optimizer_(config.optim, parameters_, &parallel),
      gpt_(gpt_options(config, vocabulary, stage_of(config, vocabulary, parallel.pp), parallel),
           parallel.tp) {}

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

int64_t TrainingModel::bytes_of_neighbours(int machine) {
  Communicator* const world = parallel_.world;
  if (world == nullptr) return 0;
  struct Need {
    int64_t machine;
    int64_t bytes;
  };
  const Need mine{machine, plan()->total_bytes()};
  int64_t sum = -mine.bytes;
  for (const Need& need : gather_values(x_, *world, mine)) {
    if (need.machine == mine.machine) sum += need.bytes;
  }
  return sum;
}

void TrainingModel::allocate(int64_t others) {
  try {
    arena_ = std::make_unique<Arena>(plan(), others);
  } catch (const MemoryError& error) {
    throw MemoryError("{}{}", error.what(), kWhatWouldHelp);
  }
  declare(*arena_);
  arena_->check_complete();
  x_.bind_scratch(arena_->scratch());
}

void TrainingModel::initialize(uint64_t seed) {
  optimizer_.reset(x_);
  for (const Parameter& parameter : parameters_.all()) {
    const HeldPart part = optimizer_.held(parameter, Optimizer::Kind::master);
    initialize_parameter(x_, parameter, part.first, part.values, seed);
  }
  publish();
}

void TrainingModel::publish() {
  optimizer_.publish_master(x_);
  for (const Bucket& bucket : parameters_.buckets()) {
    if (bucket.holding != Holding::none) parallel_.dp.gather_weights(x_, bucket).wait(x_);
  }
}

}  // namespace gradus
