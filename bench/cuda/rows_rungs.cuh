#pragma once

// The lower rungs of rows_bench: kernels as one writes them first. They stay here to say what each
// step up was worth. No checks of shapes: the ladder gives them what they can take.

#include <cstdint>

#include "kernels/cuda/dynamic_shared.cuh"
#include "kernels/cuda/vector.cuh"
#include "kernels/cuda/warp.cuh"

namespace gradus::bench {

using cuda::from_float;
using cuda::kWarp;
using cuda::Packed;
using cuda::to_float;
using cuda::warp_sum;

/// The roofline by a kernel: 16 bytes a thread and turn.
__global__ void copy_kernel(uint4* out, const uint4* in, int64_t count) {
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += threads) {
    out[i] = in[i];
  }
}

/// Sum over the block, in every thread; slots of one float a warp.
__device__ inline float block_sum(float value, float* slots) {
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) slots[threadIdx.x / kWarp] = value;
  __syncthreads();
  float total = 0.0f;
  for (unsigned w = 0; w < blockDim.x / kWarp; ++w) total += slots[w];
  return total;
}

// ---- layernorm forward ----

/// 1: a block a row, element by element, the row read three times.
template <typename T>
__global__ void layernorm_forward_1(T* out, float* mean, float* rstd, const T* in, const T* weight,
                                    const T* bias, int channels) {
  __shared__ float slots[32];
  const int64_t start = static_cast<int64_t>(blockIdx.x) * channels;
  float sum = 0.0f;
  for (int c = threadIdx.x; c < channels; c += blockDim.x) sum += to_float(in[start + c]);
  const float m = block_sum(sum, slots) / channels;
  float squares = 0.0f;
  for (int c = threadIdx.x; c < channels; c += blockDim.x) {
    const float d = to_float(in[start + c]) - m;
    squares += d * d;
  }
  const float r = 1.0f / sqrtf(block_sum(squares, slots) / channels + 1e-5f);
  for (int c = threadIdx.x; c < channels; c += blockDim.x) {
    const float x = (to_float(in[start + c]) - m) * r;
    out[start + c] = from_float<T>(x * to_float(weight[c]) + to_float(bias[c]));
  }
  if (threadIdx.x == 0) {
    mean[blockIdx.x] = m;
    rstd[blockIdx.x] = r;
  }
}

/// 2 (N = 1) and 3 (N elements in 16 bytes): a warp a row, read three times.
template <typename T, int N>
__global__ void layernorm_forward_2(T* out, float* mean, float* rstd, const T* in, const T* weight,
                                    const T* bias, int rows, int channels) {
  const int lane = threadIdx.x % kWarp;
  const int row = static_cast<int>(blockIdx.x) * (blockDim.x / kWarp) + threadIdx.x / kWarp;
  if (row >= rows) return;
  const int64_t start = static_cast<int64_t>(row) * channels;
  const auto load = [](float(&v)[N], const T* from) {
    if constexpr (N == 1) {
      v[0] = to_float(*from);
    } else {
      Packed<T, N> p;
      p.load(from);
      p.widen(v);
    }
  };
  float v[N];
  float sum = 0.0f;
  for (int c = lane * N; c < channels; c += kWarp * N) {
    load(v, in + start + c);
    for (int j = 0; j < N; ++j) sum += v[j];
  }
  const float m = warp_sum(sum) / channels;
  float squares = 0.0f;
  for (int c = lane * N; c < channels; c += kWarp * N) {
    load(v, in + start + c);
    for (int j = 0; j < N; ++j) squares += (v[j] - m) * (v[j] - m);
  }
  const float r = 1.0f / sqrtf(warp_sum(squares) / channels + 1e-5f);
  for (int c = lane * N; c < channels; c += kWarp * N) {
    float w[N];
    float b[N];
    load(v, in + start + c);
    load(w, weight + c);
    load(b, bias + c);
    for (int j = 0; j < N; ++j) v[j] = (v[j] - m) * r * w[j] + b[j];
    if constexpr (N == 1) {
      out[start + c] = from_float<T>(v[0]);
    } else {
      Packed<T, N> p;
      p.narrow(v);
      p.store(out + start + c);
    }
  }
  if (lane == 0) {
    mean[row] = m;
    rstd[row] = r;
  }
}

// ---- layernorm backward ----

/// 1: din by a block a row; dweight and dbias by a thread a column and slab of rows, which the
/// ladder's add_partials adds.
template <typename T>
__global__ void layernorm_backward_rows_1(T* din, const T* dout, const T* in, const T* weight,
                                          const float* mean, const float* rstd, int channels) {
  __shared__ float slots[32];
  const int64_t start = static_cast<int64_t>(blockIdx.x) * channels;
  const float m = mean[blockIdx.x];
  const float r = rstd[blockIdx.x];
  float g_sum = 0.0f;
  float gx_sum = 0.0f;
  for (int c = threadIdx.x; c < channels; c += blockDim.x) {
    const float g = to_float(dout[start + c]) * to_float(weight[c]);
    g_sum += g;
    gx_sum += g * (to_float(in[start + c]) - m) * r;
  }
  g_sum = block_sum(g_sum, slots) / channels;
  gx_sum = block_sum(gx_sum, slots) / channels;
  for (int c = threadIdx.x; c < channels; c += blockDim.x) {
    const float g = to_float(dout[start + c]) * to_float(weight[c]);
    const float x = (to_float(in[start + c]) - m) * r;
    din[start + c] = from_float<T>(to_float(din[start + c]) + (g - g_sum - x * gx_sum) * r);
  }
}

