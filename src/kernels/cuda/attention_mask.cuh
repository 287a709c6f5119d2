#pragma once

// Who sees whom: the geometry of kernels/cpu/attention_geometry.h on the device.

#include <cuda_runtime.h>

#include <climits>
#include <cstdint>

#include "kernels/cuda/attention.h"

namespace gradus::cuda {

/// Indices [begin, end) of keys; begin >= end: none.
struct KeyRange {
  int begin = 0;
  int end = 0;
};

__device__ inline int clamp_to(int value, int low, int high) {
  return value < low ? low : (value > high ? high : value);
}

struct AttentionMask {
  explicit AttentionMask(const AttentionProblem& p)
      : queries(p.queries),
        keys(p.keys),
        query_position(p.query_position),
        key_position(p.key_position),
        window(p.causal ? p.window : 0),
        causal(p.causal),
        document_start(p.document_start),
        document_batch_stride(p.document_batch_stride),
        document_row_stride(p.document_row_stride) {}

  int queries, keys, query_position, key_position, window;
  bool causal;
  const int32_t* document_start;
  int64_t document_batch_stride, document_row_stride;

  /// The keys that query i of sample b sees: always consecutive ones.
  __device__ KeyRange visible(int b, int i) const {
    int first = 0;  // absolute positions [first, last)
    int last = INT_MAX;
    if (causal) {
      last = query_position + i + 1;
      if (window > 0) first = last > window ? last - window : 0;
    }
    if (document_start != nullptr) {
      const int start = document_start[b * document_batch_stride + i * document_row_stride];
      first = first > start ? first : start;
    }
    return {clamp_to(first - key_position, 0, keys), clamp_to(last - key_position, 0, keys)};
  }
};

/// What the queries of a tile see: `any` spans all that some query sees, `all` is what every one of
/// them does.
struct TileVisibility {
  KeyRange any;
  KeyRange all;
};

/// Of the queries [first, first + size) as far as there are any; asked by whole warps.
__device__ inline TileVisibility tile_visibility(const AttentionMask& mask, int b, int first,
                                                 int size) {
  const int count = mask.queries - first < size ? mask.queries - first : size;
  if (count <= 0) return {};
  const KeyRange low = mask.visible(b, first);
  const KeyRange high = mask.visible(b, first + count - 1);
  if (mask.document_start == nullptr) {  // both ends of the range grow with the query
    return {{low.begin, high.end}, {high.begin, low.end}};
  }
  int least = INT_MAX;
  int most = 0;
  for (int i = first + static_cast<int>(threadIdx.x) % 32; i < first + count; i += 32) {
    const int begin = mask.visible(b, i).begin;
    least = begin < least ? begin : least;
    most = begin > most ? begin : most;
  }
  for (int step = 16; step > 0; step /= 2) {
    const int other_least = __shfl_xor_sync(0xffffffffu, least, step);
    const int other_most = __shfl_xor_sync(0xffffffffu, most, step);
    least = other_least < least ? other_least : least;
    most = other_most > most ? other_most : most;
  }
  return {{least, high.end}, {most, low.end}};
}

/// Numbers [begin, end) of tiles of kTile keys that a range touches; none: begin == end.
template <int kTile>
__device__ inline KeyRange tiles_of(const KeyRange& keys) {
  if (keys.begin >= keys.end) return {0, 0};
  return {keys.begin / kTile, (keys.end + kTile - 1) / kTile};
}

/// The queries [begin, end) that may see one of the keys [keys.begin, keys.end), documents aside.
__device__ inline KeyRange queries_that_may_see(const AttentionMask& mask, const KeyRange& keys) {
  if (!mask.causal) return {0, mask.queries};
  const int shift = mask.key_position - mask.query_position;
  KeyRange range{clamp_to(keys.begin + shift, 0, mask.queries), mask.queries};
  if (mask.window > 0) {
    // Key j is seen from its own position on, `window` queries long.
    range.end = clamp_to(keys.end - 1 + shift + mask.window, 0, mask.queries);
  }
  return range;
}

}  // namespace gradus::cuda
