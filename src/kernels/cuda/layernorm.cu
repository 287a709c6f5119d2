// Layernorm by rows. A team of warps holds a row in registers, as it is stored: it is read once,
// its statistics and results are made from there, and each is written once. Forward reads in,
// writes out; backward reads dout, in and din and writes din, while each thread keeps the sums over
// rows of its own columns of dweight and dbias, which go to scratch a row a block and are added in
// order. Rows that 128-bit accesses do not fit go element by element, a block a row.

#include <algorithm>
#include <cmath>

#include "kernels/cuda/column_sums.h"
#include "kernels/cuda/dynamic_shared.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/layernorm.h"
#include "kernels/cuda/philox.cuh"
#include "kernels/cuda/precision.h"
#include "kernels/cuda/residual.h"
#include "kernels/cuda/vector.cuh"
#include "kernels/cuda/warp.cuh"

namespace gradus::cuda {
namespace {

constexpr int kMostThreads = 512;  // of a block
constexpr int kMostWarps = kMostThreads / kWarp;
constexpr int kMostPartials = 528;  // blocks of a backward: rows of partial sums
constexpr int kScalarThreads = 256;

template <typename R, typename A>
struct ForwardRows {
  A* out;
  float* mean;
  float* rstd;
  const R* in;
  const A* weight;
  const A* bias;
  int rows;
  int channels;
  float epsilon;
  int warps_per_row;
  // With a residual in front:
  R* stream;
  const A* branch;
  const A* branch_bias;
  const R* residual;
  RowDropout dropout;
};

/// rstd from the mean square deviation. A variance that overflows would give 0 and a
/// healthy-looking row of the bias alone.
__device__ float rstd_of(float variance, float epsilon) {
  return isinf(variance) ? nanf("") : 1.0f / sqrtf(variance + epsilon);
}

/// NaN stays NaN, as fmaxf would not have it.
__device__ float at_least_zero(float value) { return value < 0.0f ? 0.0f : value; }

/// x = residual + dropout(branch + bias) for the vector at `column` of a row; stored too.
template <typename R, typename A, int N>
__device__ Packed<R, N> add_residual(const ForwardRows<R, A>& a, int row,
                                     const RowDropout::Row& counters, int column) {
  const int64_t place = static_cast<int64_t>(row) * a.channels + column;
  Packed<A, N> branch;
  Packed<R, N> residual;
  branch.load(a.branch + place);
  residual.load(a.residual + place);
  float value[N];
  branch.widen(value);
  if (a.branch_bias != nullptr) {
    Packed<A, N> bias;
    bias.load(a.branch_bias + column);
    float shift[N];
    bias.widen(shift);
#pragma unroll
    for (int j = 0; j < N; ++j) value[j] = value[j] + shift[j];
  }
  a.dropout.apply(value, counters, column);
  float skip[N];
  residual.widen(skip);
#pragma unroll
  for (int j = 0; j < N; ++j) value[j] = __fadd_rn(skip[j], value[j]);
  Packed<R, N> sum;
  sum.narrow(value);
  sum.store(a.stream + place);
  return sum;
}

/// N: elements of a vector; K: vectors of a row that a thread holds.
template <typename R, typename A, int N, int K, bool kResidual>
__global__ void __launch_bounds__(kMostThreads, 1) normalize_rows(ForwardRows<R, A> a) {
  __shared__ float center_slots[kMostWarps];
  __shared__ float2 deviation_slots[kMostWarps];
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int team = warp / a.warps_per_row;
  const int teams = static_cast<int>(blockDim.x) / kWarp / a.warps_per_row;
  const int first_warp = team * a.warps_per_row;
  const int thread = static_cast<int>(threadIdx.x) - first_warp * kWarp;
  const int step = a.warps_per_row * kWarp * N;  // columns between a thread's vectors
  const float count = static_cast<float>(a.channels);

  for (int first = static_cast<int>(blockIdx.x) * teams; first < a.rows;
       first += static_cast<int>(gridDim.x) * teams) {
    const int row = first + team;
    const bool active = row < a.rows;
    const int64_t start = static_cast<int64_t>(row) * a.channels;
    Packed<R, N> x[K];
    RowDropout::Row counters;
    if constexpr (kResidual) counters = a.dropout.row(row);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int column = thread * N + k * step;
      x[k].clear();
      if (active && column < a.channels) {
        if constexpr (kResidual) {
          x[k] = add_residual<R, A, N>(a, row, counters, column);
        } else {
          x[k].load(a.in + start + column);
        }
      }
    }

    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      float value[N];
      x[k].widen(value);
#pragma unroll
      for (int j = 0; j < N; ++j) sum += value[j];
    }
    const float center = team_sum(sum, center_slots, first_warp, a.warps_per_row) / count;

