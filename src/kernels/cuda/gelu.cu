// GELU by its tanh form, with the bias of the product before it. With u = √(2/π) (x + 0.044715 x³),
// (1 + tanh u) / 2 = 1 / (1 + 2^t), t = -2 log2(e) u: one exponential, and no cancellation where
// tanh nears -1. Forward reads in and writes out; backward reads dout and in, writes din, and sums
// its columns on the way (column_strip.cuh), which spares the bias gradient a reading of its own.

#include "kernels/cuda/column_strip.cuh"
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/gelu.h"
#include "kernels/cuda/precision.h"

namespace gradus::cuda {
namespace {

constexpr float kCubic = 0.044715f;
constexpr float kTwiceSqrt2OverPi = 1.59576912160573071176f;
constexpr float kLog2E = 1.44269504088896340736f;

/// t by x.
__device__ float exponent(float x) {
  return x * fmaf(x * x, -kTwiceSqrt2OverPi * kLog2E * kCubic, -kTwiceSqrt2OverPi * kLog2E);
}

__device__ float gelu(float x) {
  // 2^t may be infinite: x / inf is 0 for x < 0, and NaN for -inf.
  return __fdividef(x, 1.0f + exp2_approx(exponent(x)));
}

/// gelu'(x) = s (1 + (1 - s) · 2 x du/dx) with s = 1 / (1 + e), 1 - s = e s, e = 2^t.
__device__ float gelu_derivative(float x) {
  // Past the bound the derivative is 0 or 1 to the last bit; at it, e is still finite. NaN is not
  // past it and goes through.
  constexpr float kBound = 9.9f;
  const float clamped = fabsf(x) > kBound ? copysignf(kBound, x) : x;
  const float e = exp2_approx(exponent(clamped));
  const float s = __fdividef(1.0f, 1.0f + e);
  const float slope =
      clamped * fmaf(clamped * clamped, 3.0f * kTwiceSqrt2OverPi * kCubic, kTwiceSqrt2OverPi);
  return fmaf(e * s * slope, s, s);
}

/// Flat: no bias.
template <typename T>
struct Apply {
  T* out;
  const T* in;

  template <int N>
  __device__ void take(int64_t place) const {
    float value[N];
    load_floats(value, in + place);
#pragma unroll
    for (int j = 0; j < N; ++j) value[j] = gelu(value[j]);
    store_floats(out + place, value);
  }
};

template <typename T>
struct ApplyBiased {
  T* out;
  const T* in;
  const T* bias;
  int64_t columns;

  template <int N>
  using Column = OptionalLanes<T, N>;
  template <int N>
  using Row = Lanes<T, N>;

  template <int N>
  __device__ Column<N> column(int64_t column) const {
    return {bias, column};
  }
  template <int N>
  __device__ Row<N> load(int64_t row, int64_t column) const {
    Row<N> lanes;
    lanes.load(in + row * columns + column);
    return lanes;
  }
  template <int N>
  __device__ void finish(float (&value)[N], const Column<N>& shift, const Row<N>& read, int64_t row,
                         int64_t column) const {
    read.widen(value);
    shift.add_to(value);
#pragma unroll
    for (int j = 0; j < N; ++j) value[j] = gelu(value[j]);
    store_floats(out + row * columns + column, value);
  }
};

template <typename T>
struct Differentiate {
  T* din;
  const T* dout;
  const T* in;

  template <int N>
  __device__ void take(int64_t place) const {
    float value[N];
    float up[N];
    load_floats(value, in + place);
    load_floats(up, dout + place);
#pragma unroll
    for (int j = 0; j < N; ++j) value[j] = up[j] * gelu_derivative(value[j]);
    store_floats(din + place, value);
  }
};

template <typename T>
struct DifferentiateBiased {
  T* din;
  const T* dout;
  const T* in;
  const T* bias;
  int64_t columns;

  template <int N>
  using Column = OptionalLanes<T, N>;
  template <int N>
  struct Row {
    Lanes<T, N> in;
    Lanes<T, N> dout;
  };

  template <int N>
  __device__ Column<N> column(int64_t column) const {
    return {bias, column};
  }
  template <int N>
  __device__ Row<N> load(int64_t row, int64_t column) const {
    Row<N> read;
    read.in.load(in + row * columns + column);
    read.dout.load(dout + row * columns + column);
    return read;
  }
  template <int N>
  __device__ void finish(float (&value)[N], const Column<N>& shift, const Row<N>& read, int64_t row,
                         int64_t column) const {
    float up[N];
    read.in.widen(value);
    read.dout.widen(up);
    shift.add_to(value);
#pragma unroll
    for (int j = 0; j < N; ++j) value[j] = up[j] * gelu_derivative(value[j]);
    store_floats(din + row * columns + column, value);
  }
};

}  // namespace

void gelu_forward(const GeluForward& a, cudaStream_t stream) {
  dispatch_float("gelu_forward", a.dtype, [&]<typename T>(T) {
    constexpr int N = kLanesOf<T>;
    auto* out = static_cast<T*>(a.out);
    const auto* in = static_cast<const T*>(a.in);
    const auto* bias = static_cast<const T*>(a.bias);
    if (bias == nullptr) {
      for_each_vector<N>(Apply<T>{out, in}, are_aligned(out, in), a.rows * a.columns, stream);
      return;
    }
    const bool aligned = are_aligned(out, in, bias) && a.columns % N == 0;
    for_each_strip<N>(ApplyBiased<T>{out, in, bias, a.columns}, aligned, a.rows, a.columns, stream);
  });
}

void gelu_backward(const GeluBackward& a, cudaStream_t stream) {
  dispatch_float("gelu_backward", a.dtype, [&]<typename T>(T) {
    constexpr int N = kLanesOf<T>;
    auto* din = static_cast<T*>(a.din);
    const auto* dout = static_cast<const T*>(a.dout);
    const auto* in = static_cast<const T*>(a.in);
    const auto* bias = static_cast<const T*>(a.bias);
    if (bias == nullptr && a.dbias == nullptr) {
      for_each_vector<N>(Differentiate<T>{din, dout, in}, are_aligned(din, dout, in),
                         a.rows * a.columns, stream);
      return;
    }
    const bool aligned =
        are_aligned(din, dout, in) && (bias == nullptr || are_aligned(bias)) && a.columns % N == 0;
    const DifferentiateBiased<T> work{din, dout, in, bias, a.columns};
    if (a.dbias == nullptr) {
      for_each_strip<N>(work, aligned, a.rows, a.columns, stream);
    } else {
      sum_strips<N>(work, aligned, a.dbias, a.rows, a.columns, a.scratch, stream, a.strips);
    }
  });
}

}  // namespace gradus::cuda
