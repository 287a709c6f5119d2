#include "optim/optimizer.h"

#include <cstring>

#include "kernels/elementwise.h"
#include "kernels/optimizer.h"

namespace gradus {

static_assert(kSectionAlignment == kNormChunk,
              "a chunk of a norm must not cross a section's start");

namespace {

int64_t chunks(const BucketSection& section) {
  return (section.end - section.begin + kNormChunk - 1) / kNormChunk;
}

Tensor section_of(const Tensor& flat, const BucketSection& section) {
  return flat.defined() ? flat.slice(0, section.begin, section.end - section.begin) : Tensor();
}

}  // namespace

Optimizer::Optimizer(const OptimConfig& config, const Parameters& parameters, TensorParallel* tp)
    : config_(config), parameters_(parameters), tp_(tp) {}

void Optimizer::declare(TensorVisitor& visitor) {
  const Precision& precision = parameters_.precision();
  const Lifetime persistent = Lifetime::persistent();
  buckets_.clear();
  int64_t partials = 0;
  for (const Bucket& bucket : parameters_.buckets()) {
    BucketState state;
    const Shape shape{bucket.numel};
    if (precision.separate_master()) {
      state.master = visitor.declare(bucket.name + ".master", precision.master, shape, persistent);
    }
    state.m = visitor.declare(bucket.name + ".adam_m", precision.master, shape, persistent);
    state.v = visitor.declare(bucket.name + ".adam_v", precision.master, shape, persistent);
    buckets_.push_back(state);
    for (const BucketSection& section : bucket.sections) partials += chunks(section);
  }
  partials_ = visitor.declare("norm_partials", DType::fp64, {partials}, persistent);
  state_ = visitor.declare("step_state", DType::u8, {sizeof(StepState)}, persistent);
}

void Optimizer::reset(Executor& x) {
  // Padding rows and the gaps between parameters are never written again, and must be zero.
  for (const Bucket& bucket : parameters_.buckets()) fill(x, bucket.value, 0.0);
  for (const BucketState& state : buckets_) {
    if (state.master.defined()) fill(x, state.master, 0.0);
    fill(x, state.m, 0.0);
    fill(x, state.v, 0.0);
  }
  set_state({});
}

void Optimizer::zero_gradients(Executor& x) {
  for (const Bucket& bucket : parameters_.buckets()) fill(x, bucket.grad, 0.0);
}

/// Partials of the global norm over all ranks. What every rank has counts once, on the first.
void Optimizer::sum_norm(Executor& x) {
  const bool counts_replicas = tp_ == nullptr || tp_->rank() == 0;
  int64_t first = 0;
  for (const Bucket& bucket : parameters_.buckets()) {
    for (const BucketSection& section : bucket.sections) {
      const Tensor partials = partials_.slice(0, first, chunks(section));
      if (section.replicated && !counts_replicas) {
        fill(x, partials, 0.0);
      } else {
        sum_of_squares(x, partials, section_of(bucket.grad, section));
      }
      first += chunks(section);
    }
  }
  if (tp_ != nullptr) tp_->all_reduce(x, partials_);
}

void Optimizer::step(Executor& x, double lr, const ConstTensor& loss) {
  sum_norm(x);
  decide_step(x, state_, partials_, loss, {.clip_norm = config_.clip_norm, .lr = lr});
  for (size_t b = 0; b < buckets_.size(); ++b) {
    const Bucket& bucket = parameters_.buckets()[b];
    const BucketState& state = buckets_[b];
    for (const BucketSection& section : bucket.sections) {
      adamw_step(x, section_of(bucket.value, section), section_of(state.master, section),
                 section_of(state.m, section), section_of(state.v, section),
                 section_of(bucket.grad, section), state_,
                 {.beta1 = config_.beta1,
                  .beta2 = config_.beta2,
                  .epsilon = config_.eps,
                  .weight_decay = section.decay ? config_.weight_decay : 0.0});
    }
  }
}

StepState Optimizer::state() const {
  StepState state;
  std::memcpy(&state, state_.data(), sizeof(state));
  return state;
}

void Optimizer::set_state(const StepState& state) {
  std::memcpy(state_.data(), &state, sizeof(state));
}

Tensor Optimizer::view(const Parameter& parameter, const Tensor& flat) const {
  return flat.slice(0, parameter.offset, parameter.numel())
      .reshape(parameter.value.shape())
      .named(parameter.spec.name.c_str());
}

Tensor Optimizer::master(const Parameter& parameter) const {
  const Tensor& flat = buckets_[static_cast<size_t>(parameter.spec.bucket)].master;
  return flat.defined() ? view(parameter, flat) : parameter.value;
}

Tensor Optimizer::first_moment(const Parameter& parameter) const {
  return view(parameter, buckets_[static_cast<size_t>(parameter.spec.bucket)].m);
}

Tensor Optimizer::second_moment(const Parameter& parameter) const {
  return view(parameter, buckets_[static_cast<size_t>(parameter.spec.bucket)].v);
}

void Optimizer::publish_master(Executor& x) {
  for (size_t b = 0; b < buckets_.size(); ++b) {
    if (buckets_[b].master.defined()) {
      copy(x, parameters_.buckets()[b].value, buckets_[b].master);
    }
  }
}

}  // namespace gradus