    // Deviations from the row's own mean, never E[x²] - E[x]², which cancels where the mean is
    // large; their own mean corrects the first (Chan, Golub, LeVeque 1983).
    float2 deviations = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (thread * N + k * step < a.channels) {
        float value[N];
        x[k].widen(value);
#pragma unroll
        for (int j = 0; j < N; ++j) {
          const float deviation = value[j] - center;
          deviations.x += deviation;
          deviations.y += deviation * deviation;
        }
      }
    }
    deviations = team_sum(deviations, deviation_slots, first_warp, a.warps_per_row);
    const float offset = deviations.x / count;
    const float variance = at_least_zero(deviations.y / count - offset * offset);
    const float rstd = rstd_of(variance, a.epsilon);
    if (active && thread == 0) {
      a.mean[row] = center + offset;
      a.rstd[row] = rstd;
    }

    const float shift = offset * rstd;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int column = thread * N + k * step;
      if (active && column < a.channels) {
        Packed<A, N> packed;
        float value[N];
        float scale[N];
        x[k].widen(value);
        packed.load(a.weight + column);
        packed.widen(scale);
#pragma unroll
        for (int j = 0; j < N; ++j) value[j] = ((value[j] - center) * rstd - shift) * scale[j];
        if (a.bias != nullptr) {
          float bias[N];
          packed.load(a.bias + column);
          packed.widen(bias);
#pragma unroll
          for (int j = 0; j < N; ++j) value[j] += bias[j];
        }
        packed.narrow(value);
        packed.store(a.out + start + column);
      }
    }
  }
}

/// Any C, any alignment: a block a row, which it reads three times.
template <typename R, typename A, bool kResidual>
__global__ void __launch_bounds__(kScalarThreads) normalize_rows_any(ForwardRows<R, A> a) {
  __shared__ float center_slots[kMostWarps];
  __shared__ float2 deviation_slots[kMostWarps];
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const float count = static_cast<float>(a.channels);
  for (int row = static_cast<int>(blockIdx.x); row < a.rows; row += static_cast<int>(gridDim.x)) {
    const int64_t start = static_cast<int64_t>(row) * a.channels;
    const R* in = kResidual ? a.stream : a.in;
    const RowDropout::Row counters = a.dropout.row(row);
    float sum = 0.0f;
    for (int c = static_cast<int>(threadIdx.x); c < a.channels; c += static_cast<int>(blockDim.x)) {
      if constexpr (kResidual) {
        float value = to_float(a.branch[start + c]);
        if (a.branch_bias != nullptr) value = value + to_float(a.branch_bias[c]);
        value = a.dropout.apply(value, counters, c);
        // A thread reads again only what it has written itself.
        a.stream[start + c] = from_float<R>(__fadd_rn(to_float(a.residual[start + c]), value));
      }
      sum += to_float(in[start + c]);
    }
    const float center = team_sum(sum, center_slots, 0, warps) / count;
    float2 deviations = make_float2(0.0f, 0.0f);
    for (int c = static_cast<int>(threadIdx.x); c < a.channels; c += static_cast<int>(blockDim.x)) {
      const float deviation = to_float(in[start + c]) - center;
      deviations.x += deviation;
      deviations.y += deviation * deviation;
    }
    deviations = team_sum(deviations, deviation_slots, 0, warps);
    const float offset = deviations.x / count;
    const float variance = at_least_zero(deviations.y / count - offset * offset);
    const float rstd = rstd_of(variance, a.epsilon);
    if (threadIdx.x == 0) {
      a.mean[row] = center + offset;
      a.rstd[row] = rstd;
    }
    const float shift = offset * rstd;
    for (int c = static_cast<int>(threadIdx.x); c < a.channels; c += static_cast<int>(blockDim.x)) {
      float value = ((to_float(in[start + c]) - center) * rstd - shift) * to_float(a.weight[c]);
      if (a.bias != nullptr) value += to_float(a.bias[c]);
      a.out[start + c] = from_float<A>(value);
    }
  }
}

