#pragma once

// Gradients of queries. A block owns a tile of queries of one head and goes over the tiles of keys
// that they see, as forward does: S and dP in registers, then dQ += dS K straight from them.

#include "kernels/cuda/attention_backward.cuh"
#include "kernels/cuda/dynamic_shared.cuh"

namespace gradus::cuda {

template <int kHeadSize_, int kQueries_, int kKeys_, int kWarps_, int kBlocks_,
          bool kAligned_ = true, bool kDropout_ = false>
struct QueryShape {
  static constexpr int kHeadSize = kHeadSize_;
  static constexpr int kQueries = kQueries_;
  static constexpr int kKeys = kKeys_;
  static constexpr int kThreads = 32 * kWarps_;
  static constexpr int kBlocks = kBlocks_;
  static constexpr bool kAligned = kAligned_;
  static constexpr bool kDropout = kDropout_;
  static constexpr int kRows = kQueries / kWarps_;
  static constexpr int kM = kRows / 16;
  static constexpr int kStages = 2;
  static constexpr size_t kSharedBytes =
      size_t{2} * kHeadSize * (2 * kQueries + 2 * kStages * kKeys);
  static_assert(kRows % 16 == 0 && kKeys % 16 == 0);
};

template <typename E, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    attention_query_gradients_kernel(const BackwardArguments<E> args) {
  constexpr int kD = Shape::kHeadSize;
  constexpr int kM = Shape::kM;
  constexpr int kKeys = Shape::kKeys;
  constexpr int kQueries = Shape::kQueries;
  constexpr int kThreads = Shape::kThreads;
  constexpr int kTile = kKeys * kD;
  E* q_tile = dynamic_shared<E>();
  E* dout_tile = q_tile + kQueries * kD;
  E* k_tiles = dout_tile + kQueries * kD;
  E* v_tiles = k_tiles + Shape::kStages * kTile;

  const int first_query = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kQueries;
  const int h = static_cast<int>(blockIdx.y);
  const int b = static_cast<int>(blockIdx.z);
  const int queries = args.mask.queries;
  const int keys = args.mask.keys;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * Shape::kRows;
  const float scale_log2 = args.scale * kLog2E;
  const auto k = head_rows(args.k, b, h / args.group, args.head_size);
  const auto v = head_rows(args.v, b, h / args.group, args.head_size);
  const KeyRange tiles = tiles_of<kKeys>(tile_visibility(args.mask, b, first_query, kQueries).any);
  const TileVisibility visibility =
      tile_visibility(args.mask, b, first_query + warp_row, Shape::kRows);

  load_tile<kQueries, kD, kThreads, Shape::kAligned>(
      q_tile, head_rows(args.q, b, h, args.head_size), first_query, queries);
  load_tile<kQueries, kD, kThreads, Shape::kAligned>(
      dout_tile, head_rows(args.dout, b, h, args.head_size), first_query, queries);
  if (tiles.begin < tiles.end) {
    load_tile<kKeys, kD, kThreads, Shape::kAligned>(k_tiles, k, tiles.begin * kKeys, keys);
    load_tile<kKeys, kD, kThreads, Shape::kAligned>(v_tiles, v, tiles.begin * kKeys, keys);
  }
  cp_async_commit();

  float lse[kM][2];
  float row_sum[kM][2];
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_query + warp_row + 16 * m + 8 * half + lane / 4;
      const int64_t at = (static_cast<int64_t>(b) * args.heads + h) * queries + row;
      lse[m][half] = row < queries ? args.lse[at] * kLog2E : kInfinity;
      row_sum[m][half] = row < queries ? args.row_sum[at] : 0.0f;
    }
  }
  Sums<kM, kD / 8> dq;
  dq.clear();
  [[maybe_unused]] const HeadDropout draws(args.dropout, b, h);

  int stage = 0;
  for (int tile = tiles.begin; tile < tiles.end; ++tile) {
    cp_async_wait<0>();
    __syncthreads();  // this stage has arrived, and all are done with the other
    if (tile + 1 < tiles.end) {
      const int next = (tile + 1) * kKeys;
      load_tile<kKeys, kD, kThreads, Shape::kAligned>(k_tiles + (stage ^ 1) * kTile, k, next, keys);
      load_tile<kKeys, kD, kThreads, Shape::kAligned>(v_tiles + (stage ^ 1) * kTile, v, next, keys);
    }
    cp_async_commit();

    const int first_key = tile * kKeys;
    if (first_key < visibility.any.end && first_key + kKeys > visibility.any.begin) {
      const E* k_tile = k_tiles + stage * kTile;
      Sums<kM, kKeys / 8> weights;
      Sums<kM, kKeys / 8> dscores;
      weights.clear();
      dscores.clear();
      multiply_rows<kD, E>(weights, SquareReader<kD, Square::down, E>(q_tile, warp_row),
                           SquareReader<kD, Square::across, E>(k_tile, 0));
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            weights.v[m][n][e] = exp2_approx(fmaf(weights.v[m][n][e], scale_log2, -lse[m][e / 2]));
          }
        }
      }
      multiply_rows<kD, E>(dscores, SquareReader<kD, Square::down, E>(dout_tile, warp_row),
                           SquareReader<kD, Square::across, E>(v_tiles + stage * kTile, 0));
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
          uint32_t kept = 0xf;
          float kept_scale = 1.0f;
          if constexpr (Shape::kDropout) {
            if (args.dropout.active) {
              kept = draws.kept_by_queries(first_query + warp_row + 16 * m, first_key + 8 * n);
              kept_scale = args.dropout.scale;
            }
          }
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            float dp = dscores.v[m][n][e];
            if constexpr (Shape::kDropout) dp = (kept >> e & 1) != 0 ? dp * kept_scale : 0.0f;
            dscores.v[m][n][e] = weights.v[m][n][e] * (dp - row_sum[m][e / 2]);
          }
        }
      }
      if (first_key < visibility.all.begin || first_key + kKeys > visibility.all.end) {
        hide(dscores, 0.0f, args.mask, b, first_query + warp_row, first_key);
      }
      multiply_columns<E>(dq, dscores, SquareReader<kD, Square::down, E>(k_tile, 0));
    }
    stage ^= 1;
  }

  if (tiles.begin == tiles.end) {  // nobody has waited for the copies yet
    cp_async_wait<0>();
    __syncthreads();
  }
  dq.scale(args.scale);
  __syncwarp();  // all lanes have read Q's rows
  put_sums<kD>(q_tile, warp_row, 0, dq);
  __syncwarp();
  store_rows<Shape::kRows, kD>(q_tile, head_rows(args.dq, b, h, args.head_size), args.aligned_out,
                               warp_row, first_query + warp_row, queries);
}

}  // namespace gradus::cuda
