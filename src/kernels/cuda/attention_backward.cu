// Backward pass of flash attention (arXiv:2307.08691, algorithm 2): P = exp(scale · Q Kᵀ - lse) is
// recomputed tile by tile, dP = dO Vᵀ, dS = P ∘ (dP - row_sum); dV = Pᵀ dO, dK = scale · dSᵀ Q,
// dQ = scale · dS K. No atomics: every sum has one owner and one order.
//
//   1. row_sum = Σ dout · out, once for all.
//   2. A block owns a tile of keys and goes over the tiles of queries that may see it: dK, dV
//      (attention_backward_keys.cuh).
//   3. A block owns a tile of queries and goes over the tiles of keys that they see: dQ
//      (attention_backward_queries.cuh).
//
// Seven products for five, as 2 and 3 both make S and dP, but no scratch memory. One pass instead,
// where 2 adds dS K to fp32 partial sums of dQ that are read and written once a tile of keys, was
// built and timed on an H100 (B·T 16384, causal): at T = 1024, 2048, 4096 it reached 144, 169, 186
// TF/s against 156, 179, 194 for 32 heads of 64, and 162, 198, 215 against 168, 193, 209 for 16 of
// 128, with 128 MiB of scratch or more.

#include <array>

#include "kernels/cuda/attention_backward.cuh"
#include "kernels/cuda/attention_backward_keys.cuh"
#include "kernels/cuda/attention_backward_queries.cuh"
#include "kernels/cuda/attention_problem.h"
#include "kernels/cuda/launch.h"

namespace gradus::cuda {
namespace {

// ---- row sums ----

inline constexpr int kRowSumThreads = 128;
inline constexpr int kRowSumLanes = 8;  ///< to a row

/// row_sum (B, H, T_q) = Σ_d dout · out. Eight lanes a row, 16 bytes each at a time.
template <typename E>
__global__ void __launch_bounds__(kRowSumThreads) row_sum_kernel(const BackwardArguments<E> args) {
  constexpr int kRows = kRowSumThreads / kRowSumLanes;
  const int lane = static_cast<int>(threadIdx.x) % kRowSumLanes;
  const int row =
      static_cast<int>(blockIdx.x) * kRows + static_cast<int>(threadIdx.x) / kRowSumLanes;
  const int h = static_cast<int>(blockIdx.y);
  const int b = static_cast<int>(blockIdx.z);
  const bool valid = row < args.mask.queries;
  float sum = 0.0f;
  if (valid) {
    const E* dout = args.dout.data + b * args.dout.batch_stride + h * args.dout.head_stride +
                    row * args.dout.row_stride;
    const E* out = args.out.data + b * args.out.batch_stride + h * args.out.head_stride +
                   row * args.out.row_stride;
    int column = 8 * lane;
    if (args.aligned_in) {
      for (; column + 8 <= args.head_size; column += 8 * kRowSumLanes) {
        const uint4 x = *reinterpret_cast<const uint4*>(dout + column);
        const uint4 y = *reinterpret_cast<const uint4*>(out + column);
        const uint32_t xs[4] = {x.x, x.y, x.z, x.w};
        const uint32_t ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 u = unpack2<E>(xs[i]);
          const float2 w = unpack2<E>(ys[i]);
          sum = fmaf(u.x, w.x, sum);
          sum = fmaf(u.y, w.y, sum);
        }
      }
    }
    for (; column < args.head_size; column += 8 * kRowSumLanes) {
      for (int c = column; c < column + 8 && c < args.head_size; ++c) {
        sum = fmaf(static_cast<float>(dout[c]), static_cast<float>(out[c]), sum);
      }
    }
  }
#pragma unroll
  for (int step = kRowSumLanes / 2; step > 0; step /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, step);
  }
  if (valid && lane == 0) {
    args.row_sum[(static_cast<int64_t>(b) * args.heads + h) * args.mask.queries + row] = sum;
  }
}

// ---- launches ----

int tiles(int size, int tile) { return (size + tile - 1) / tile; }

unsigned grid_size(int size) { return static_cast<unsigned>(size); }

template <typename E, typename Shape>
void launch_keys(const BackwardArguments<E>& args, int blocks, cudaStream_t stream) {
  launch(
      attention_key_gradients_kernel<E, Shape>,
      {.grid = dim3(grid_size(blocks), grid_size(args.heads / args.group), grid_size(args.batch)),
       .block = Shape::kThreads,
       .shared_bytes = Shape::kSharedBytes},
      stream, args);
}

template <typename E, typename Shape, typename Queries>
void launch_passes(const BackwardArguments<E>& args, cudaStream_t stream) {
  launch_keys<E, Shape>(args, tiles(args.mask.keys, Shape::kKeys), stream);
  launch(attention_query_gradients_kernel<E, Queries>,
         {.grid = dim3(grid_size(tiles(args.mask.queries, Queries::kQueries)),
                       grid_size(args.heads), grid_size(args.batch)),
          .block = Queries::kThreads,
          .shared_bytes = Queries::kSharedBytes},
         stream, args);
}

template <typename E>
struct BackwardVariant {
  int head_size;
  bool aligned;  ///< takes only aligned rows
  bool dropout;  ///< can drop weights
  size_t shared_bytes;
  const char* name;
  void (*run)(const BackwardArguments<E>&, cudaStream_t);
};

template <typename E, typename Shape, typename Queries>
constexpr BackwardVariant<E> variant(const char* name) {
  constexpr size_t kSharedBytes =
      Shape::kSharedBytes > Queries::kSharedBytes ? Shape::kSharedBytes : Queries::kSharedBytes;
  return {Shape::kHeadSize,
          Shape::kAligned,
          Shape::kDropout,
          kSharedBytes,
          name,
          launch_passes<E, Shape, Queries>};
}

