// Softmax cross-entropy, a block a row. Statistics: each thread goes over vectors of the row with a
// running maximum and sum, which the block then joins; the logits are read once. Gradient: each
// element by its own exponential; read once, written once. Fused: both in one kernel, which keeps
// the row in registers or shared memory, or finds it in the L2 cache for the second look.

#include <algorithm>

#include "kernels/cuda/column_strip.cuh"
#include "kernels/cuda/cross_entropy.h"
#include "kernels/cuda/dynamic_shared.cuh"
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/precision.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/warp.cuh"

namespace gradus::cuda {
namespace {

constexpr int kMostThreads = 1024;
constexpr int kThreads = 512;
constexpr int32_t kIgnoredTarget = -1;
constexpr float kLog2E = 1.44269504088896340736f;
constexpr int kHeld = 8;  // vectors of a thread in registers

__device__ float minus_infinity() { return -__uint_as_float(0x7f800000u); }

__device__ float exponential(float x) { return exp2_approx(x * kLog2E); }

/// Running maximum and Σ exp(value - max).
struct Softmax {
  float max = minus_infinity();
  float sum = 0.0f;

  /// While everything is -inf any shift gives exp(-inf) = 0; -inf - -inf would be NaN.
  __device__ float shift() const { return max == minus_infinity() ? 0.0f : max; }

  /// fmaxf passes a NaN over; its exponential brings it to the sum.
  template <int N>
  __device__ void add(const float (&values)[N]) {
    float most = values[0];
#pragma unroll
    for (int j = 1; j < N; ++j) most = fmaxf(most, values[j]);
    if (most > max) {
      const float before = max;
      max = most;
      sum *= exponential(before - max);
    }
    const float subtrahend = shift();
#pragma unroll
    for (int j = 0; j < N; ++j) sum += exponential(values[j] - subtrahend);
  }
};

/// The warps' parts of a row. A kernel with several rows takes two by turns.
struct Parts {
  float max[kWarp];
  float sum[kWarp];
};

__device__ Softmax join_warp(Softmax mine) {
  const float most = warp_max(mine.max);
  const float shift = most == minus_infinity() ? 0.0f : most;
  return {most, warp_sum(mine.sum * exponential(mine.max - shift))};
}

/// Joins the threads' parts in a fixed order; the result is the same in every thread. Every warp
/// joins the warps' parts for itself, a lane a part.
__device__ Softmax join_block(Softmax mine, Parts& parts) {
  mine = join_warp(mine);
  const auto lane = static_cast<int>(threadIdx.x) % kWarp;
  if (lane == 0) {
    parts.max[threadIdx.x / kWarp] = mine.max;
    parts.sum[threadIdx.x / kWarp] = mine.sum;
  }
  __syncthreads();
  Softmax part;
  if (lane < static_cast<int>(blockDim.x) / kWarp) part = {parts.max[lane], parts.sum[lane]};
  return join_warp(part);
}

struct Rows {
  const int32_t* targets;
  int64_t stride;  ///< V_tp
  int columns;     ///< of them real
  int64_t first_column;
  int64_t vocabulary;
};

/// The place of the row's target among this rank's columns, or a number that is none.
__device__ int target_place(const Rows& rows, int32_t target) {
  const int64_t place = target - rows.first_column;
  return target != kIgnoredTarget && place >= 0 && place < rows.columns ? static_cast<int>(place)
                                                                        : -1;
}

template <typename T>
__device__ float target_value(const Rows& rows, const T* row, int32_t target) {
  if (target == kIgnoredTarget) return 0.0f;
  // No token: the loss has to show it.
  if (target < 0 || target >= rows.vocabulary) return __uint_as_float(0x7fc00000u);
  const int place = target_place(rows, target);
  return place < 0 ? 0.0f : to_float(row[place]);
}

/// N = 1: rows that 128-bit accesses do not fit.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    find_statistics(RowStatistics out, const T* logits, Rows rows) {
  const int64_t index = blockIdx.x;
  const T* row = logits + index * rows.stride;
  const auto threads = static_cast<int>(blockDim.x);
  const int vectors = rows.columns / N;
  Softmax mine;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < vectors; i += threads) {
    float values[N];
    load_floats(values, row + static_cast<int64_t>(i) * N);
    mine.add(values);
  }
  for (int c = vectors * N + static_cast<int>(threadIdx.x); c < rows.columns; c += threads) {
    const float value[1] = {to_float(row[c])};
    mine.add(value);
  }
  __shared__ Parts parts;
  const Softmax all = join_block(mine, parts);
  if (threadIdx.x == 0) {
    out.row_max[index] = all.max;
    out.row_sum[index] = all.sum;
    out.target_logit[index] = target_value(rows, row, rows.targets[index]);
  }
}