template <typename R, typename A>
struct BackwardRows {
  R* din;
  const A* dout;
  const R* in;
  const A* weight;
  const float* mean;
  const float* rstd;
  float* partials;  ///< (sets, blocks, C): of dweight, dbias and the branch's dbias
  int rows;
  int channels;
  int warps_per_row;
  // With a residual in front:
  A* dbranch;
  RowDropout dropout;
};

/// Adds the teams' sums of a column in the order of the teams, in shared memory, and writes the
/// block's row of partials. Every thread of the block calls it.
template <int N, int K>
__device__ void write_partials(const float (&sums)[K][N], float* row, float* shared, int channels,
                               int team, int teams, int thread, int step) {
  for (int turn = 0; turn < teams; ++turn) {
    if (turn == team) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const int column = thread * N + k * step;
        if (column < channels) {
#pragma unroll
          for (int j = 0; j < N; j += 4) {
            float4* place = reinterpret_cast<float4*>(shared + column + j);
            float4 total = make_float4(sums[k][j], sums[k][j + 1], sums[k][j + 2], sums[k][j + 3]);
            if (turn > 0) {
              const float4 before = *place;
              total.x += before.x;
              total.y += before.y;
              total.z += before.z;
              total.w += before.w;
            }
            *place = total;
          }
        }
      }
    }
    __syncthreads();
  }
  for (int c = static_cast<int>(threadIdx.x) * 4; c < channels;
       c += static_cast<int>(blockDim.x) * 4) {
    *reinterpret_cast<float4*>(row + c) = *reinterpret_cast<const float4*>(shared + c);
  }
  __syncthreads();
}

/// A thread's vectors of a row, and the row's statistics; zeros beyond the last row.
template <typename R, typename A, int N, int K>
struct BackwardVectors {
  Packed<R, N> x[K];
  Packed<A, N> dy[K];
  Packed<R, N> dx[K];
  float mean;
  float rstd;

  __device__ void load(const BackwardRows<R, A>& a, int row, int thread, int step) {
    const bool active = row < a.rows;
    const int64_t start = static_cast<int64_t>(row) * a.channels;
    mean = active ? a.mean[row] : 0.0f;
    rstd = active ? a.rstd[row] : 0.0f;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int column = thread * N + k * step;
      x[k].clear();
      dy[k].clear();
      dx[k].clear();
      if (active && column < a.channels) {
        x[k].load(a.in + start + column);
        dy[k].load(a.dout + start + column);
        dx[k].load(a.din + start + column);
      }
    }
  }
};

