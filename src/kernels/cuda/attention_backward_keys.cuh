#pragma once

// Gradients of keys and values. A block owns a tile of keys of one head and goes over the tiles of
// queries that may see it, which arrive by cp.async: Sᵀ = K Qᵀ and dPᵀ = V dOᵀ in registers, then
// dV += Pᵀ dO and dK += dSᵀ Q.

#include "kernels/cuda/attention_backward.cuh"
#include "kernels/cuda/dynamic_shared.cuh"

namespace gradus::cuda {

template <int kHeadSize_, int kKeys_, int kQueries_, int kWarps_, int kBlocks_,
          int kColumnWarps_ = (kHeadSize_ > 128 ? 4 : 1), bool kAligned_ = true,
          bool kDropout_ = false>
struct KeyShape {
  static constexpr int kHeadSize = kHeadSize_;
  static constexpr int kKeys = kKeys_;        ///< that a block owns at a time
  static constexpr int kQueries = kQueries_;  ///< of a tile
  static constexpr int kWarps = kWarps_;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kBlocks = kBlocks_;
  static constexpr bool kAligned = kAligned_;
  static constexpr bool kDropout = kDropout_;
  /// Warps that share 16 kM keys: each makes its part of the queries of Sᵀ and dPᵀ and of the
  /// columns of dK and dV. Of one, P and dS go from its registers into dV and dK; of several,
  /// through shared memory, for the larger squares that a warp then makes of what it reads.
  static constexpr int kColumnWarps = kColumnWarps_;
  static constexpr bool kShareWeights = kColumnWarps > 1;
  static constexpr int kN = kHeadSize / 8 / kColumnWarps;      ///< of dK and dV
  static constexpr int kScoreN = kQueries / 8 / kColumnWarps;  ///< of Sᵀ and dPᵀ
  static constexpr int kRows = kKeys / kWarps * kColumnWarps;  ///< keys of a warp
  static constexpr int kM = kRows / 16;
  static constexpr int kStages = 2;
  static constexpr size_t kElements = size_t{2} * kHeadSize * kKeys +
                                      size_t{2} * kStages * kHeadSize * kQueries +
                                      (kShareWeights ? size_t{2} * kKeys * kQueries : 0);
  static constexpr size_t kSharedBytes = 2 * kElements + sizeof(float) * 2 * kStages * kQueries;
  static_assert(kRows % 16 == 0 && kQueries % 32 == 0 && kN % 2 == 0 && kScoreN % 2 == 0);
};

/// Pᵀ from scores Sᵀ, rows keys, columns queries.
template <int kM, int kN>
__device__ inline void exponentials(Sums<kM, kN>& weights, const float* lse, float scale_log2) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int n = 0; n < kN; ++n) {
    const float2 lses = *reinterpret_cast<const float2*>(lse + 8 * n + lane % 4 * 2);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        weights.v[m][n][e] =
            exp2_approx(fmaf(weights.v[m][n][e], scale_log2, e % 2 == 0 ? -lses.x : -lses.y));
      }
    }
  }
}

/// dSᵀ from dPᵀ and Pᵀ, rows keys, columns queries.
template <int kM, int kN>
__device__ inline void differentiate(Sums<kM, kN>& dscores, const Sums<kM, kN>& weights,
                                     const float* row_sum) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int n = 0; n < kN; ++n) {
    const float2 sums = *reinterpret_cast<const float2*>(row_sum + 8 * n + lane % 4 * 2);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        dscores.v[m][n][e] =
            weights.v[m][n][e] * (dscores.v[m][n][e] - (e % 2 == 0 ? sums.x : sums.y));
      }
    }
  }
}

/// The same where weights are dropped: dP is of the kept ones, and so are the weights that dV
/// takes, whose scale follows in the end.
template <int kM, int kN>
__device__ inline void differentiate_dropped(Sums<kM, kN>& dscores, Sums<kM, kN>& weights,
                                             const float* row_sum, const HeadDropout& dropout,
                                             float kept_scale, int first_key, int first_query) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int n = 0; n < kN; ++n) {
    const float2 sums = *reinterpret_cast<const float2*>(row_sum + 8 * n + lane % 4 * 2);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const uint32_t kept = dropout.kept_by_keys(first_key + 16 * m, first_query + 8 * n);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const bool keep = (kept >> e & 1) != 0;
        const float dp = keep ? dscores.v[m][n][e] * kept_scale : 0.0f;
        dscores.v[m][n][e] = weights.v[m][n][e] * (dp - (e % 2 == 0 ? sums.x : sums.y));
        weights.v[m][n][e] = keep ? weights.v[m][n][e] : 0.0f;
      }
    }
  }
}

