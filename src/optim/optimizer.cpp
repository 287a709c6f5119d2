#include "optim/optimizer.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "core/error.h"
#include "kernels/elementwise.h"
#include "kernels/optimizer.h"
#include "parallel/communicator.h"

namespace gradus {

static_assert(kSectionAlignment == kNormChunk,
              "a chunk of a norm must not cross a section's start");

namespace {

double largest_finite(DType dtype) {
  return dtype == DType::fp64 ? std::numeric_limits<double>::max()
                              : static_cast<double>(std::numeric_limits<float>::max());
}

/// `range` is in elements of the bucket, `shard` holds those from shard_begin on.
Tensor part_of(const Tensor& shard, int64_t shard_begin, const ElementRange& range) {
  return shard.defined() ? shard.slice(0, range.begin - shard_begin, range.numel()) : Tensor();
}

}  // namespace

Optimizer::Optimizer(const OptimConfig& config, const Parameters& parameters, Parallelism* parallel)
    : config_(config), parameters_(parameters), parallel_(parallel) {}

void Optimizer::declare(TensorVisitor& visitor) {
  const Precision& precision = parameters_.precision();
  const Lifetime persistent = Lifetime::persistent();
  buckets_.clear();
  int64_t partials = 0;
  for (const Bucket& bucket : parameters_.buckets()) {
    BucketState state;
    if (bucket.holding != Holding::none) {
      const auto declare_state = [&](const char* name) {
        return visitor.declare(bucket.name + name, precision.master, {bucket.shard.numel()},
                               persistent);
      };
      if (precision.separate_master()) state.master = declare_state(".master");
      state.m = declare_state(".adam_m");
      state.v = declare_state(".adam_v");
    }
    buckets_.push_back(state);
    for (const BucketSection& section : bucket.sections)
      partials += norm_chunks(section.range.numel());
  }
  partials_ = visitor.declare("norm_partials", DType::fp64, {partials}, persistent);
  const int64_t stages = parallel_ == nullptr ? 1 : parallel_->pp.stages();
  stage_sums_ = visitor.declare("norm_of_stages", DType::fp64, {stages}, persistent);
  largest_ = visitor.declare("largest_magnitudes", DType::fp64,
                             {static_cast<int64_t>(Largest::count)}, persistent);
  state_ = visitor.declare("step_state", DType::u8, {sizeof(StepState)}, persistent);
}

void Optimizer::reset(Executor& x) {
  // Padding rows and the gaps between parameters are never written again, and must be zero.
  for (const Bucket& bucket : parameters_.buckets()) {
    if (bucket.value.defined()) fill(x, bucket.value, 0.0);
  }
  for (const BucketState& state : buckets_) {
    for (const Tensor& tensor : {state.master, state.m, state.v}) {
      if (tensor.defined()) fill(x, tensor, 0.0);
    }
  }
  set_state({});
}

void Optimizer::zero_gradients(Executor& x) {
  const bool sharded = parameters_.sharding() == Sharding::gradients;
  for (const Bucket& bucket : parameters_.buckets()) {
    const Tensor& kept = sharded ? bucket.grad_shard : bucket.grad;
    if (kept.defined()) fill(x, kept, 0.0);
  }
}

/// The norm's sums of all stages. Each chunk is summed by one rank: by the replica whose shard it
/// is in, by the first rank of tp where all have it, by the first stage that holds it.
void Optimizer::sum_norm(Executor& x) {
  const bool counts_replicas = parallel_ == nullptr || parallel_->tp.rank() == 0;
  fill(x, partials_, 0.0);
  int64_t first = 0;
  for (const Bucket& bucket : parameters_.buckets()) {
    for (const BucketSection& section : bucket.sections) {
      const ElementRange mine = section.range.intersect(bucket.shard);
      const bool counts =
          bucket.holding == Holding::owner && (counts_replicas || !section.replicated);
      if (counts && !mine.empty()) {
        const int64_t skipped = (mine.begin - section.range.begin) / kNormChunk;
        sum_of_squares(x, partials_.slice(0, first + skipped, norm_chunks(mine.numel())),
                       part_of(bucket.grad_shard, bucket.shard.begin, mine));
      }
      first += norm_chunks(section.range.numel());
    }
  }
  int stage = 0;
  if (parallel_ != nullptr) {
    parallel_->tp.all_reduce(x, partials_);
    if (parameters_.sharding() != Sharding::none) parallel_->dp.all_reduce(x, partials_);
    stage = parallel_->pp.stage();
  }
  sum_partials(x, stage_sums_.slice(0, stage, 1), partials_);
  if (parallel_ != nullptr) parallel_->pp.gather(x, stage_sums_);
}

/// From then on the updates keep it.
void Optimizer::measure_largest(Executor& x) {
  fill(x, largest_, 0.0);
  const auto raise = [&](Largest which, const Tensor& values) {
    raise_to_largest(x, largest_.slice(0, static_cast<int64_t>(which), 1), values);
  };
  for (size_t b = 0; b < buckets_.size(); ++b) {
    if (!buckets_[b].m.defined()) continue;
    raise(Largest::weight, shard_of(b, Kind::master));
    raise(Largest::first_moment, buckets_[b].m);
    raise(Largest::second_moment, buckets_[b].v);
  }
}

/// Every rank has decided the step from sums of its own, whose last bits follow the processor: of
/// gradients that replicas all have, of partials, of the loss that tp ranks all compute, of the
/// rate's cosine. What one rank decided holds for all, or their copies of the weights would drift
/// apart.
void Optimizer::adopt_first_ranks_state(Executor& x) {
  Communicator* const world = parallel_ == nullptr ? nullptr : parallel_->world;
  if (world != nullptr && world->size() > 1) world->broadcast(x, state_, 0).wait(x);
}

void Optimizer::step(Executor& x, double lr, const ConstTensor& loss) {
  sum_norm(x);
  if (parallel_ != nullptr && parallel_->world != nullptr && parallel_->world->size() > 1) {
    // All ranks decide alike.
    parallel_->world->all_reduce(x, largest_, largest_, ReduceOp::max).wait(x);
  }
  const AdamW adamw = {.beta1 = config_.beta1,
                       .beta2 = config_.beta2,
                       .epsilon = config_.eps,
                       .weight_decay = config_.weight_decay};
  decide_step(x, state_, largest_, stage_sums_, loss,
              {.clip_norm = config_.clip_norm,
               .lr = lr,
               .adamw = adamw,
               .range = largest_finite(parameters_.precision().master)});
  adopt_first_ranks_state(x);
  for (size_t b = 0; b < buckets_.size(); ++b) {
    const Bucket& bucket = parameters_.buckets()[b];
    const BucketState& state = buckets_[b];
    for (const BucketSection& section : bucket.sections) {
      const ElementRange mine = section.range.intersect(bucket.shard);
      if (mine.empty()) continue;
      const auto part = [&](const Tensor& shard) {
        return part_of(shard, bucket.shard.begin, mine);
      };
      AdamW of_section = adamw;
      if (!section.decay) of_section.weight_decay = 0.0;
      adamw_step(x, part_of(bucket.value, 0, mine), part(state.master), part(state.m),
                 part(state.v), largest_, part(bucket.grad_shard), state_, of_section);
    }
  }
}

std::string Optimizer::describe_overflow() const {
  const auto of = [&](Largest which) { return largest_.as<double>()[static_cast<int64_t>(which)]; };
  for (int64_t i = 0; i < largest_.numel(); ++i) {
    if (!std::isfinite(largest_.as<double>()[i])) return {};
  }
  const StepState step = state();
  return fmt::format(
      "AdamW's update might leave the range of {}: gradient norm {:.3g}{}, "
      "learning rate {:.3g}, weight decay {:.3g}, largest weight {:.3g}, largest moments {:.3g} "
      "and {:.3g}",
      to_string(parameters_.precision().master), step.grad_norm,
      config_.clip_norm > 0.0 ? fmt::format(" clipped to {:.3g}", config_.clip_norm) : "", step.lr,
      config_.weight_decay, of(Largest::weight), of(Largest::first_moment),
      of(Largest::second_moment));
}

StepState Optimizer::state() const {
  StepState state;
  std::memcpy(&state, state_.data(), sizeof(state));
  return state;
}

void Optimizer::set_state(const StepState& state) {
  std::memcpy(state_.data(), &state, sizeof(state));
}

Tensor Optimizer::shard_of(size_t bucket, Kind kind) const {
  const BucketState& state = buckets_[bucket];
  switch (kind) {
    case Kind::master:
      if (state.master.defined()) return state.master;
      break;
    case Kind::first_moment:
      return state.m;
    case Kind::second_moment:
      return state.v;
    case Kind::gradient:
      return parameters_.buckets()[bucket].grad_shard;
  }
  const Bucket& weights = parameters_.buckets()[bucket];
  return part_of(weights.value, 0, weights.shard);
}

HeldPart Optimizer::held(const Parameter& parameter, Kind kind) const {
  const auto index = static_cast<size_t>(parameter.spec.bucket);
  const ElementRange& shard = parameters_.buckets()[index].shard;
  const ElementRange mine =
      ElementRange{parameter.offset, parameter.offset + parameter.numel()}.intersect(shard);
  if (mine.empty()) return {0, Tensor(nullptr, DType::u8, Device::cpu, {0})};
  const Tensor values = part_of(shard_of(index, kind), shard.begin, mine);
  return {mine.begin - parameter.offset, values.named(parameter.spec.name.c_str())};
}

Tensor Optimizer::whole(const Parameter& parameter, Kind kind) const {
  const HeldPart part = held(parameter, kind);
  if (part.values.numel() != parameter.numel()) {
    throw Error(fmt::format("this replica's optimizer has a part of {} only", parameter.spec.name));
  }
  return part.values.reshape(parameter.value.shape());
}

void Optimizer::publish_master(Executor& x) {
  for (size_t b = 0; b < buckets_.size(); ++b) {
    if (!buckets_[b].master.defined()) continue;
    const Bucket& bucket = parameters_.buckets()[b];
    copy(x, part_of(bucket.value, 0, bucket.shard), buckets_[b].master);
  }
  measure_largest(x);
}

}  // namespace gradus