/// The gradient of N neighbours from column c on, `values` being their logits.
template <int N>
__device__ void differentiate(float (&values)[N], int c, float lse, int target, float scale) {
  float at_target = 0.0f;
#pragma unroll
  for (int j = 0; j < N; ++j) {
    if (c + j == target) at_target = values[j];
    values[j] = scale * exponential(values[j] - lse);
  }
  if (target >= c && target < c + N) {
    // expm1 keeps the digits of p - 1 when the model is sure.
    const float gradient = scale * expm1f(at_target - lse);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (c + j == target) values[j] = gradient;
    }
  }
}

/// Columns of a row from `vectors * N` on: the last real ones, and zeros for the padding. One
/// element at a time, but for whole vectors of padding.
template <typename T, typename O, int N>
__device__ void finish_row(O* to, const T* from, const Rows& rows, int vectors, float lse,
                           int target, float scale) {
  const auto threads = static_cast<int>(blockDim.x);
  for (int64_t c = static_cast<int64_t>(vectors) * N + threadIdx.x; c < rows.stride; c += threads) {
    float value[1] = {0.0f};
    if (c < rows.columns) {
      value[0] = to_float(from[c]);
      differentiate(value, static_cast<int>(c), lse, target, scale);
    }
    to[c] = from_float<O>(value[0]);
  }
}

template <typename O>
__device__ void clear_row(O* to, int64_t columns) {
  for (int64_t c = threadIdx.x; c < columns; c += blockDim.x) to[c] = from_float<O>(0.0f);
}

template <typename T, typename O, int N>
__global__ void __launch_bounds__(kThreads)
    find_gradient(O* dlogits, const T* logits, const float* lses, Rows rows, float scale) {
  const int64_t index = blockIdx.x;
  const T* from = logits + index * rows.stride;
  O* to = dlogits + index * rows.stride;
  const int32_t target_id = rows.targets[index];
  if (target_id == kIgnoredTarget) return clear_row(to, rows.stride);
  const int target = target_place(rows, target_id);
  const float lse = lses[index];
  const int vectors = rows.columns / N;
  const auto threads = static_cast<int>(blockDim.x);
#pragma unroll 2
  for (int i = static_cast<int>(threadIdx.x); i < vectors; i += threads) {
    float values[N];
    load_floats(values, from + static_cast<int64_t>(i) * N);
    differentiate(values, i * N, lse, target, scale);
    store_floats(to + static_cast<int64_t>(i) * N, values);
  }
  finish_row<T, O, N>(to, from, rows, vectors, lse, target, scale);
}

/// K vectors of a thread stay in registers, `shared_vectors` more in its own places of shared
/// memory, and any others are read again. Which thread has which vector does not change in between.
template <typename T, typename O, int N, int K, int kMost>
__global__ void __launch_bounds__(kMost, 1)
    find_both(O* dlogits, RowStatistics out, const T* logits, Rows rows, float scale,
              int shared_vectors) {
  using Vector = Packed<T, N>;
  auto* shared = dynamic_shared<Vector>();
  const int64_t index = blockIdx.x;
  const T* from = logits + index * rows.stride;
  O* to = dlogits + index * rows.stride;
  const int32_t target_id = rows.targets[index];
  const int vectors = rows.columns / N;
  const auto threads = static_cast<int>(blockDim.x);
  const auto thread = static_cast<int>(threadIdx.x);

  Softmax mine;
  Vector held[K > 0 ? K : 1];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int i = thread + k * threads;
    if (i < vectors) held[k].load(from + static_cast<int64_t>(i) * N);
  }
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (thread + k * threads < vectors) {
      float values[N];
      held[k].widen(values);
      mine.add(values);
    }
  }