/// kAhead: a row is read while the one before it is computed.
template <typename R, typename A, int N, int K, bool kResidual, bool kAhead>
__global__ void __launch_bounds__(kMostThreads, 1) differentiate_rows(BackwardRows<R, A> a) {
  // Two sets by turns: a row's sums are read while those of the next are written.
  __shared__ float2 slots[2][kMostWarps];
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int team = warp / a.warps_per_row;
  const int teams = static_cast<int>(blockDim.x) / kWarp / a.warps_per_row;
  const int first_warp = team * a.warps_per_row;
  const int thread = static_cast<int>(threadIdx.x) - first_warp * kWarp;
  const int step = a.warps_per_row * kWarp * N;
  const float count = static_cast<float>(a.channels);

  Packed<A, N> weight[K];
  float dweight[K][N] = {};
  float dbias[K][N] = {};
  float dbranch_bias[kResidual ? K : 1][N] = {};
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int column = thread * N + k * step;
    weight[k].clear();
    if (column < a.channels) weight[k].load(a.weight + column);
  }

  const int rows_of_turn = static_cast<int>(gridDim.x) * teams;
  BackwardVectors<R, A, N, K> now;
  if constexpr (kAhead) now.load(a, static_cast<int>(blockIdx.x) * teams + team, thread, step);
  int turn = 0;
  for (int first = static_cast<int>(blockIdx.x) * teams; first < a.rows;
       first += rows_of_turn, turn ^= 1) {
    const int row = first + team;
    const bool active = row < a.rows;
    const int64_t start = static_cast<int64_t>(row) * a.channels;
    BackwardVectors<R, A, N, K> next;
    if constexpr (kAhead) {
      next.load(a, row + rows_of_turn, thread, step);
    } else {
      now.load(a, row, thread, step);
    }
    const float mean = now.mean;
    const float rstd = now.rstd;

    float2 sums = make_float2(0.0f, 0.0f);  // of g, and of g times the deviation
#pragma unroll
    for (int k = 0; k < K; ++k) {
      float value[N];
      float up[N];
      float scale[N];
      now.x[k].widen(value);
      now.dy[k].widen(up);
      weight[k].widen(scale);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float g = __fmul_rn(up[j], scale[j]);
        sums.x += g;
        sums.y += g * (value[j] - mean);
      }
    }
    sums = team_sum(sums, slots[turn], first_warp, a.warps_per_row);
    const float g_mean = sums.x / count;
    const float gx_mean = sums.y * rstd / count;

    RowDropout::Row counters;
    if constexpr (kResidual) counters = a.dropout.row(row);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int column = thread * N + k * step;
      if (active && column < a.channels) {
        float value[N];
        float up[N];
        float scale[N];
        float gradient[N];
        now.x[k].widen(value);
        now.dy[k].widen(up);
        weight[k].widen(scale);
        now.dx[k].widen(gradient);
#pragma unroll
        for (int j = 0; j < N; ++j) {
          const float normalized = (value[j] - mean) * rstd;
          // g rounded as in its mean: what a fused product would keep of it, rstd multiplies by up
          // to 1 / √ε.
          const float g = __fmul_rn(up[j], scale[j]) - g_mean;
          gradient[j] += (g - normalized * gx_mean) * rstd;
          dweight[k][j] += up[j] * normalized;
          dbias[k][j] += up[j];
        }
        now.dx[k].narrow(gradient);
        now.dx[k].store(a.din + start + column);
        if constexpr (kResidual) {
          now.dx[k].widen(gradient);  // as residual_backward would read it
          a.dropout.apply(gradient, counters, column);
          Packed<A, N> branch;
          branch.narrow(gradient);
          branch.store(a.dbranch + start + column);
#pragma unroll
          for (int j = 0; j < N; ++j) dbranch_bias[k][j] += gradient[j];
        }
      }
    }
    if constexpr (kAhead) now = next;
  }

  float* shared = dynamic_shared<float>();
  const int64_t blocks = gridDim.x;
  const auto row_of = [&](int set) {
    return a.partials + (set * blocks + blockIdx.x) * a.channels;
  };
  write_partials<N, K>(dweight, row_of(0), shared, a.channels, team, teams, thread, step);
  write_partials<N, K>(dbias, row_of(1), shared, a.channels, team, teams, thread, step);
  if constexpr (kResidual) {
    write_partials<N, K>(dbranch_bias, row_of(2), shared, a.channels, team, teams, thread, step);
  }
}

