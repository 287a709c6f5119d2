// Forward pass of flash attention (arXiv:2307.08691, algorithm 1). A block owns a tile of queries
// of one head and goes over the tiles of keys that some of them see: S = Q Kᵀ in registers, the
// online softmax on it, O += P V with P straight from those registers. K and V of the next tile
// arrive by cp.async meanwhile. Read once from memory: Q; K and V once a tile of queries, mostly
// from the L2 cache, since the tiles of a head run together. Written once: O and lse. Scores never
// leave the registers.

#include <array>

#include "kernels/cuda/attention_dropout.cuh"
#include "kernels/cuda/attention_mask.cuh"
#include "kernels/cuda/attention_problem.h"
#include "kernels/cuda/attention_products.cuh"
#include "kernels/cuda/dynamic_shared.cuh"
#include "kernels/cuda/launch.h"

namespace gradus::cuda {
namespace {

template <int kHeadSize_, int kQueries_, int kKeys_, int kWarps_, int kBlocks_, bool kHoldQ_,
          bool kAligned_ = true, bool kDropout_ = false>
struct ForwardShape {
  static constexpr int kHeadSize = kHeadSize_;
  static constexpr int kQueries = kQueries_;  ///< of a block
  static constexpr int kKeys = kKeys_;        ///< of a tile
  static constexpr int kThreads = 32 * kWarps_;
  static constexpr int kBlocks = kBlocks_;     ///< on one multiprocessor
  static constexpr bool kHoldQ = kHoldQ_;      ///< Q stays in registers
  static constexpr bool kAligned = kAligned_;  ///< takes only rows that are
  static constexpr bool kDropout = kDropout_;  ///< can drop weights
  static constexpr int kRows = kQueries / kWarps_;
  static constexpr int kM = kRows / 16;
  static constexpr int kStages = 2;
  static constexpr size_t kSharedBytes = size_t{2} * kHeadSize * (kQueries + 2 * kStages * kKeys);
  static_assert(kRows % 16 == 0 && kKeys % 16 == 0);
};

template <typename E>
struct ForwardArguments {
  AttentionMask mask;
  AttentionDropout dropout;
  HeadTensor<E> out;
  float* lse;
  HeadTensor<const E> q, k, v;
  int heads, group, head_size;
  float scale;
  bool aligned_out;
};

/// Maximum and sum of a warp's rows: of row 16 m + 8 half + lane/4, the same in all four lanes
/// that share it (the sums are not: each has its own columns' until finish).
template <int kM>
struct OnlineSoftmax {
  float max[kM][2];
  float sum[kM][2];

  __device__ void clear() {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      max[m][0] = max[m][1] = -kInfinity;
      sum[m][0] = sum[m][1] = 0.0f;
    }
  }

  /// scores = exp2(scale · (scores - maximum)), with what came before brought to the new maximum.
  template <int kN, int kOut>
  __device__ void take(Sums<kM, kN>& scores, Sums<kM, kOut>& out, float scale_log2) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float top = max[m][half];
#pragma unroll
        for (int n = 0; n < kN; ++n) {
          top = fmaxf(top, fmaxf(scores.v[m][n][2 * half], scores.v[m][n][2 * half + 1]));
        }
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        // Of -inf, 0 makes every exponential 0.
        const float subtract = top == -kInfinity ? 0.0f : top * scale_log2;
        // Skipped by whole warps where no maximum rose, this took 3% longer on an H100.
        const float rescale = exp2_approx(fmaf(max[m][half], scale_log2, -subtract));
        max[m][half] = top;
        float total = sum[m][half] * rescale;
#pragma unroll
        for (int n = 0; n < kOut; ++n) {
          out.v[m][n][2 * half] *= rescale;
          out.v[m][n][2 * half + 1] *= rescale;
        }
#pragma unroll
        for (int n = 0; n < kN; ++n) {
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; ++e) {
            scores.v[m][n][e] = exp2_approx(fmaf(scores.v[m][n][e], scale_log2, -subtract));
            total += scores.v[m][n][e];
          }
        }
        sum[m][half] = total;
      }
    }
  }
};