#pragma unroll 4
  for (int i = thread + K * threads; i < vectors; i += threads) {
    Vector vector;
    vector.load(from + static_cast<int64_t>(i) * N);
    const int slot = i - K * threads;
    if (slot < shared_vectors) shared[slot] = vector;
    float values[N];
    vector.widen(values);
    mine.add(values);
  }
  for (int c = vectors * N + thread; c < rows.columns; c += threads) {
    const float value[1] = {to_float(from[c])};
    mine.add(value);
  }
  const float target_logit = target_value(rows, from, target_id);
  // Behind its barrier nobody reads the target's logit, which a neighbour may overwrite.
  __shared__ Parts parts;
  const Softmax all = join_block(mine, parts);
  const float lse = all.max + logf(all.sum);
  if (thread == 0) {
    out.row_max[index] = all.max;
    out.row_sum[index] = all.sum;
    out.target_logit[index] = target_logit;
  }
  if (target_id == kIgnoredTarget) return clear_row(to, rows.stride);

  const int target = target_place(rows, target_id);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int i = thread + k * threads;
    if (i < vectors) {
      float values[N];
      held[k].widen(values);
      differentiate(values, i * N, lse, target, scale);
      store_floats(to + static_cast<int64_t>(i) * N, values);
    }
  }
#pragma unroll 2
  for (int i = thread + K * threads; i < vectors; i += threads) {
    const int slot = i - K * threads;
    Vector vector;
    if (slot < shared_vectors) {
      vector = shared[slot];
    } else {
      vector.load(from + static_cast<int64_t>(i) * N);
    }
    float values[N];
    vector.widen(values);
    differentiate(values, i * N, lse, target, scale);
    store_floats(to + static_cast<int64_t>(i) * N, values);
  }
  finish_row<T, O, N>(to, from, rows, vectors, lse, target, scale);
}

/// Both for rows that fit shared memory twice: a block has rows in turn, and copies the next to
/// shared memory while it computes one, so that memory is never idle. A thread reads only what it
/// has copied itself, so its own wait is enough.
template <typename T, typename O, int N>
__global__ void __launch_bounds__(kMostThreads, 1)
    find_both_streamed(O* dlogits, RowStatistics out, const T* logits, Rows rows, float scale,
                       int count) {
  __shared__ Parts parts[2];
  using Vector = Packed<T, N>;
  auto* shared = dynamic_shared<Vector>();
  const int vectors = rows.columns / N;
  const auto threads = static_cast<int>(blockDim.x);
  const auto thread = static_cast<int>(threadIdx.x);
  const auto fetch = [&](int64_t index, Vector* to) {
    if (index < count) {
      const T* from = logits + index * rows.stride;
      for (int i = thread; i < vectors; i += threads) cp_async_16(to + i, from + i * N);
    }
    cp_async_commit();
  };
  fetch(blockIdx.x, shared);
  int turn = 0;
  for (int64_t index = blockIdx.x; index < count; index += gridDim.x, turn ^= 1) {
    const Vector* row = shared + turn * vectors;
    fetch(index + gridDim.x, shared + (turn ^ 1) * vectors);
    const T* from = logits + index * rows.stride;
    O* to = dlogits + index * rows.stride;
    const int32_t target_id = rows.targets[index];
    const float target_logit = target_value(rows, from, target_id);
    cp_async_wait<1>();

    Softmax mine;
    for (int i = thread; i < vectors; i += threads) {
      float values[N];
      row[i].widen(values);
#pragma unroll
      for (int j = 0; j < N; ++j) mine.max = fmaxf(mine.max, values[j]);
    }
    const float shift = mine.shift();
    for (int i = thread; i < vectors; i += threads) {
      float values[N];
      row[i].widen(values);
#pragma unroll
      for (int j = 0; j < N; ++j) mine.sum += exponential(values[j] - shift);
    }
    for (int c = vectors * N + thread; c < rows.columns; c += threads) {
      const float value[1] = {to_float(from[c])};
      mine.add(value);
    }
    // Behind its barrier nobody reads the target's logit, which a neighbour may overwrite.
    const Softmax all = join_block(mine, parts[turn]);
    const float lse = all.max + logf(all.sum);
    if (thread == 0) {
      out.row_max[index] = all.max;
      out.row_sum[index] = all.sum;
      out.target_logit[index] = target_logit;
    }
    if (target_id == kIgnoredTarget) {
      clear_row(to, rows.stride);
      continue;
    }
    const int target = target_place(rows, target_id);
    for (int i = thread; i < vectors; i += threads) {
      float values[N];
      row[i].widen(values);
      differentiate(values, i * N, lse, target, scale);
      store_floats(to + static_cast<int64_t>(i) * N, values);
    }
    finish_row<T, O, N>(to, from, rows, vectors, lse, target, scale);
  }
  cp_async_wait<0>();
}

