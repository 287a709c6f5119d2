#pragma once

// Row-wise dropout on the device: the counters and words of core/rng.h.

#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "core/rng.h"
#include "kernels/cuda/check.h"

namespace gradus::cuda {

struct PhiloxWords {
  uint32_t word[4];
};

/// philox4x32 of core/rng.h.
__device__ inline PhiloxWords philox_words(uint64_t key, uint64_t counter_hi, uint64_t counter_lo) {
  uint32_t c0 = static_cast<uint32_t>(counter_lo);
  uint32_t c1 = static_cast<uint32_t>(counter_lo >> 32);
  uint32_t c2 = static_cast<uint32_t>(counter_hi);
  uint32_t c3 = static_cast<uint32_t>(counter_hi >> 32);
  uint32_t key0 = static_cast<uint32_t>(key);
  uint32_t key1 = static_cast<uint32_t>(key >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * c0;
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(product0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

/// Dropout of rows (b, t) of a (B, T, C) tensor as a kernel takes it.
struct RowDropout {
  bool active = false;
  uint32_t threshold = 0;
  float scale = 1.0f;
  uint64_t key = 0;
  int64_t first_sample = 0;
  int64_t first_position = 0;
  uint32_t positions = 1;  ///< T

  RowDropout() = default;
  RowDropout(const Dropout& dropout, int64_t positions_of_a_sample)
      : active(dropout.active()),
        threshold(dropout.threshold()),
        scale(static_cast<float>(dropout.scale())),
        key(dropout.key),
        first_sample(dropout.first_sample),
        first_position(dropout.first_position),
        positions(static_cast<uint32_t>(positions_of_a_sample)) {
    if (positions_of_a_sample < 1 || positions_of_a_sample > INT32_MAX) {
      throw_shape_error("dropout: " + std::to_string(positions_of_a_sample) +
                        " positions a sample, expected 1 to 2147483647");
    }
  }

  /// The counters of a row: made once, used for all of its columns.
  struct Row {
    uint64_t counter_hi = 0;
    uint64_t counter_lo = 0;
  };
  __device__ Row row(int64_t index) const {
    Row counters;
    if (!active) return counters;
    const auto place = static_cast<uint32_t>(index);  // rows are fewer than 2^31
    counters.counter_hi = static_cast<uint64_t>(first_sample + place / positions);
    counters.counter_lo = static_cast<uint64_t>(first_position + place % positions) << 32;
    return counters;
  }

  /// Drops and scales kCount neighbours of a row; column and kCount are multiples of 4.
  template <int kCount>
  __device__ void apply(float (&values)[kCount], const Row& row, int64_t column) const {
    static_assert(kCount % 4 == 0);
    if (!active) return;
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const auto group = static_cast<uint64_t>(column + i) / 4;
      const PhiloxWords words = philox_words(key, row.counter_hi, row.counter_lo + group);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        values[i + j] = words.word[j] < threshold ? 0.0f : values[i + j] * scale;
      }
    }
  }

  /// As apply(), for any number of neighbours and the row's index.
  template <int kCount>
  __device__ void drop(float (&values)[kCount], int64_t index, int64_t column) const {
    if constexpr (kCount == 1) {
      values[0] = apply(values[0], row(index), column);
    } else {
      apply(values, row(index), column);
    }
  }

  /// One element.
  __device__ float apply(float value, const Row& row, int64_t column) const {
    if (!active) return value;
    const auto group = static_cast<uint64_t>(column) / 4;
    const PhiloxWords words = philox_words(key, row.counter_hi, row.counter_lo + group);
    const int64_t place = column % 4;
    const uint32_t low = place == 0 ? words.word[0] : words.word[1];
    const uint32_t high = place == 2 ? words.word[2] : words.word[3];
    return (place < 2 ? low : high) < threshold ? 0.0f : value * scale;
  }
};

}  // namespace gradus::cuda
