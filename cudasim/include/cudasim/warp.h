#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "block.h"
#include "site.h"

// Operations of a warp. The last lane of the mask to arrive does the work for all of them.

namespace cudasim {

enum class WarpOperation : uint8_t {
  sync,
  shuffle,
  all,
  any,
  ballot,
  reduce_add,
  reduce_min,
  reduce_max,
  reduce_and,
  reduce_or,
  reduce_xor,
  ldmatrix,
  mma,
};

/// What one lane brings to an operation, and takes from it.
struct LaneSlot {
  alignas(16) unsigned char in[64];
  alignas(16) unsigned char out[64];
};

/// Fills `out` of every lane of the mask from `in` of all of them.
using WarpWork = void (*)(uint32_t mask, LaneSlot* lanes);

/// Meets the other lanes of `mask` in `operation`; the bytes of `in` and `out` are the caller's.
void warp_collective(WarpOperation operation, uint32_t mask, WarpWork work, const void* in,
                     size_t in_bytes, void* out, size_t out_bytes, Site site);

/// The caller's lane.
int lane();

/// Types that a shuffle takes; cuda_bf16.h and cuda_fp16.h add theirs.
template <typename T>
inline constexpr bool kShuffles = std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8);

struct Shuffle {
  uint64_t value;
  int32_t source;
  int32_t bytes;
};
void shuffle_work(uint32_t mask, LaneSlot* lanes);

template <typename T>
T shuffle(uint32_t mask, T value, int source, Site site) {
  static_assert(kShuffles<T>, "no shuffle of this type");
  Shuffle in{0, source, sizeof(T)};
  std::memcpy(&in.value, &value, sizeof(T));
  T out;
  warp_collective(WarpOperation::shuffle, mask, shuffle_work, &in, sizeof(in), &out, sizeof(out),
                  site);
  return out;
}

void vote_work(uint32_t mask, LaneSlot* lanes);
inline uint32_t vote(WarpOperation operation, uint32_t mask, int predicate, Site site) {
  const int in = predicate != 0;
  uint32_t out = 0;
  warp_collective(operation, mask, vote_work, &in, sizeof(in), &out, sizeof(out), site);
  return out;
}

template <typename T, typename Combine>
__attribute__((no_sanitize("thread"))) void reduce_work(uint32_t mask, LaneSlot* lanes) {
  T total{};
  bool first = true;
  for (int i = 0; i < warpSize; ++i) {
    if (mask >> i & 1) {
      T value;
      std::memcpy(&value, lanes[i].in, sizeof(T));
      total = first ? value : Combine{}(total, value);
      first = false;
    }
  }
  for (int i = 0; i < warpSize; ++i) {
    if (mask >> i & 1) {
      std::memcpy(lanes[i].out, &total, sizeof(T));
    }
  }
}

template <typename T, typename Combine>
T reduce(WarpOperation operation, uint32_t mask, T value, Site site) {
  T out;
  warp_collective(operation, mask, reduce_work<T, Combine>, &value, sizeof(T), &out, sizeof(T),
                  site);
  return out;
}

// Sums wrap, as the device's do.
struct Add {
  template <typename T>
  T operator()(T a, T b) const {
    return static_cast<T>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
  }
};
struct Min {
  template <typename T>
  T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};
struct Max {
  template <typename T>
  T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};
struct And {
  uint32_t operator()(uint32_t a, uint32_t b) const { return a & b; }
};
struct Or {
  uint32_t operator()(uint32_t a, uint32_t b) const { return a | b; }
};
struct Xor {
  uint32_t operator()(uint32_t a, uint32_t b) const { return a ^ b; }
};

}  // namespace cudasim

inline void __syncwarp(unsigned mask = 0xffffffffu, cudasim::Site site = cudasim::Site::here()) {
  cudasim::warp_collective(cudasim::WarpOperation::sync, mask, nullptr, nullptr, 0, nullptr, 0,
                           site);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize,
              cudasim::Site site = cudasim::Site::here()) {
  const int base = cudasim::lane() & ~(width - 1);
  return cudasim::shuffle(mask, value, base + (source & (width - 1)), site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                 cudasim::Site site = cudasim::Site::here()) {
  const int lane = cudasim::lane();
  const int source = lane - static_cast<int>(delta);
  return cudasim::shuffle(mask, value, source < (lane & ~(width - 1)) ? lane : source, site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                   cudasim::Site site = cudasim::Site::here()) {
  const int lane = cudasim::lane();
  const int source = lane + static_cast<int>(delta);
  return cudasim::shuffle(mask, value, source > (lane | (width - 1)) ? lane : source, site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize,
                  cudasim::Site site = cudasim::Site::here()) {
  const int lane = cudasim::lane();
  const int source = lane ^ lane_mask;
  return cudasim::shuffle(mask, value, source > (lane | (width - 1)) ? lane : source, site);
}

inline int __all_sync(unsigned mask, int predicate, cudasim::Site site = cudasim::Site::here()) {
  return cudasim::vote(cudasim::WarpOperation::all, mask, predicate, site) == mask;
}
inline int __any_sync(unsigned mask, int predicate, cudasim::Site site = cudasim::Site::here()) {
  return cudasim::vote(cudasim::WarpOperation::any, mask, predicate, site) != 0;
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              cudasim::Site site = cudasim::Site::here()) {
  return cudasim::vote(cudasim::WarpOperation::ballot, mask, predicate, site);
}

#define CUDASIM_REDUCE(name, operation, type, combine)                                             \
  inline type name(unsigned mask, type value, cudasim::Site site = cudasim::Site::here()) {        \
    return cudasim::reduce<type, cudasim::combine>(cudasim::WarpOperation::operation, mask, value, \
                                                   site);                                          \
  }
CUDASIM_REDUCE(__reduce_add_sync, reduce_add, unsigned, Add)
CUDASIM_REDUCE(__reduce_add_sync, reduce_add, int, Add)
CUDASIM_REDUCE(__reduce_min_sync, reduce_min, unsigned, Min)
CUDASIM_REDUCE(__reduce_min_sync, reduce_min, int, Min)
CUDASIM_REDUCE(__reduce_max_sync, reduce_max, unsigned, Max)
CUDASIM_REDUCE(__reduce_max_sync, reduce_max, int, Max)
CUDASIM_REDUCE(__reduce_and_sync, reduce_and, unsigned, And)
CUDASIM_REDUCE(__reduce_or_sync, reduce_or, unsigned, Or)
CUDASIM_REDUCE(__reduce_xor_sync, reduce_xor, unsigned, Xor)
#undef CUDASIM_REDUCE
