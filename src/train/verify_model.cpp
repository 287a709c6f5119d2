#include "train/verify_model.h"

#include "train/synthetic_batch.h"

namespace gradus {

VerifiedModel::VerifiedModel(const Config& config)
    : config_(config),
      x_(Device::cpu, 1),
      model_(config_, *config_.model.vocab_size, x_, parallel_),
      stepper_(config_, model_) {
  start();
}

VerifiedModel::VerifiedModel(const Config& config, Bootstrap& bootstrap,
                             const VerifiedLayout& layout)
    : config_(config),
      x_(Device::cpu, 1),
      mesh_(std::in_place, bootstrap, layout.mesh),
      parallel_(*mesh_, {.sequence = layout.sequence, .zero = layout.zero}),
      model_(config_, *config_.model.vocab_size, x_, parallel_),
      stepper_(config_, model_) {
  start();
}

void VerifiedModel::start() {
  model_.allocate();
  model_.initialize(static_cast<uint64_t>(config_.seed));
}

StepState VerifiedModel::step(int64_t number, double lr) {
  fill_synthetic_batch(model_, static_cast<uint64_t>(number), SyntheticTargets::four_in_five);
  const StepState state = stepper_.run(number * config_.train.global_batch, lr);
  stepper_.wait_for_weights();
  return state;
}

}  // namespace gradus