/// Zeros where a query does not see a key; rows keys, columns queries. Of a query that is not
/// finite, a key that it does not see learns nothing: 0 · NaN is NaN.
template <int kM, int kN>
__device__ inline void hide_unseen(Sums<kM, kN>& weights, Sums<kM, kN>& dscores,
                                   const AttentionMask& mask, int b, int first_key,
                                   int first_query) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int across = 0; across < 2; ++across) {
      const int query = first_query + 8 * n + lane % 4 * 2 + across;
      const KeyRange seen = query < mask.queries ? mask.visible(b, query) : KeyRange{};
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int down = 0; down < 2; ++down) {
          const int key = first_key + 16 * m + 8 * down + lane / 4;
          if (key < seen.begin || key >= seen.end) {
            weights.v[m][n][2 * down + across] = 0.0f;
            dscores.v[m][n][2 * down + across] = 0.0f;
          }
        }
      }
    }
  }
}

/// The tiles of queries that a block meets: those of the heads of its group, one after the other.
struct QueryTiles {
  int begin = 0;  ///< tiles [begin, end) of each head
  int end = 0;
  int h = 0;  ///< head of the group
  int tile = 0;

  __device__ void next() {
    if (++tile == end) {
      tile = begin;
      ++h;
    }
  }
};

template <typename E, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    attention_key_gradients_kernel(const BackwardArguments<E> args) {
  constexpr int kD = Shape::kHeadSize;
  constexpr int kM = Shape::kM;
  constexpr int kKeys = Shape::kKeys;
  constexpr int kQueries = Shape::kQueries;
  constexpr int kThreads = Shape::kThreads;
  constexpr int kTile = kQueries * kD;
  E* k_tile = dynamic_shared<E>();
  E* v_tile = k_tile + kKeys * kD;
  E* q_tiles = v_tile + kKeys * kD;
  E* dout_tiles = q_tiles + Shape::kStages * kTile;
  [[maybe_unused]] E* dscore_tile = dout_tiles + Shape::kStages * kTile;  // (keys, queries)
  [[maybe_unused]] E* weight_tile = dscore_tile + kKeys * kQueries;
  float* lse_tiles = reinterpret_cast<float*>(dynamic_shared<E>() + Shape::kElements);
  float* row_sum_tiles = lse_tiles + Shape::kStages * kQueries;

  const int kv_head = static_cast<int>(blockIdx.y);
  const int b = static_cast<int>(blockIdx.z);
  const int queries = args.mask.queries;
  const int keys = args.mask.keys;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  const int warp_row = warp / Shape::kColumnWarps * Shape::kRows;
  const int warp_chunk = warp % Shape::kColumnWarps * Shape::kN;
  const int warp_query = warp % Shape::kColumnWarps * Shape::kScoreN * 8;
  const float scale_log2 = args.scale * kLog2E;
  const auto k = head_rows(args.k, b, kv_head, args.head_size);
  const auto v = head_rows(args.v, b, kv_head, args.head_size);
  const int first_key = static_cast<int>(blockIdx.x) * kKeys;
  const KeyRange owned{first_key, first_key + kKeys < keys ? first_key + kKeys : keys};
  const KeyRange range = queries_that_may_see(args.mask, owned);
  QueryTiles at;
  const KeyRange tiles = tiles_of<kQueries>(range);
  at.begin = at.tile = tiles.begin;
  at.end = tiles.end;
  const int count = (tiles.end - tiles.begin) * args.group;

  Sums<kM, Shape::kN> dk;
  Sums<kM, Shape::kN> dv;
  dk.clear();
  dv.clear();

  load_tile<kKeys, kD, kThreads, Shape::kAligned>(k_tile, k, first_key, keys);
  load_tile<kKeys, kD, kThreads, Shape::kAligned>(v_tile, v, first_key, keys);

  // Queries past the last have no weight: exp2(0 - inf).
  float next_lse = kInfinity;
  float next_row_sum = 0.0f;
  QueryTiles ahead = at;
  int stage = 0;
  for (int turn = -1; turn < count; ++turn) {
    if (turn >= 0) {
      if (thread < kQueries) {
        lse_tiles[stage * kQueries + thread] = next_lse * kLog2E;
        row_sum_tiles[stage * kQueries + thread] = next_row_sum;
      }
      cp_async_wait<0>();
      __syncthreads();  // this stage has arrived, and all are done with the other
    }
    if (turn + 1 < count) {
      const int h = kv_head * args.group + ahead.h;
      const int first = ahead.tile * kQueries;
      const int to = turn < 0 ? 0 : stage ^ 1;
      load_tile<kQueries, kD, kThreads, Shape::kAligned>(
          q_tiles + to * kTile, head_rows(args.q, b, h, args.head_size), first, queries);
      load_tile<kQueries, kD, kThreads, Shape::kAligned>(
          dout_tiles + to * kTile, head_rows(args.dout, b, h, args.head_size), first, queries);
      next_lse = kInfinity;
      next_row_sum = 0.0f;
      if (thread < kQueries && first + thread < queries) {
        const int64_t row = (static_cast<int64_t>(b) * args.heads + h) * queries + first + thread;
        next_lse = args.lse[row];
        next_row_sum = args.row_sum[row];
      }
      ahead.next();
    }
    cp_async_commit();
    if (turn < 0) continue;

    const int first_query = at.tile * kQueries;
    const TileVisibility visibility = tile_visibility(args.mask, b, first_query, kQueries);
    const E* q_tile = q_tiles + stage * kTile;
    const E* dout_tile = dout_tiles + stage * kTile;
    // The same for all, as is whether they meet below.
    if (first_key < visibility.any.end && owned.end > visibility.any.begin) {
      // The warp's own keys may be out of sight all the same.
      const int warp_key = first_key + warp_row;
      const bool seen =
          warp_key < visibility.any.end && warp_key + Shape::kRows > visibility.any.begin;
      Sums<kM, Shape::kScoreN> weights;
      Sums<kM, Shape::kScoreN> dscores;
      weights.clear();
      dscores.clear();
      if (seen) {
        const int at_query = stage * kQueries + warp_query;
        multiply_rows<kD, E>(weights, SquareReader<kD, Square::down, E>(k_tile, warp_row),
                             SquareReader<kD, Square::across, E>(q_tile, warp_query));
        exponentials(weights, lse_tiles + at_query, scale_log2);
        multiply_rows<kD, E>(dscores, SquareReader<kD, Square::down, E>(v_tile, warp_row),
                             SquareReader<kD, Square::across, E>(dout_tile, warp_query));
        if (Shape::kDropout && args.dropout.active) {
          differentiate_dropped(dscores, weights, row_sum_tiles + at_query,
                                HeadDropout(args.dropout, b, kv_head * args.group + at.h),
                                args.dropout.scale, warp_key, first_query + warp_query);
        } else {
          differentiate(dscores, weights, row_sum_tiles + at_query);
        }
        if (warp_key < visibility.all.begin || warp_key + Shape::kRows > visibility.all.end) {
          hide_unseen(weights, dscores, args.mask, b, warp_key, first_query + warp_query);
        }
      }
      if constexpr (Shape::kShareWeights) {
        put_sums<kQueries>(weight_tile, warp_row, warp_query / 8, weights);
        put_sums<kQueries>(dscore_tile, warp_row, warp_query / 8, dscores);
        __syncthreads();  // dscore_tile and weight_tile are whole
      }
      const SquareReader<kD, Square::down, E> dout_squares(dout_tile, 0);
      const SquareReader<kD, Square::down, E> q_squares(q_tile, 0);
      if (seen) {
        if constexpr (Shape::kShareWeights) {
          multiply_columns<kQueries, E>(
              dv, SquareReader<kQueries, Square::down, E>(weight_tile, warp_row), dout_squares,
              warp_chunk);
          multiply_columns<kQueries, E>(
              dk, SquareReader<kQueries, Square::down, E>(dscore_tile, warp_row), q_squares,
              warp_chunk);
        } else {
          multiply_columns<E>(dv, weights, dout_squares);
          multiply_columns<E>(dk, dscores, q_squares);
        }
      }
    }
    at.next();
    stage ^= 1;
  }

  cp_async_wait<0>();
  __syncthreads();  // of K and V nothing is read any more
  dk.scale(args.scale);
  if constexpr (Shape::kDropout) dv.scale(args.dropout.scale);
  put_sums<kD>(k_tile, warp_row, warp_chunk, dk);
  put_sums<kD>(v_tile, warp_row, warp_chunk, dv);
  __syncthreads();
  constexpr int kStoredRows = kKeys / Shape::kWarps;
  const int row = warp * kStoredRows;
  store_rows<kStoredRows, kD>(k_tile, head_rows(args.dk, b, kv_head, args.head_size),
                              args.aligned_out, row, first_key + row, keys);
  store_rows<kStoredRows, kD>(v_tile, head_rows(args.dv, b, kv_head, args.head_size),
                              args.aligned_out, row, first_key + row, keys);
}

}  // namespace gradus::cuda