/// Any C, any alignment: a block a row.
template <typename R, typename A, bool kResidual>
__global__ void __launch_bounds__(kScalarThreads) differentiate_rows_any(BackwardRows<R, A> a) {
  __shared__ float2 slots[2][kMostWarps];
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const float count = static_cast<float>(a.channels);
  int turn = 0;
  for (int row = static_cast<int>(blockIdx.x); row < a.rows;
       row += static_cast<int>(gridDim.x), turn ^= 1) {
    const int64_t start = static_cast<int64_t>(row) * a.channels;
    const float mean = a.mean[row];
    const float rstd = a.rstd[row];
    float2 sums = make_float2(0.0f, 0.0f);
    for (int c = static_cast<int>(threadIdx.x); c < a.channels; c += static_cast<int>(blockDim.x)) {
      const float g = __fmul_rn(to_float(a.dout[start + c]), to_float(a.weight[c]));
      sums.x += g;
      sums.y += g * (to_float(a.in[start + c]) - mean);
    }
    sums = team_sum(sums, slots[turn], 0, warps);
    const float g_mean = sums.x / count;
    const float gx_mean = sums.y * rstd / count;
    const RowDropout::Row counters = a.dropout.row(row);
    for (int c = static_cast<int>(threadIdx.x); c < a.channels; c += static_cast<int>(blockDim.x)) {
      const float normalized = (to_float(a.in[start + c]) - mean) * rstd;
      const float g = __fmul_rn(to_float(a.dout[start + c]), to_float(a.weight[c])) - g_mean;
      const R gradient =
          from_float<R>(to_float(a.din[start + c]) + (g - normalized * gx_mean) * rstd);
      a.din[start + c] = gradient;
      if constexpr (kResidual) {
        a.dbranch[start + c] = from_float<A>(a.dropout.apply(to_float(gradient), counters, c));
      }
    }
  }
}

constexpr int kColumnThreads = 32;  // columns of a block
constexpr int kRowThreads = 8;      // rows of it that are summed side by side

/// Column sums for rows that differentiate_rows_any() has been over: block (x, y) sums every
/// gridDim.y-th group of rows of its columns.
template <typename R, typename A, bool kResidual>
__global__ void sum_columns_any(BackwardRows<R, A> a) {
  __shared__ float shared[3][kRowThreads][kColumnThreads];
  const int column = static_cast<int>(blockIdx.x) * kColumnThreads + static_cast<int>(threadIdx.x);
  float dweight = 0.0f;
  float dbias = 0.0f;
  float dbranch_bias = 0.0f;
  if (column < a.channels) {
    for (int row = static_cast<int>(blockIdx.y) * kRowThreads + static_cast<int>(threadIdx.y);
         row < a.rows; row += static_cast<int>(gridDim.y) * kRowThreads) {
      const int64_t place = static_cast<int64_t>(row) * a.channels + column;
      const float up = to_float(a.dout[place]);
      dweight += up * ((to_float(a.in[place]) - a.mean[row]) * a.rstd[row]);
      dbias += up;
      if constexpr (kResidual) {
        dbranch_bias += a.dropout.apply(to_float(a.din[place]), a.dropout.row(row), column);
      }
    }
  }
  shared[0][threadIdx.y][threadIdx.x] = dweight;
  shared[1][threadIdx.y][threadIdx.x] = dbias;
  shared[2][threadIdx.y][threadIdx.x] = dbranch_bias;
  __syncthreads();
  if (threadIdx.y == 0 && column < a.channels) {
    for (int set = 0; set < (kResidual ? 3 : 2); ++set) {
      float total = shared[set][0][threadIdx.x];
      for (int y = 1; y < kRowThreads; ++y) total += shared[set][y][threadIdx.x];
      a.partials[(static_cast<int64_t>(set) * gridDim.y + blockIdx.y) * a.channels + column] =
          total;
    }
  }
}

int divide_up(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

void require_rows(const char* operation, int64_t rows, int64_t channels) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 4096;
  if (channels < 1 || channels > kMost || rows < 0 || rows > kMost) {
    throw_shape_error(std::string(operation) + ": " + std::to_string(rows) + " rows of " +
                      std::to_string(channels) + " channels");
  }
}

/// Vectors of a row for each thread of a team, and the team.
struct Team {
  int vectors_per_thread = 1;
  int warps_per_row = 1;
};