/// Zeroes the weights that are dropped.
template <int kM, int kN>
__device__ inline void drop(Sums<kM, kN>& weights, const HeadDropout& dropout, int first_query,
                            int first_key) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      const uint32_t kept = dropout.kept_by_queries(first_query + 16 * m, first_key + 8 * n);
#pragma unroll
      for (int e = 0; e < 4; ++e)
        weights.v[m][n][e] = (kept >> e & 1) != 0 ? weights.v[m][n][e] : 0.0f;
    }
  }
}

template <typename E, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    attention_forward_kernel(const ForwardArguments<E> args) {
  constexpr int kD = Shape::kHeadSize;
  constexpr int kM = Shape::kM;
  constexpr int kTile = Shape::kKeys * kD;
  constexpr int kSteps = kD / 16;
  E* q_tile = dynamic_shared<E>();
  E* k_tiles = q_tile + Shape::kQueries * kD;
  E* v_tiles = k_tiles + Shape::kStages * kTile;

  // The last tiles of a causal head take longest: they go first.
  const int first_query = static_cast<int>(gridDim.x - 1 - blockIdx.x) * Shape::kQueries;
  const int h = static_cast<int>(blockIdx.y);
  const int b = static_cast<int>(blockIdx.z);
  const int queries = args.mask.queries;
  const int keys = args.mask.keys;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * Shape::kRows;

  const auto q = head_rows(args.q, b, h, args.head_size);
  const auto k = head_rows(args.k, b, h / args.group, args.head_size);
  const auto v = head_rows(args.v, b, h / args.group, args.head_size);
  const KeyRange tiles =
      tiles_of<Shape::kKeys>(tile_visibility(args.mask, b, first_query, Shape::kQueries).any);
  const TileVisibility visibility =
      tile_visibility(args.mask, b, first_query + warp_row, Shape::kRows);

  load_tile<Shape::kQueries, kD, Shape::kThreads, Shape::kAligned>(q_tile, q, first_query, queries);
  if (tiles.begin < tiles.end) {
    load_tile<Shape::kKeys, kD, Shape::kThreads, Shape::kAligned>(k_tiles, k,
                                                                  tiles.begin * Shape::kKeys, keys);
    load_tile<Shape::kKeys, kD, Shape::kThreads, Shape::kAligned>(v_tiles, v,
                                                                  tiles.begin * Shape::kKeys, keys);
  }
  cp_async_commit();

  Sums<kM, kD / 8> out;
  out.clear();
  OnlineSoftmax<kM> softmax;
  softmax.clear();
  [[maybe_unused]] uint32_t held_q[Shape::kHoldQ ? kSteps : 1][kM][4];
  const SquareReader<kD, Square::down, E> q_squares(q_tile, warp_row);

  [[maybe_unused]] const HeadDropout dropout(args.dropout, b, h);

  int stage = 0;
  for (int tile = tiles.begin; tile < tiles.end; ++tile) {
    cp_async_wait<0>();
    __syncthreads();  // this stage has arrived, and all are done with the other
    if (tile + 1 < tiles.end) {
      const int next = (tile + 1) * Shape::kKeys;
      load_tile<Shape::kKeys, kD, Shape::kThreads, Shape::kAligned>(k_tiles + (stage ^ 1) * kTile,
                                                                    k, next, keys);
      load_tile<Shape::kKeys, kD, Shape::kThreads, Shape::kAligned>(v_tiles + (stage ^ 1) * kTile,
                                                                    v, next, keys);
    }
    cp_async_commit();
    if constexpr (Shape::kHoldQ) {
      if (tile == tiles.begin) {
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
#pragma unroll
          for (int m = 0; m < kM; ++m) q_squares.read(held_q[step][m], 16 * m, 2 * step);
        }
      }
    }

    const int first_key = tile * Shape::kKeys;
    if (first_key < visibility.any.end && first_key + Shape::kKeys > visibility.any.begin) {
      const SquareReader<kD, Square::across, E> k_squares(k_tiles + stage * kTile, 0);
      const SquareReader<kD, Square::down, E> v_squares(v_tiles + stage * kTile, 0);
      Sums<kM, Shape::kKeys / 8> scores;
      scores.clear();
      if constexpr (Shape::kHoldQ) {
        multiply_rows<E>(scores, held_q, k_squares);
      } else {
        multiply_rows<kD, E>(scores, q_squares, k_squares);
      }
      if (first_key < visibility.all.begin || first_key + Shape::kKeys > visibility.all.end) {
        hide(scores, -kInfinity, args.mask, b, first_query + warp_row, first_key);
      }
      softmax.take(scores, out, args.scale * kLog2E);
      if constexpr (Shape::kDropout) {
        // The sums are of all weights; the kept ones' scale follows in the end.
        if (args.dropout.active) drop(scores, dropout, first_query + warp_row, first_key);
      }
      multiply_columns<E>(out, scores, v_squares);
    }
    stage ^= 1;
  }

  // out = O / sum, through the warp's own rows of Q's tile.
  float factor[kM][2];
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = softmax.sum[m][half];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      const int row = first_query + warp_row + 16 * m + 8 * half + lane / 4;
      const KeyRange seen = args.mask.visible(b, row < queries ? row : queries - 1);
      const bool none = seen.begin >= seen.end;
      // Scores of -inf alone have no softmax.
      if (sum == 0.0f && !none) sum = kInfinity - kInfinity;
      factor[m][half] = none ? 0.0f : (Shape::kDropout ? args.dropout.scale : 1.0f) / sum;
      if (lane % 4 == 0 && row < queries) {
        args.lse[(static_cast<int64_t>(b) * args.heads + h) * queries + row] =
            none ? -kInfinity : softmax.max[m][half] * args.scale + logf(sum);
      }
    }
  }
  if (tiles.begin == tiles.end) {  // nobody has waited for Q's copies yet
    cp_async_wait<0>();
    __syncthreads();
  }
  out.scale_rows(factor);
  __syncwarp();  // all lanes have read Q's rows
  put_sums<kD>(q_tile, warp_row, 0, out);
  __syncwarp();
  store_rows<Shape::kRows, kD>(q_tile, head_rows(args.out, b, h, args.head_size), args.aligned_out,
                               warp_row, first_query + warp_row, queries);
}

