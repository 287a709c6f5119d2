#include "train/synthetic_batch.h"

#include "core/rng.h"
#include "kernels/cross_entropy.h"

namespace gradus {

void fill_synthetic_batch(TrainingModel& model, uint64_t number, SyntheticTargets which) {
  constexpr uint64_t kSeed = 99;
  const auto V = static_cast<uint64_t>(model.gpt().sizes().V);
  const int64_t count = model.tokens().numel();
  const int64_t first = model.parallel().dp.rank() * count;
  auto* tokens = model.tokens().as<int32_t>();
  auto* targets = model.targets().as<int32_t>();
  for (int64_t i = 0; i < count; ++i) {
    const auto words = philox4x32(rng_key(kSeed, number), 0, static_cast<uint64_t>(first + i));
    tokens[i] = static_cast<int32_t>(words[0] % V);
    const bool ignored = which == SyntheticTargets::four_in_five && words[2] % 5 == 0;
    targets[i] = ignored ? kIgnoredTarget : static_cast<int32_t>(words[1] % V);
  }
}

}  // namespace gradus