/// The team asked for, or one warp if its threads can hold the row, or as many as make a thread
/// hold at most `shared` vectors. 0 warps where even the largest team does not hold it.
Team team_for(int vectors, int alone, int shared, int most, int asked_warps) {
  Team team{.vectors_per_thread = 0, .warps_per_row = 0};
  if (vectors == 0) return team;
  int warps = asked_warps > 0 ? asked_warps : 1;
  if (asked_warps == 0 && vectors > alone * kWarp) {
    warps = std::min(divide_up(vectors, shared * kWarp), kMostWarps);
  }
  team.vectors_per_thread = divide_up(vectors, warps * kWarp);
  team.warps_per_row = team.vectors_per_thread > most || warps > kMostWarps ? 0 : warps;
  return team;
}

template <typename R, typename A, bool kResidual>
void normalize(const LayernormForward& l, const ForwardRows<R, A>& given, cudaStream_t stream) {
  ForwardRows<R, A> a = given;
  if (a.rows == 0) return;
  constexpr int N = kLanesOfBoth<R, A>;
  bool aligned = rows_are_aligned(a.out, a.channels, N) &&
                 rows_are_aligned(a.weight, a.channels, N) &&
                 (a.bias == nullptr || rows_are_aligned(a.bias, a.channels, N));
  if (kResidual) {
    aligned = aligned && rows_are_aligned(a.stream, a.channels, N) &&
              rows_are_aligned(a.branch, a.channels, N) &&
              rows_are_aligned(a.residual, a.channels, N) &&
              (a.branch_bias == nullptr || rows_are_aligned(a.branch_bias, a.channels, N));
  } else {
    aligned = aligned && rows_are_aligned(a.in, a.channels, N);
  }
  // A vector of each of K loads is under way at once.
  constexpr int kMost = kResidual ? 4 : 8;
  const Team team = team_for(a.channels / N, kMost, 4, kMost, l.plan.warps_per_row);
  if (!aligned || team.warps_per_row == 0) {
    launch(normalize_rows_any<R, A, kResidual>,
           {.grid = static_cast<unsigned>(a.rows), .block = kScalarThreads}, stream, a);
    return;
  }
  a.warps_per_row = team.warps_per_row;
  const int rows_per_block = std::clamp(l.plan.rows_per_block, 1, kMostWarps / team.warps_per_row);
  const int all = divide_up(a.rows, rows_per_block);
  const int blocks = l.plan.blocks > 0 ? std::min(l.plan.blocks, all) : all;
  const Launch shape{.grid = static_cast<unsigned>(blocks),
                     .block = static_cast<unsigned>(rows_per_block * team.warps_per_row * kWarp)};
  switch (team.vectors_per_thread) {
    case 1:
      return launch(normalize_rows<R, A, N, 1, kResidual>, shape, stream, a);
    case 2:
      return launch(normalize_rows<R, A, N, 2, kResidual>, shape, stream, a);
    case 3:
      return launch(normalize_rows<R, A, N, 3, kResidual>, shape, stream, a);
    case 4:
      return launch(normalize_rows<R, A, N, 4, kResidual>, shape, stream, a);
    default:
      if constexpr (!kResidual) {
        if (team.vectors_per_thread <= 6) {
          return launch(normalize_rows<R, A, N, 6, kResidual>, shape, stream, a);
        }
        return launch(normalize_rows<R, A, N, 8, kResidual>, shape, stream, a);
      }
  }
}

/// How the blocks of a backward lie, by what an H100 ran fastest; what the plan asks for comes
/// first.
struct BackwardLayout {
  int rows_per_block;
  int blocks;
  bool ahead;
};
BackwardLayout backward_layout(const RowPlan& plan, const Team& team, bool residual) {
  const int warps = team.warps_per_row;
  BackwardLayout layout{std::max(1, 8 / warps), 264, false};
  if (residual && team.vectors_per_thread == 1) {
    const bool wide = warps >= 8;
    layout = {wide ? kMostWarps / warps : 1, wide ? 132 : kMostPartials, wide || warps <= 4};
  }
  if (plan.rows_per_block > 0) {
    layout.rows_per_block = std::clamp(plan.rows_per_block, 1, kMostWarps / warps);
  }
  if (plan.blocks > 0) layout.blocks = std::min(plan.blocks, kMostPartials);
  if (plan.blocks > 0 || plan.rows_per_block > 0 || plan.ahead) layout.ahead = plan.ahead;
  return layout;
}