template <typename E, typename Shape>
void launch_forward(const ForwardArguments<E>& args, int batch, cudaStream_t stream) {
  const int tiles = (args.mask.queries + Shape::kQueries - 1) / Shape::kQueries;
  launch(attention_forward_kernel<E, Shape>,
         {.grid = dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(args.heads),
                       static_cast<unsigned>(batch)),
          .block = Shape::kThreads,
          .shared_bytes = Shape::kSharedBytes},
         stream, args);
}

template <typename E>
struct ForwardVariant {
  int head_size;
  bool aligned;  ///< takes only aligned rows
  bool dropout;  ///< can drop weights
  size_t shared_bytes;
  const char* name;
  void (*run)(const ForwardArguments<E>&, int batch, cudaStream_t);
};

template <typename E, typename Shape>
constexpr ForwardVariant<E> variant(const char* name) {
  return {Shape::kHeadSize,        Shape::kAligned, Shape::kDropout, Shape::kSharedBytes, name,
          launch_forward<E, Shape>};
}

/// A variant that is there for the ladder, in bf16 alone.
template <typename E, typename Shape>
constexpr ForwardVariant<E> rung(const char* name) {
  if constexpr (std::is_same_v<E, __nv_bfloat16>) {
    return variant<E, Shape>(name);
  } else {
    return {};
  }
}

