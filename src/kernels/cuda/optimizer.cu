// AdamW over many slices in one launch, and the partial sums of the gradient's norm. What all
// elements share is computed by one thread first. A block then takes one chunk of a slice, every
// thread reads all of its vectors before it computes; an element costs 30 bytes of memory with a
// bf16 parameter (grad, m, v, master read; m, v, master, param written). The largest magnitudes are
// found as whole numbers: bit patterns of magnitudes are in their order. Squares are summed a warp
// a chunk of 1024 elements, in fp64: 4 bytes an element.

#include <algorithm>

#include "kernels/cuda/column_strip.cuh"
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/optimizer.h"
#include "kernels/cuda/precision.h"
#include "kernels/cuda/vector.cuh"
#include "kernels/cuda/warp.cuh"

namespace gradus::cuda {
namespace {

constexpr int kNormChunk = 1024;
constexpr int kThreads = 256;
constexpr int kLanes = 4;  // fp32 in 16 bytes

template <typename T>
__global__ void __launch_bounds__(kThreads)
    square_chunks(double* partials, const T* in, int64_t count, bool aligned) {
  constexpr int N = kLanesOf<T>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  const int64_t chunks = (count + kNormChunk - 1) / kNormChunk;
  for (int64_t chunk = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
       chunk < chunks; chunk += warps) {
    const int64_t first = chunk * kNormChunk;
    const auto size = static_cast<int>(count - first < kNormChunk ? count - first : kNormChunk);
    double sum = 0.0;
    // In the same order whether or not 16 bytes can be had at once.
    if (aligned && size == kNormChunk) {
      constexpr int kLoads = kNormChunk / kWarp / N;
      Packed<T, N> packed[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) packed[i].load(in + first + (i * kWarp + lane) * N);
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        float value[N];
        packed[i].widen(value);
#pragma unroll
        for (int j = 0; j < N; ++j) {
          sum = fma(static_cast<double>(value[j]), static_cast<double>(value[j]), sum);
        }
      }
    } else {
      for (int begin = lane * N; begin < size; begin += kWarp * N) {
        for (int i = begin; i < begin + N && i < size; ++i) {
          const double value = to_float(in[first + i]);
          sum = fma(value, value, sum);
        }
      }
    }
    sum = warp_sum(sum);
    if (lane == 0) partials[chunk] = sum;
  }
}

constexpr int kSumThreads = 1024;

__global__ void __launch_bounds__(kSumThreads)
    add_all(double* out, const double* partials, int64_t count) {
  __shared__ double sums[kSumThreads / kWarp];
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kSumThreads) sum += partials[i];
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    double total = 0.0;
    for (const double part : sums) total += part;
    *out = total;
  }
}

/// What the elements share, in fp32; computed in fp64.
struct Scalars {
  float clip_scale;
  float beta1;
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float epsilon;
  float step_size;
  float second_factor;
  double lr;
  int32_t halted;  ///< the step is not applied
};
static_assert(sizeof(Scalars) <= kAdamWScratch);

__global__ void share_scalars(AdamWStep a) {
  const auto t = static_cast<double>(a.state->applied);
  const double lr = a.state->lr;
  Scalars s;
  s.clip_scale = a.state->clip_scale;
  s.beta1 = static_cast<float>(a.beta1);
  s.one_minus_beta1 = static_cast<float>(1.0 - a.beta1);
  s.beta2 = static_cast<float>(a.beta2);
  s.one_minus_beta2 = static_cast<float>(1.0 - a.beta2);
  s.epsilon = static_cast<float>(a.epsilon);
  s.step_size = static_cast<float>(lr / (1.0 - pow(a.beta1, t)));
  s.second_factor = static_cast<float>(1.0 / sqrt(1.0 - pow(a.beta2, t)));
  s.lr = lr;
  s.halted = a.state->nonfinite;
  *static_cast<Scalars*>(a.scratch) = s;
}