template <typename R, typename A, bool kResidual>
void differentiate(const LayernormBackward& l, float* dbranch_bias, const BackwardRows<R, A>& given,
                   cudaStream_t stream) {
  BackwardRows<R, A> a = given;
  if (a.rows == 0) return;
  constexpr int N = kLanesOfBoth<R, A>;
  bool aligned = rows_are_aligned(a.din, a.channels, N) && rows_are_aligned(a.in, a.channels, N) &&
                 rows_are_aligned(a.dout, a.channels, N) &&
                 rows_are_aligned(a.weight, a.channels, N);
  if (kResidual) aligned = aligned && rows_are_aligned(a.dbranch, a.channels, N);
  // A thread has registers for two sums of 16 elements; with three sums, for one vector and the row
  // ahead.
  constexpr int kMost = kResidual ? 1 : 16 / N;
  constexpr int kPreferred = std::min(kMost, 3);
  const Team team = team_for(a.channels / N, kPreferred, kPreferred, kMost, l.plan.warps_per_row);
  AddPartials sums{.total = {l.dweight, l.dbias, dbranch_bias},
                   .partials = a.partials,
                   .sets = kResidual ? 3 : 2,
                   .columns = a.channels};
  if (!aligned || team.warps_per_row == 0) {
    launch(differentiate_rows_any<R, A, kResidual>,
           {.grid = static_cast<unsigned>(a.rows), .block = kScalarThreads}, stream, a);
    sums.count = std::min(64, divide_up(a.rows, kRowThreads));
    const dim3 grid(static_cast<unsigned>(divide_up(a.channels, kColumnThreads)),
                    static_cast<unsigned>(sums.count));
    launch(sum_columns_any<R, A, kResidual>,
           {.grid = grid, .block = dim3(kColumnThreads, kRowThreads)}, stream, a);
  } else {
    a.warps_per_row = team.warps_per_row;
    const BackwardLayout layout = backward_layout(l.plan, team, kResidual);
    sums.count = std::min(layout.blocks, divide_up(a.rows, layout.rows_per_block));
    const Launch shape{
        .grid = static_cast<unsigned>(sums.count),
        .block = static_cast<unsigned>(layout.rows_per_block * team.warps_per_row * kWarp),
        .shared_bytes = static_cast<size_t>(a.channels) * sizeof(float)};
    const auto run = [&](auto kernel) { launch(kernel, shape, stream, a); };
    if (kMost == 1 || team.vectors_per_thread == 1) {
      layout.ahead ? run(differentiate_rows<R, A, N, 1, kResidual, true>)
                   : run(differentiate_rows<R, A, N, 1, kResidual, false>);
    } else if constexpr (kMost == 2) {
      run(differentiate_rows<R, A, N, 2, kResidual, false>);
    } else if constexpr (kMost == 4) {
      team.vectors_per_thread <= 3 ? run(differentiate_rows<R, A, N, 3, kResidual, false>)
                                   : run(differentiate_rows<R, A, N, 4, kResidual, false>);
    }
  }
  add_partials(sums, stream);
}

template <typename R, typename A>
ForwardRows<R, A> forward_rows(const LayernormForward& l) {
  return {.out = static_cast<A*>(l.out),
          .mean = l.mean,
          .rstd = l.rstd,
          .in = static_cast<const R*>(l.in),
          .weight = static_cast<const A*>(l.weight),
          .bias = static_cast<const A*>(l.bias),
          .rows = static_cast<int>(l.rows),
          .channels = static_cast<int>(l.channels),
          .epsilon = l.epsilon,
          .warps_per_row = 1,
          .stream = nullptr,
          .branch = nullptr,
          .branch_bias = nullptr,
          .residual = nullptr,
          .dropout = {}};
}