__global__ void __launch_bounds__(kElementwiseThreads)
    rescale_sums(float* row_sum, const float* row_max, const float* whole_max, int64_t rows) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  // A rank of padding alone has -inf and 0, and exp(-inf) · 0 = 0.
  if (i < rows) row_sum[i] *= expf(row_max[i] - whole_max[i]);
}

__global__ void __launch_bounds__(kMostThreads)
    add_losses(double* loss_sum, float* lse, RowStatistics in, const int32_t* targets,
               int64_t rows) {
  __shared__ double sums[kMostThreads / kWarp];
  double loss = 0.0;
  for (int64_t i = threadIdx.x; i < rows; i += blockDim.x) {
    const double largest = in.row_max[i];
    const double log_sum = log(static_cast<double>(in.row_sum[i]));
    lse[i] = static_cast<float>(largest + log_sum);
    // In this order log_sum keeps its digits when the logits are large.
    if (targets[i] != kIgnoredTarget) {
      loss += largest - static_cast<double>(in.target_logit[i]) + log_sum;
    }
  }
  loss = warp_sum(loss);
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = loss;
  __syncthreads();
  if (threadIdx.x == 0) {
    double total = 0.0;
    for (const double part : sums) total += part;
    *loss_sum += total;
  }
}

Rows rows_of(const LogitRows& in) {
  const int64_t real = std::clamp<int64_t>(in.vocabulary - in.first_column, 0, in.columns);
  return {in.targets, in.columns, static_cast<int>(real), in.first_column, in.vocabulary};
}

template <int N, typename T>
bool row_vectors(const T* address, int64_t columns) {
  return rows_are_aligned(address, columns, N);
}

/// What an H100 ran fastest for 50304 columns. 16-bit rows fit shared memory, two blocks an SM;
/// where each SM has many of them, one block that copies the next row ahead. fp32 rows stay in
/// registers as far as they go, and are read again.
template <typename T>
FusedPlan chosen_plan(int64_t rows) {
  if (sizeof(T) == 4) return {.threads = 1024, .registers = true};
  constexpr int64_t kManyRows = 2048;
  if (rows >= kManyRows) return {.threads = 1024, .shared_bytes = 110 << 10, .blocks = 132};
  return {.threads = 768, .shared_bytes = 110 << 10};
}

template <typename T, typename O, int N>
void launch_fused(void* dlogits, const LogitRows& in, const RowStatistics& out, float scale,
                  cudaStream_t stream, const FusedPlan& asked) {
  const FusedPlan plan = asked.threads > 0 ? asked : chosen_plan<T>(in.rows);
  const Rows rows = rows_of(in);
  auto* to = static_cast<O*>(dlogits);
  const auto* from = static_cast<const T*>(in.logits);
  const int threads = plan.threads;
  constexpr int kBytes = N * static_cast<int>(sizeof(T));
  const int vectors = rows.columns / N;
  const bool registers = plan.registers && (threads <= kThreads || sizeof(T) == 4);
  const int beyond = std::max(0, vectors - (registers ? kHeld * threads : 0));
  // The kernels' own few hundred bytes count too.
  const size_t most_shared = shared_bytes_limit() - (size_t{3} << 10);
  const int shared =
      std::min({plan.shared_bytes / kBytes, static_cast<int>(most_shared / kBytes), beyond});
  const Launch shape{.grid = static_cast<unsigned>(in.rows),
                     .block = static_cast<unsigned>(threads),
                     .shared_bytes = static_cast<size_t>(shared) * kBytes};
  const auto run = [&](auto kernel) {
    launch(kernel, shape, stream, to, out, from, rows, scale, shared);
  };
  if constexpr (kBytes == 16) {
    if (plan.blocks > 0 && 2 * static_cast<size_t>(vectors) * kBytes <= most_shared) {
      const Launch streamed{.grid = static_cast<unsigned>(std::min<int64_t>(plan.blocks, in.rows)),
                            .block = static_cast<unsigned>(threads),
                            .shared_bytes = 2 * static_cast<size_t>(vectors) * kBytes};
      return launch(find_both_streamed<T, O, N>, streamed, stream, to, out, from, rows, scale,
                    static_cast<int>(in.rows));
    }
  }
  if (plan.registers && threads <= kThreads) return run(find_both<T, O, N, kHeld, kThreads>);
  if constexpr (sizeof(T) == 4) {
    // 1024 threads have registers for eight vectors of four, not of eight.
    if (plan.registers) return run(find_both<T, O, N, kHeld, kMostThreads>);
  }
  threads > kThreads ? run(find_both<T, O, N, 0, kMostThreads>)
                     : run(find_both<T, O, N, 0, kThreads>);
}

}  // namespace