/// The largest magnitudes that a thread has written, as bit patterns.
struct Magnitudes {
  unsigned weight = 0;
  unsigned first = 0;
  unsigned second = 0;
};

__device__ unsigned larger_magnitude(unsigned most, float value) {
  const unsigned bits = __float_as_uint(value) & 0x7fffffffu;
  return bits > most ? bits : most;
}

/// out = max(out, magnitude), infinity for one that is not finite. After a few blocks hardly any
/// has a larger one to bring: they look before they queue for the atomic.
__device__ void raise(double* out, unsigned bits) {
  constexpr unsigned kInfinity = 0x7f800000u;
  const double found = __uint_as_float(bits > kInfinity ? kInfinity : bits);
  if (found <= *static_cast<const volatile double*>(out)) return;
  atomicMax(reinterpret_cast<unsigned long long*>(out),
            static_cast<unsigned long long>(__double_as_longlong(found)));
}

/// N elements: g, m, v, w as they were read; what is to be written on return.
template <int N>
__device__ void update(const float (&g)[N], float (&m)[N], float (&v)[N], float (&w)[N],
                       const Scalars& s, float decay, Magnitudes& most) {
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const float gradient = __fmul_rn(g[j], s.clip_scale);
    m[j] = fmaf(s.beta1, m[j], __fmul_rn(s.one_minus_beta1, gradient));
    v[j] = fmaf(s.beta2, v[j], __fmul_rn(s.one_minus_beta2, __fmul_rn(gradient, gradient)));
    const float denominator = fmaf(sqrtf(v[j]), s.second_factor, s.epsilon);
    // Decay and step are added before they meet the weight, which is rounded once.
    const float step = __fmul_rn(s.step_size, m[j]) / denominator;
    w[j] = __fadd_rn(w[j], -fmaf(decay, w[j], step));
    most.weight = larger_magnitude(most.weight, w[j]);
    most.first = larger_magnitude(most.first, m[j]);
    most.second = larger_magnitude(most.second, v[j]);
  }
}

/// The slice's pointers at an element.
template <typename P>
struct Elements {
  P* param;
  float* weights;
  float* m;
  float* v;
  const float* grad;

  __device__ Elements(const AdamWSlice& slice, int64_t first)
      : param(static_cast<P*>(slice.param) + first),
        m(slice.m + first),
        v(slice.v + first),
        grad(slice.grad + first) {
    if constexpr (sizeof(P) == 4) {
      weights = param;
    } else {
      weights = slice.master + first;
    }
  }
  __device__ bool aligned() const {
    return (reinterpret_cast<uintptr_t>(weights) | reinterpret_cast<uintptr_t>(m) |
            reinterpret_cast<uintptr_t>(v) | reinterpret_cast<uintptr_t>(grad) |
            reinterpret_cast<uintptr_t>(param) * (4 / sizeof(P))) %
               16 ==
           0;
  }
  template <int N>
  __device__ void store(int place, const float (&new_m)[N], const float (&new_v)[N],
                        const float (&new_w)[N]) const {
    store_floats(m + place, new_m);
    store_floats(v + place, new_v);
    store_floats(weights + place, new_w);
    if constexpr (sizeof(P) != 4) store_floats(param + place, new_w);
  }
};

