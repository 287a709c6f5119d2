#pragma once

#include <algorithm>
#include <cstdint>

/// The memory of one thread of flash attention, in elements of the compute type T. Every size
/// depends on the head size alone.
namespace gradus::cpu {

inline constexpr int64_t kKeyTile = 64;
/// Queries of a tile. Forward's is larger: each of its tiles packs all keys and values it sees.
/// What causal masks leave out is decided by panels, so a larger tile computes nothing more.
inline constexpr int64_t kForwardQueries = 128;
inline constexpr int64_t kBackwardQueries = 64;
inline constexpr int64_t kMaxPanelWidth = 32;               ///< two vectors of at most 16 lanes
inline constexpr int64_t kMaxPanels = kForwardQueries / 2;  ///< two vectors of one lane

/// Bytes in which one thread sums dk and dv.
inline constexpr int64_t kKeyGradientBytes = int64_t{1} << 20;

constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

/// Keys whose dk and dv one thread sums in its own memory: whole tiles, at least one.
template <typename T>
constexpr int64_t key_chunk(int64_t head_size) {
  const int64_t row_bytes =
      2 * round_up(head_size, kMaxPanelWidth) * static_cast<int64_t>(sizeof(T));
  return std::max(kKeyTile, kKeyGradientBytes / row_bytes / kKeyTile * kKeyTile);
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
      : q(c.take(kForwardQueries * head_size)),
        out(c.take(kForwardQueries * head_size)),
        k(c.take(kKeyTile * head_size)),
        v(c.take(kKeyTile * head_size)),
        scores(c.take(kKeyTile * kMaxPanelWidth)),
        factors(c.take(kKeyTile * kMaxPanelWidth)),
        max(c.take(kForwardQueries)),
        sum(c.take(kForwardQueries)),
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
  T* max;      ///< (kForwardQueries) running maxima of the scores
  T* sum;      ///< (kForwardQueries) running Σ exp2(score - max)
  int64_t total;
};

template <typename T>
struct FlashBackwardMemory {
  FlashBackwardMemory(Carver<T> c, int64_t head_size)
      : q(c.take(kBackwardQueries * head_size)),
        dout(c.take(kBackwardQueries * head_size)),
        dq(c.take(kBackwardQueries * head_size)),
        q_rows(c.take(kBackwardQueries * round_up(head_size, kMaxPanelWidth))),
        dout_rows(c.take(kBackwardQueries * round_up(head_size, kMaxPanelWidth))),
        k(c.take(kKeyTile * head_size)),
        v(c.take(kKeyTile * head_size)),
        weights(c.take(kKeyTile * kBackwardQueries)),
        dscores(c.take(kKeyTile * kBackwardQueries)),
        factors(c.take(kKeyTile * kMaxPanelWidth)),
        lse(c.take(kBackwardQueries)),
        row_sum(c.take(kBackwardQueries)),
        dk(c.take(key_chunk<T>(head_size) * round_up(head_size, kMaxPanelWidth))),
        dv(c.take(key_chunk<T>(head_size) * round_up(head_size, kMaxPanelWidth))),
        total(c.used) {}
  static int64_t size(int64_t head_size) {
    return FlashBackwardMemory(Carver<T>(), head_size).total;
  }

  T* q;          ///< panels of q, times scale · log2 e
  T* dout;       ///< panels
  T* dq;         ///< panels, before the scale
  T* q_rows;     ///< (D / width, kBackwardQueries, width): rows of q, cut in columns
  T* dout_rows;  ///< as q_rows
  T* k;          ///< (kKeyTile, D)
  T* v;          ///< (kKeyTile, D)
  T* weights;    ///< (kKeyTile, kBackwardQueries): scores, then the weights that dv takes
  T* dscores;    ///< (kKeyTile, kBackwardQueries): dP, then dS
  T* factors;    ///< (kKeyTile, width): 0 or 1 / (1 - p)
  T* lse;        ///< (kBackwardQueries), in units of log2
  T* row_sum;    ///< (kBackwardQueries)
  T* dk;         ///< (key_chunk, D rounded up to width), before the scale
  T* dv;         ///< as dk
  int64_t total;
};

}  // namespace gradus::cpu