/// A variant that is there for the ladder, in bf16 alone.
template <typename E, typename Shape, typename Queries>
constexpr BackwardVariant<E> rung(const char* name) {
  if constexpr (std::is_same_v<E, __nv_bfloat16>) {
    return variant<E, Shape, Queries>(name);
  } else {
    return {};
  }
}

/// Keys x queries of a tile of the first pass; queries x keys of the second's. Of those that can
/// serve, the first is what the table chooses.
template <typename E>
constexpr std::array kBackwardVariants = {
    variant<E, KeyShape<64, 128, 32, 4, 2>, QueryShape<64, 64, 64, 4, 3>>(
        "128x32, 4 warps; 64x64, 4 warps"),
    rung<E, KeyShape<64, 128, 64, 8, 1>, QueryShape<64, 128, 64, 4, 2>>(
        "128x64, 8 warps; 128x64, 4 warps"),
    variant<E, KeyShape<128, 128, 64, 8, 1, 2>, QueryShape<128, 128, 32, 4, 2>>(
        "128x64, 8 warps, p shared by 2; 128x32, 4 warps"),
    rung<E, KeyShape<128, 128, 64, 8, 1>, QueryShape<128, 64, 64, 4, 2>>(
        "128x64, 8 warps; 64x64, 4 warps"),
    variant<E, KeyShape<96, 128, 64, 8, 1>, QueryShape<96, 64, 64, 4, 2>>(
        "128x64, 8 warps; 64x64, 4 warps"),
    variant<E, KeyShape<256, 64, 64, 8, 1>, QueryShape<256, 64, 32, 4, 1>>(
        "64x64, 8 warps, p shared by 4; 64x32, 4 warps"),
    variant<E, KeyShape<64, 64, 32, 4, 1, 1, true, true>, QueryShape<64, 64, 32, 4, 1, true, true>>(
        "dropout"),
    variant<E, KeyShape<96, 64, 32, 4, 1, 1, true, true>, QueryShape<96, 64, 32, 4, 1, true, true>>(
        "dropout"),
    variant<E, KeyShape<128, 64, 32, 4, 1, 1, true, true>,
            QueryShape<128, 64, 32, 4, 1, true, true>>("dropout"),
    variant<E, KeyShape<256, 32, 32, 4, 1, 2, true, true>,
            QueryShape<256, 64, 32, 4, 1, true, true>>("dropout"),
    variant<E, KeyShape<64, 64, 32, 4, 1, 1, false, true>,
            QueryShape<64, 64, 32, 4, 1, false, true>>("any"),
    variant<E, KeyShape<96, 64, 32, 4, 1, 1, false, true>,
            QueryShape<96, 64, 32, 4, 1, false, true>>("any"),
    variant<E, KeyShape<128, 64, 32, 4, 1, 1, false, true>,
            QueryShape<128, 64, 32, 4, 1, false, true>>("any"),
    variant<E, KeyShape<256, 32, 32, 4, 1, 2, false, true>,
            QueryShape<256, 64, 32, 4, 1, false, true>>("any"),
};

template <typename E>
const BackwardVariant<E>& find_variant(const AttentionProblem& p, bool aligned, int number) {
  const size_t shared_bytes = shared_bytes_limit();
  int wanted = number == kVariantOfTable ? 0 : number;
  for (const BackwardVariant<E>& variant : kBackwardVariants<E>) {
    const bool serves = variant.head_size == padded_head_size(p.head_size) &&
                        (aligned || !variant.aligned) && (!p.dropout.active() || variant.dropout) &&
                        variant.shared_bytes <= shared_bytes;
    if (serves && wanted-- == 0) return variant;
  }
  throw_shape_error("attention_backward: no variant " + std::to_string(number) + " for head size " +
                    std::to_string(p.head_size));
}

}  // namespace

template <typename E>
void attention_backward(const AttentionBackward<E>& a, cudaStream_t stream) {
  const AttentionProblem& p = a.problem;
  check_attention("attention_backward", p);
  const bool aligned = aligned_rows(a.q) && aligned_rows(a.k) && aligned_rows(a.v) &&
                       aligned_rows(a.dout) && aligned_rows(a.out);
  const BackwardVariant<E>& variant = find_variant<E>(p, aligned, a.variant);
  const BackwardArguments<E> args{
      .mask = AttentionMask(p),
      .dropout = AttentionDropout(p),
      .dq = a.dq,
      .dk = a.dk,
      .dv = a.dv,
      .dout = a.dout,
      .out = a.out,
      .q = a.q,
      .k = a.k,
      .v = a.v,
      .lse = a.lse,
      .row_sum = a.row_sum,
      .batch = p.batch,
      .heads = p.heads,
      .group = p.heads / p.kv_heads,
      .head_size = p.head_size,
      .scale = static_cast<float>(p.scale),
      .aligned_in = aligned,
      .aligned_out = aligned_rows(a.dq) && aligned_rows(a.dk) && aligned_rows(a.dv)};
  launch(row_sum_kernel<E>,
         {.grid = dim3(grid_size(tiles(p.queries, kRowSumThreads / kRowSumLanes)),
                       grid_size(p.heads), grid_size(p.batch)),
          .block = kRowSumThreads},
         stream, args);
  variant.run(args, stream);
}

template void attention_backward(const AttentionBackward<__nv_bfloat16>&, cudaStream_t);
template void attention_backward(const AttentionBackward<__half>&, cudaStream_t);

std::vector<std::string> attention_backward_variants(int head_size) {
  std::vector<std::string> names;
  for (const auto& variant : kBackwardVariants<__nv_bfloat16>) {
    if (variant.head_size == padded_head_size(head_size)) names.emplace_back(variant.name);
  }
  return names;
}

}  // namespace gradus::cuda