/// V: vectors of four that a thread takes.
template <typename P, int V>
__global__ void __launch_bounds__(kThreads) update_chunk(AdamWStep a) {
  __shared__ unsigned warps_most[3][kThreads / kWarp];
  const AdamWChunk chunk = a.chunks[blockIdx.x];
  const AdamWSlice slice = a.slices[chunk.slice];
  const Scalars s = *static_cast<const Scalars*>(a.scratch);
  if (s.halted != 0) return;
  const Elements<P> at(slice, chunk.first);
  const auto decay = static_cast<float>(s.lr * slice.weight_decay);
  const auto thread = static_cast<int>(threadIdx.x);
  constexpr int kSize = kThreads * kLanes * V;
  const int64_t left = slice.count - chunk.first;
  const auto size = static_cast<int>(left < kSize ? left : kSize);
  Magnitudes most;
  if (size == kSize && at.aligned()) {
    float g[V][kLanes];
    float m[V][kLanes];
    float v[V][kLanes];
    float w[V][kLanes];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const int place = (i * kThreads + thread) * kLanes;
      load_floats(g[i], at.grad + place);
      load_floats(m[i], at.m + place);
      load_floats(v[i], at.v + place);
      load_floats(w[i], at.weights + place);
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
      update(g[i], m[i], v[i], w[i], s, decay, most);
      at.store((i * kThreads + thread) * kLanes, m[i], v[i], w[i]);
    }
  } else {
    for (int place = thread; place < size; place += kThreads) {
      const float g[1] = {at.grad[place]};
      float m[1] = {at.m[place]};
      float v[1] = {at.v[place]};
      float w[1] = {at.weights[place]};
      update(g, m, v, w, s, decay, most);
      at.store(place, m, v, w);
    }
  }
  most.weight = __reduce_max_sync(kAllLanes, most.weight);
  most.first = __reduce_max_sync(kAllLanes, most.first);
  most.second = __reduce_max_sync(kAllLanes, most.second);
  if (thread % kWarp == 0) {
    warps_most[0][thread / kWarp] = most.weight;
    warps_most[1][thread / kWarp] = most.first;
    warps_most[2][thread / kWarp] = most.second;
  }
  __syncthreads();
  if (thread < 3) {
    unsigned block_most = 0;
    for (const unsigned bits : warps_most[thread])
      block_most = bits > block_most ? bits : block_most;
    raise(a.largest + thread, block_most);
  }
}

}  // namespace

void sum_of_squares(const SumOfSquares& a, cudaStream_t stream) {
  if (a.count == 0) return;
  dispatch_float("sum_of_squares", a.dtype, [&]<typename T>(T) {
    const auto* in = static_cast<const T*>(a.in);
    constexpr int64_t kPerBlock = kNormChunk * (kThreads / kWarp);
    const int64_t blocks = std::min<int64_t>((a.count + kPerBlock - 1) / kPerBlock, 1 << 20);
    launch(square_chunks<T>, {.grid = static_cast<unsigned>(blocks), .block = kThreads}, stream,
           a.partials, in, a.count, are_aligned(in));
  });
}

void sum_partials(double* out, const double* partials, int64_t count, cudaStream_t stream) {
  launch(add_all, {.grid = 1, .block = kSumThreads}, stream, out, partials, count);
}

int64_t adamw_chunks(std::span<const AdamWSlice> slices, int64_t size) {
  int64_t chunks = 0;
  for (const AdamWSlice& slice : slices) chunks += (slice.count + size - 1) / size;
  return chunks;
}

void list_adamw_chunks(std::span<const AdamWSlice> slices, std::span<AdamWChunk> chunks,
                       int64_t size) {
  size_t next = 0;
  for (size_t i = 0; i < slices.size(); ++i) {
    for (int64_t first = 0; first < slices[i].count; first += size) {
      chunks[next++] = {first, static_cast<int64_t>(i)};
    }
  }
}

void adamw_step(const AdamWStep& a, cudaStream_t stream) {
  if (a.chunk_count == 0) return;
  launch(share_scalars, {.grid = 1, .block = 1}, stream, a);
  dispatch_float("adamw_step", a.param_dtype, [&]<typename P>(P) {
    const Launch shape{.grid = static_cast<unsigned>(a.chunk_count), .block = kThreads};
    switch (a.chunk_size) {
      case 1024:
        return launch(update_chunk<P, 1>, shape, stream, a);
      case 2048:
        return launch(update_chunk<P, 2>, shape, stream, a);
      case 4096:
        return launch(update_chunk<P, 4>, shape, stream, a);
      default:
        throw_shape_error("adamw_step: chunks of " + std::to_string(a.chunk_size) +
                          " elements, not 1024, 2048 or 4096");
    }
  });
}

}  // namespace gradus::cuda