/// Queries x keys of a tile. Of those that can serve, the first is what the table chooses.
template <typename E>
constexpr std::array kForwardVariants = {
    variant<E, ForwardShape<64, 128, 64, 4, 2, true>>("128x64, 4 warps, q held"),
    rung<E, ForwardShape<64, 128, 128, 4, 2, false>>("128x128, 4 warps"),
    rung<E, ForwardShape<64, 64, 64, 4, 3, true>>("64x64, 4 warps, q held"),
    variant<E, ForwardShape<96, 64, 64, 4, 2, false>>("64x64, 4 warps"),
    variant<E, ForwardShape<128, 64, 64, 4, 2, true>>("64x64, 4 warps, q held"),
    rung<E, ForwardShape<128, 128, 64, 4, 2, false>>("128x64, 4 warps"),
    rung<E, ForwardShape<128, 128, 32, 4, 2, false>>("128x32, 4 warps"),
    variant<E, ForwardShape<256, 64, 64, 4, 1, false>>("64x64, 4 warps"),
    variant<E, ForwardShape<64, 64, 64, 4, 2, true, true, true>>("dropout"),
    variant<E, ForwardShape<96, 64, 64, 4, 2, false, true, true>>("dropout"),
    variant<E, ForwardShape<128, 64, 64, 4, 2, false, true, true>>("dropout"),
    variant<E, ForwardShape<256, 64, 32, 4, 1, false, true, true>>("dropout"),
    variant<E, ForwardShape<64, 64, 64, 4, 2, false, false, true>>("any"),
    variant<E, ForwardShape<96, 64, 64, 4, 2, false, false, true>>("any"),
    variant<E, ForwardShape<128, 64, 64, 4, 2, false, false, true>>("any"),
    variant<E, ForwardShape<256, 64, 32, 4, 1, false, false, true>>("any"),
};

}  // namespace

template <typename E>
void attention_forward(const AttentionForward<E>& a, cudaStream_t stream) {
  const AttentionProblem& p = a.problem;
  check_attention("attention_forward", p);
  if (p.queries == 0) return;
  const ForwardArguments<E> args{.mask = AttentionMask(p),
                                 .dropout = AttentionDropout(p),
                                 .out = a.out,
                                 .lse = a.lse,
                                 .q = a.q,
                                 .k = a.k,
                                 .v = a.v,
                                 .heads = p.heads,
                                 .group = p.heads / p.kv_heads,
                                 .head_size = p.head_size,
                                 .scale = static_cast<float>(p.scale),
                                 .aligned_out = aligned_rows(a.out)};
  const bool aligned = aligned_rows(a.q) && aligned_rows(a.k) && aligned_rows(a.v);
  const size_t shared_bytes = shared_bytes_limit();
  int wanted = a.variant == kVariantOfTable ? 0 : a.variant;
  for (const ForwardVariant<E>& variant : kForwardVariants<E>) {
    const bool serves = variant.head_size == padded_head_size(p.head_size) &&
                        (aligned || !variant.aligned) && (!p.dropout.active() || variant.dropout) &&
                        variant.shared_bytes <= shared_bytes;
    if (serves && wanted-- == 0) {
      variant.run(args, p.batch, stream);
      return;
    }
  }
  throw_shape_error("attention_forward: no variant " + std::to_string(a.variant) +
                    " for head size " + std::to_string(p.head_size));
}

template void attention_forward(const AttentionForward<__nv_bfloat16>&, cudaStream_t);
template void attention_forward(const AttentionForward<__half>&, cudaStream_t);

std::vector<std::string> attention_forward_variants(int head_size) {
  std::vector<std::string> names;
  for (const auto& variant : kForwardVariants<__nv_bfloat16>) {
    if (variant.head_size == padded_head_size(head_size)) names.emplace_back(variant.name);
  }
  return names;
}

}  // namespace gradus::cuda
