#pragma once

#include "core/rng.h"
#include "support/tensors.h"

namespace gradus::test {

/// A dropout away from the counters' origin.
inline Dropout some_dropout(float p) {
  return {.p = p,
          .key = rng_key(test_seed(), rng_site("test.dropout")),
          .first_sample = (int64_t{1} << 33) + 5,
          .first_position = 11,
          .first_head = 0};
}

/// What row-wise dropout multiplies logical element i of a (B, T, C) tensor with, by the definition
/// in core/rng.h.
inline double dropout_factor(const Dropout& dropout, const Shape& shape, int64_t i) {
  if (!dropout.active()) return 1.0;
  const int64_t c = i % shape[2];
  const int64_t t = i / shape[2] % shape[1];
  const int64_t b = i / shape[2] / shape[1];
  const auto words = philox4x32(
      dropout.key, static_cast<uint64_t>(dropout.first_sample + b),
      static_cast<uint64_t>(dropout.first_position + t) << 32 | static_cast<uint64_t>(c / 4));
  return words[static_cast<size_t>(c % 4)] >= dropout.threshold() ? dropout.scale() : 0.0;
}

inline void set_all(const Tensor& tensor, double value) {
  for (int64_t i = 0; i < tensor.numel(); ++i) set_value(tensor, i, value);
}

}  // namespace gradus::test
