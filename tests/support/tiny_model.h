#pragma once

#include <memory>
#include <vector>

#include "parallel/parallelism.h"
#include "train/step.h"
#include "train/synthetic_batch.h"
#include "train/training_model.h"

namespace gradus::test {

/// A configuration small enough for central differences: odd sizes everywhere.
inline Config tiny_config() {
  Config config;
  config.seed = 7;
  config.model = {.layers = 2,
                  .channels = 6,
                  .heads = 2,
                  .context = 5,
                  .mlp_width = 11,
                  .dropout = 0.0,
                  .vocab_size = 13};
  config.train.micro_batch = 3;
  config.train.global_batch = 3;
  config.train.precision = PrecisionPreset::fp64;
  return config;
}

/// A TrainingModel with memory, initial weights and a random batch, on one rank or in its place in
/// a layout.
struct TinyModel {
  Config config;
  Executor x;
  Parallelism parallel;
  TrainingModel model;
  LayerHooks hooks;
  Stepper stepper;

  explicit TinyModel(const Config& settings, int threads = 2, const Parallelism& layout = {})
      : config(settings),
        x(Device::cpu, threads),
        parallel(layout),
        model(config, *config.model.vocab_size, x, parallel),
        stepper(config, model) {
    model.allocate();
    model.initialize(static_cast<uint64_t>(config.seed));
    fill_batch(0);
  }

  void fill_batch(uint64_t number) {
    fill_synthetic_batch(model, number, SyntheticTargets::four_in_five);
  }

  int64_t target_count() const {
    int64_t count = 0;
    for (int64_t i = 0; i < model.targets().numel(); ++i) {
      count += model.targets().as<int32_t>()[i] >= 0 ? 1 : 0;
    }
    return count;
  }
};

}  // namespace gradus::test