template <typename R, typename A>
BackwardRows<R, A> backward_rows(const LayernormBackward& l) {
  return {.din = static_cast<R*>(l.din),
          .dout = static_cast<const A*>(l.dout),
          .in = static_cast<const R*>(l.in),
          .weight = static_cast<const A*>(l.weight),
          .mean = l.mean,
          .rstd = l.rstd,
          .partials = static_cast<float*>(l.scratch),
          .rows = static_cast<int>(l.rows),
          .channels = static_cast<int>(l.channels),
          .warps_per_row = 1,
          .dbranch = nullptr,
          .dropout = {}};
}

}  // namespace

void layernorm_forward(const LayernormForward& l, cudaStream_t stream) {
  constexpr const char* kName = "layernorm_forward";
  require_rows(kName, l.rows, l.channels);
  dispatch_precision(kName, l.residual_dtype, l.activation_dtype,
                     [&]<typename R, typename A>(R, A) {
                       normalize<R, A, false>(l, forward_rows<R, A>(l), stream);
                     });
}

void residual_layernorm_forward(const ResidualForward& r, const LayernormForward& l,
                                cudaStream_t stream) {
  constexpr const char* kName = "residual_layernorm_forward";
  require_rows(kName, l.rows, l.channels);
  dispatch_precision(kName, l.residual_dtype, l.activation_dtype,
                     [&]<typename R, typename A>(R, A) {
                       ForwardRows<R, A> a = forward_rows<R, A>(l);
                       a.stream = static_cast<R*>(r.stream);
                       a.branch = static_cast<const A*>(r.branch);
                       a.branch_bias = static_cast<const A*>(r.bias);
                       a.residual = static_cast<const R*>(r.residual);
                       a.dropout = RowDropout(r.dropout, r.positions);
                       normalize<R, A, true>(l, a, stream);
                     });
}

void layernorm_backward(const LayernormBackward& l, cudaStream_t stream) {
  constexpr const char* kName = "layernorm_backward";
  require_rows(kName, l.rows, l.channels);
  dispatch_precision(kName, l.residual_dtype, l.activation_dtype,
                     [&]<typename R, typename A>(R, A) {
                       differentiate<R, A, false>(l, nullptr, backward_rows<R, A>(l), stream);
                     });
}

void residual_layernorm_backward(const ResidualBackward& r, const LayernormBackward& l,
                                 cudaStream_t stream) {
  constexpr const char* kName = "residual_layernorm_backward";
  require_rows(kName, l.rows, l.channels);
  dispatch_precision(kName, l.residual_dtype, l.activation_dtype,
                     [&]<typename R, typename A>(R, A) {
                       if (l.channels > kMostWarps * kWarp * kLanesOfBoth<R, A>) {
                         // A row that a team does not hold with three sums an element beside it.
                         layernorm_backward(l, stream);
                         return residual_backward({.din = r.dbranch,
                                                   .dbias = r.dbias,
                                                   .dout = l.din,
                                                   .rows = l.rows,
                                                   .channels = l.channels,
                                                   .positions = r.positions,
                                                   .dropout = r.dropout,
                                                   .residual_dtype = l.residual_dtype,
                                                   .activation_dtype = l.activation_dtype,
                                                   .scratch = l.scratch},
                                                  stream);
                       }
                       BackwardRows<R, A> a = backward_rows<R, A>(l);
                       a.dbranch = static_cast<A*>(r.dbranch);
                       a.dropout = RowDropout(r.dropout, r.positions);
                       differentiate<R, A, true>(l, r.dbias, a, stream);
                     });
}

int64_t layernorm_backward_scratch(int64_t rows, int64_t channels) {
  return 3 * std::min<int64_t>(kMostPartials, std::max<int64_t>(rows, 1)) * channels *
         static_cast<int64_t>(sizeof(float));
}

}  // namespace gradus::cuda
