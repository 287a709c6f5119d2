#pragma once

// Dropout of attention weights: the counters of core/rng.h. One block of Philox serves one query
// and four keys of neighbouring absolute positions, so lanes of a fragment draw for each other.

#include <cuda_runtime.h>

#include <cstdint>

#include "core/rng.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/philox.cuh"

namespace gradus::cuda {

struct AttentionDropout {
  explicit AttentionDropout(const AttentionProblem& p)
      : key(p.dropout.key),
        first_sample(static_cast<uint64_t>(p.dropout.first_sample)),
        first_head(static_cast<uint64_t>(p.dropout.first_head)),
        first_query(static_cast<uint64_t>(p.query_position)),
        first_key(static_cast<uint64_t>(p.key_position)),
        threshold(p.dropout.threshold()),
        scale(static_cast<float>(p.dropout.scale())),
        active(p.dropout.active()) {}

  uint64_t key, first_sample, first_head, first_query, first_key;
  uint32_t threshold;
  float scale;
  bool active;
};

/// The draws of one sample and head.
class HeadDropout {
 public:
  __device__ HeadDropout(const AttentionDropout& dropout, int b, int h)
      : key_(dropout.key),
        counter_hi_(dropout.first_sample + static_cast<uint64_t>(b)),
        counter_lo_((dropout.first_head + static_cast<uint64_t>(h)) << 48 | dropout.first_query
                                                                                << 24),
        first_key_(dropout.first_key),
        threshold_(dropout.threshold) {}

  /// The four entries of one mma tile: rows first_row + lane/4 (+ 8), columns first_column +
  /// 2 (lane % 4) (+ 1). Bit e: entry e is kept. Rows are queries and columns keys.
  __device__ uint32_t kept_by_queries(int first_row, int first_column) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int query = first_row + lane / 4;
    const int key = first_column + lane % 4 * 2;
    if ((first_key_ + static_cast<uint64_t>(first_column)) % 4 != 0) {
      return kept_one_by_one(query, query + 8, key, key + 1, false);
    }
    // Lanes 2i and 2i + 1 share the blocks of both rows: each draws one, and gives half of it away.
    const bool odd = lane % 2 != 0;
    const PhiloxWords own = draw(odd ? query + 8 : query, key);
    const uint32_t give0 = odd ? own.word[0] : own.word[2];
    const uint32_t give1 = odd ? own.word[1] : own.word[3];
    const uint32_t got0 = __shfl_xor_sync(0xffffffffu, give0, 1);
    const uint32_t got1 = __shfl_xor_sync(0xffffffffu, give1, 1);
    return bit(odd ? got0 : own.word[0], 0) | bit(odd ? got1 : own.word[1], 1) |
           bit(odd ? own.word[2] : got0, 2) | bit(odd ? own.word[3] : got1, 3);
  }

  /// The same with keys as rows and queries as columns.
  __device__ uint32_t kept_by_keys(int first_row, int first_column) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int key = first_row + lane / 4;
    const int query = first_column + lane % 4 * 2;
    if ((first_key_ + static_cast<uint64_t>(first_row)) % 4 != 0) {
      return kept_one_by_one(query, query + 1, key, key + 8, true);
    }
    // Four lanes, 4 apart, are the four keys of a block. There are four blocks to draw for them,
    // of entries 0 to 3: lane i of the four draws block i, then gives word j of it to lane j.
    const int i = lane / 4 % 4;
    const PhiloxWords own = draw(query + i % 2, first_row + lane / 16 * 4 + i / 2 * 8);
    uint32_t bits = 0;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const int other = i ^ step;
      const uint32_t give = other < 2 ? (other == 0 ? own.word[0] : own.word[1])
                                      : (other == 2 ? own.word[2] : own.word[3]);
      const uint32_t got = __shfl_xor_sync(0xffffffffu, give, 4 * step);
      bits |= got >= threshold_ ? 1u << other : 0u;
    }
    return bits;
  }

 private:
  __device__ PhiloxWords draw(int query, int key) const {
    return philox_words(key_, counter_hi_,
                        counter_lo_ + (static_cast<uint64_t>(query) << 24) +
                            (first_key_ + static_cast<uint64_t>(key)) / 4);
  }
  __device__ uint32_t bit(uint32_t word, int entry) const {
    return word >= threshold_ ? 1u << entry : 0u;
  }
  /// Where tiles do not begin at a block. Entry e is of query e / 2 and key e % 2, or the other
  /// way.
  __device__ uint32_t kept_one_by_one(int query0, int query1, int key0, int key1,
                                      bool keys_down) const {
    uint32_t bits = 0;
#pragma unroll 1
    for (int e = 0; e < 4; ++e) {
      const int down = e / 2;
      const int across = e % 2;
      const int query = (keys_down ? across : down) == 0 ? query0 : query1;
      const int key = (keys_down ? down : across) == 0 ? key0 : key1;
      const PhiloxWords words = draw(query, key);
      const int place = static_cast<int>((first_key_ + static_cast<uint64_t>(key)) % 4);
      const uint32_t word = place < 2 ? (place == 0 ? words.word[0] : words.word[1])
                                      : (place == 2 ? words.word[2] : words.word[3]);
      bits |= bit(word, e);
    }
    return bits;
  }

  uint64_t key_, counter_hi_, counter_lo_, first_key_;
  uint32_t threshold_;
};

}  // namespace gradus::cuda