void cross_entropy_statistics(const LogitRows& in, const RowStatistics& out, cudaStream_t stream) {
  dispatch_float("cross_entropy_statistics", in.dtype, [&]<typename T>(T) {
    const auto* logits = static_cast<const T*>(in.logits);
    const Launch shape{.grid = static_cast<unsigned>(in.rows), .block = kThreads};
    if (row_vectors<kLanesOf<T>>(logits, in.columns)) {
      launch(find_statistics<T, kLanesOf<T>>, shape, stream, out, logits, rows_of(in));
    } else {
      launch(find_statistics<T, 1>, shape, stream, out, logits, rows_of(in));
    }
  });
}

void cross_entropy_rescale(float* row_sum, const float* row_max, const float* whole_max,
                           int64_t rows, cudaStream_t stream) {
  const int64_t blocks = (rows + kElementwiseThreads - 1) / kElementwiseThreads;
  launch(rescale_sums, {.grid = static_cast<unsigned>(blocks), .block = kElementwiseThreads},
         stream, row_sum, row_max, whole_max, rows);
}

void cross_entropy_forward(double* loss_sum, float* lse, const RowStatistics& in,
                           const int32_t* targets, int64_t rows, cudaStream_t stream) {
  launch(add_losses, {.grid = 1, .block = kMostThreads}, stream, loss_sum, lse, in, targets, rows);
}

void cross_entropy_backward(void* dlogits, DType dtype, const LogitRows& in, const float* lse,
                            double scale, cudaStream_t stream) {
  dispatch_precision("cross_entropy_backward", in.dtype, dtype, [&]<typename T, typename O>(T, O) {
    constexpr int N = kLanesOfBoth<T, O>;
    auto* to = static_cast<O*>(dlogits);
    const auto* from = static_cast<const T*>(in.logits);
    const Launch shape{.grid = static_cast<unsigned>(in.rows), .block = kThreads};
    const auto factor = static_cast<float>(scale);
    if (row_vectors<N>(from, in.columns) && row_vectors<N>(to, in.columns)) {
      launch(find_gradient<T, O, N>, shape, stream, to, from, lse, rows_of(in), factor);
    } else {
      launch(find_gradient<T, O, 1>, shape, stream, to, from, lse, rows_of(in), factor);
    }
  });
}

void cross_entropy_fused(void* dlogits, DType dtype, const LogitRows& in, const RowStatistics& out,
                         double scale, cudaStream_t stream, const FusedPlan& plan) {
  dispatch_precision("cross_entropy_fused", in.dtype, dtype, [&]<typename T, typename O>(T, O) {
    constexpr int N = kLanesOfBoth<T, O>;
    const auto factor = static_cast<float>(scale);
    if (row_vectors<N>(static_cast<const T*>(in.logits), in.columns) &&
        row_vectors<N>(static_cast<const O*>(dlogits), in.columns)) {
      return launch_fused<T, O, N>(dlogits, in, out, factor, stream, plan);
    }
    throw_shape_error("cross_entropy_fused: columns or addresses are not aligned to 16 bytes");
  });
}

}  // namespace gradus::cuda