template <typename T>
__global__ void layernorm_backward_columns_1(float* partials, const T* dout, const T* in,
                                             const float* mean, const float* rstd, int rows,
                                             int channels) {
  const int column = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (column >= channels) return;
  float dweight = 0.0f;
  float dbias = 0.0f;
  for (int row = blockIdx.y; row < rows; row += gridDim.y) {
    const int64_t place = static_cast<int64_t>(row) * channels + column;
    const float up = to_float(dout[place]);
    dweight += up * (to_float(in[place]) - mean[row]) * rstd[row];
    dbias += up;
  }
  partials[static_cast<int64_t>(blockIdx.y) * channels + column] = dweight;
  partials[(static_cast<int64_t>(gridDim.y) + blockIdx.y) * channels + column] = dbias;
}

// ---- GELU ----

/// 1: an element a thread, by tanhf.
template <typename T>
__global__ void gelu_forward_1(T* out, const T* in, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const float x = to_float(in[i]);
  out[i] =
      from_float<T>(0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x))));
}

template <typename T>
__global__ void gelu_backward_1(T* din, const T* dout, const T* in, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const float x = to_float(in[i]);
  const float t = tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x));
  const float slope = 0.7978845608028654f * (1.0f + 3.0f * 0.044715f * x * x);
  din[i] =
      from_float<T>(to_float(dout[i]) * (0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * slope));
}

// ---- column sums ----

/// 1: a thread a column, all rows.
template <typename T>
__global__ void column_sums_1(float* total, const T* in, int rows, int columns) {
  const int column = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (column >= columns) return;
  float sum = 0.0f;
  for (int row = 0; row < rows; ++row) {
    sum += to_float(in[static_cast<int64_t>(row) * columns + column]);
  }
  total[column] += sum;
}

// ---- AdamW ----

/// 1: an element a thread, one tensor; no verdict, no magnitudes.
template <typename T>
__global__ void adamw_1(T* param, float* master, float* m, float* v, const float* grad,
                        int64_t count, float beta1, float beta2, float epsilon, float step_size,
                        float second_factor, float decay, float clip_scale) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const float g = grad[i] * clip_scale;
  const float m_new = beta1 * m[i] + (1.0f - beta1) * g;
  const float v_new = beta2 * v[i] + (1.0f - beta2) * g * g;
  const float w = master[i];
  const float w_new =
      w - (decay * w + step_size * m_new / (sqrtf(v_new) * second_factor + epsilon));
  m[i] = m_new;
  v[i] = v_new;
  master[i] = w_new;
  param[i] = from_float<T>(w_new);
}

// ---- sum of squares ----

/// 1: a thread a chunk of 1024.
__global__ void sum_of_squares_1(double* partials, const float* in, int64_t count) {
  const int64_t chunk = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t first = chunk * 1024;
  if (first >= count) return;
  const int64_t end = first + 1024 < count ? first + 1024 : count;
  double sum = 0.0;
  for (int64_t i = first; i < end; ++i) sum += static_cast<double>(in[i]) * in[i];
  partials[chunk] = sum;
}

// ---- embedding ----

/// 1: an element a thread adds itself to the table atomically: not the same bits twice.
template <typename T>
__global__ void token_embedding_backward_1(float* dweight, const T* dout, const int32_t* tokens,
                                           int64_t count, int channels) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int64_t row = tokens[i / channels];
  atomicAdd(dweight + row * channels + i % channels, to_float(dout[i]));
}

// ---- cross entropy ----

/// 1: a block a row, element by element: maximum, sum, gradient, each with a reading of its own.
template <typename T>
__global__ void cross_entropy_1(T* logits, float* lse, const int32_t* targets, int columns,
                                int real, float scale) {
  __shared__ float slots[32];
  T* row = logits + static_cast<int64_t>(blockIdx.x) * columns;
  float most = -3.4e38f;
  for (int c = threadIdx.x; c < real; c += blockDim.x) most = fmaxf(most, to_float(row[c]));
  most = cuda::warp_max(most);
  if (threadIdx.x % kWarp == 0) slots[threadIdx.x / kWarp] = most;
  __syncthreads();
  for (unsigned w = 0; w < blockDim.x / kWarp; ++w) most = fmaxf(most, slots[w]);
  float sum = 0.0f;
  for (int c = threadIdx.x; c < real; c += blockDim.x) sum += expf(to_float(row[c]) - most);
  sum = block_sum(sum, slots);
  const float l = most + logf(sum);
  const int target = targets[blockIdx.x];
  for (int c = threadIdx.x; c < columns; c += blockDim.x) {
    float p = c < real ? expf(to_float(row[c]) - l) : 0.0f;
    if (c == target) p -= 1.0f;
    if (target < 0) p = 0.0f;
    row[c] = from_float<T>(scale * p);
  }
  if (threadIdx.x == 0) lse[blockIdx.x] = l;
}

}  // namespace gradus::bench
