#pragma once

#include <cstdint>

/// The memory of one thread of flash attention, in elements of the compute type T. Every size
/// depends on the head size alone.
namespace gradus::cpu {

inline constexpr int64_t kQueryTile = 64;
inline constexpr int64_t kKeyTile = 64;
inline constexpr int64_t kMaxPanelWidth = 32;  ///< two vectors of at most 16 lanes
inline constexpr int64_t kFewestLanes = 1;
inline constexpr int64_t kMaxPanels = kQueryTile / (2 * kFewestLanes);
/// Keys whose gradients one thread accumulates in its own memory.
inline constexpr int64_t kKeyChunk = 512;
/// The same where threads share the keys of one head: small enough that there are chunks for all.
inline constexpr int64_t kSharedKeyChunk = 128;

constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

/// Hands out consecutive pieces; without memory it only counts.
template <typename T>
struct Carver {
  T* memory = nullptr;
  int64_t used = 0;

  T* take(int64_t count) {
    T* piece = memory == nullptr ? nullptr : memory + used;
    used += round_up(count, 64 / static_cast<int64_t>(sizeof(T)));
    return piece;
  }
};

/// A panel holds the transposed rows of `width` queries, (D, width), so that vectors run along
/// queries and softmax's sums and maxima need no sums across lanes.
template <typename T>
struct FlashForwardMemory {
  FlashForwardMemory(Carver<T> c, int64_t head_size)
      : q(c.take(kQueryTile * head_size)),
        out(c.take(kQueryTile * head_size)),
        k(c.take(kKeyTile * head_size)),
        v(c.take(kKeyTile * head_size)),
        scores(c.take(kKeyTile * kMaxPanelWidth)),
        factors(c.take(kKeyTile * kMaxPanelWidth)),
        max(c.take(kQueryTile)),
        sum(c.take(kQueryTile)),
        total(c.used) {}
  static int64_t size(int64_t head_size) {
    return FlashForwardMemory(Carver<T>(), head_size).total;
  }

  T* q;        ///< panels of q, times scale · log2 e
  T* out;      ///< panels of Σ exp2(score - max) v
  T* k;        ///< (kKeyTile, D)
  T* v;        ///< (kKeyTile, D)
  T* scores;   ///< (kKeyTile, width) of one panel, then its weights
  T* factors;  ///< (kKeyTile, width): 0 or 1 / (1 - p)
  T* max;      ///< (kQueryTile) running maxima of the scores
  T* sum;      ///< (kQueryTile) running Σ exp2(score - max)
  int64_t total;
};

template <typename T>
struct FlashBackwardMemory {
  FlashBackwardMemory(Carver<T> c, int64_t head_size)
      : q(c.take(kQueryTile * head_size)),
        dout(c.take(kQueryTile * head_size)),
        dq(c.take(kQueryTile * head_size)),
        q_rows(c.take(kQueryTile * round_up(head_size, kMaxPanelWidth))),
        dout_rows(c.take(kQueryTile * round_up(head_size, kMaxPanelWidth))),
        k(c.take(kKeyTile * head_size)),
        v(c.take(kKeyTile * head_size)),
        weights(c.take(kKeyTile * kQueryTile)),
        dscores(c.take(kKeyTile * kQueryTile)),
        factors(c.take(kKeyTile * kMaxPanelWidth)),
        lse(c.take(kQueryTile)),
        row_sum(c.take(kQueryTile)),
        dk(c.take(kKeyChunk * round_up(head_size, kMaxPanelWidth))),
        dv(c.take(kKeyChunk * round_up(head_size, kMaxPanelWidth))),
        total(c.used) {}
  static int64_t size(int64_t head_size) {
    return FlashBackwardMemory(Carver<T>(), head_size).total;
  }

  T* q;          ///< panels of q, times scale · log2 e
  T* dout;       ///< panels
  T* dq;         ///< panels, before the scale
  T* q_rows;     ///< (D / width, kQueryTile, width): rows of q, cut in columns
  T* dout_rows;  ///< as q_rows
  T* k;          ///< (kKeyTile, D)
  T* v;          ///< (kKeyTile, D)
  T* weights;    ///< (kKeyTile, kQueryTile): scores, then the weights that dv takes
  T* dscores;    ///< (kKeyTile, kQueryTile): dP, then dS
  T* factors;    ///< (kKeyTile, width): 0 or 1 / (1 - p)
  T* lse;        ///< (kQueryTile), in units of log2
  T* row_sum;    ///< (kQueryTile)
  T* dk;         ///< (kKeyChunk, D rounded up to width), before the scale
  T* dv;         ///< as dk
  int64_t total;
};

}  // namespace gradus::cpu
