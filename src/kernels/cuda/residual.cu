// Residual addition with the dropout and bias before it: elementwise down strips of columns
// (column_strip.cuh), so that the bias gradient is summed while the rows go by. Forward reads
// branch and residual and writes their sum; backward reads dout and writes din.

#include "kernels/cuda/column_strip.cuh"
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/philox.cuh"
#include "kernels/cuda/precision.h"
#include "kernels/cuda/residual.h"

namespace gradus::cuda {
namespace {

template <typename R, typename A>
struct Add {
  R* out;
  const A* in;
  const A* bias;
  const R* residual;
  int64_t channels;
  RowDropout dropout;

  template <int N>
  using Column = OptionalLanes<A, N>;
  template <int N>
  struct Row {
    Lanes<A, N> branch;
    Lanes<R, N> residual;
  };

  template <int N>
  __device__ Column<N> column(int64_t column) const {
    return {bias, column};
  }
  template <int N>
  __device__ Row<N> load(int64_t row, int64_t column) const {
    Row<N> read;
    read.branch.load(in + row * channels + column);
    read.residual.load(residual + row * channels + column);
    return read;
  }
  template <int N>
  __device__ void finish(float (&value)[N], const Column<N>& shift, const Row<N>& read, int64_t row,
                         int64_t column) const {
    float skip[N];
    read.branch.widen(value);
    read.residual.widen(skip);
    shift.add_to(value);
    dropout.drop(value, row, column);
#pragma unroll
    for (int j = 0; j < N; ++j) value[j] = __fadd_rn(skip[j], value[j]);
    store_floats(out + row * channels + column, value);
  }
};

template <typename R, typename A>
struct Split {
  A* din;
  const R* dout;
  int64_t channels;
  RowDropout dropout;

  template <int N>
  using Column = Nothing;
  template <int N>
  using Row = Lanes<R, N>;

  template <int N>
  __device__ Nothing column(int64_t) const {
    return {};
  }
  template <int N>
  __device__ Row<N> load(int64_t row, int64_t column) const {
    Row<N> lanes;
    lanes.load(dout + row * channels + column);
    return lanes;
  }
  template <int N>
  __device__ void finish(float (&value)[N], Nothing, const Row<N>& read, int64_t row,
                         int64_t column) const {
    read.widen(value);
    dropout.drop(value, row, column);
    store_floats(din + row * channels + column, value);
  }
};

}  // namespace

void residual_forward(const ResidualAdd& a, cudaStream_t stream) {
  dispatch_precision("residual_forward", a.residual_dtype, a.activation_dtype,
                     [&]<typename R, typename A>(R, A) {
                       constexpr int N = kLanesOfBoth<R, A>;
                       const Add<R, A> work{static_cast<R*>(a.out),
                                            static_cast<const A*>(a.in),
                                            static_cast<const A*>(a.bias),
                                            static_cast<const R*>(a.residual),
                                            a.channels,
                                            RowDropout(a.dropout, a.positions)};
                       const bool aligned = are_aligned(a.out, a.in, a.residual) &&
                                            (a.bias == nullptr || are_aligned(a.bias)) &&
                                            a.channels % kLanesOf<A> == 0;
                       for_each_strip<N>(work, aligned, a.rows, a.channels, stream);
                     });
}

void residual_backward(const ResidualSplit& a, cudaStream_t stream) {
  dispatch_precision(
      "residual_backward", a.residual_dtype, a.activation_dtype, [&]<typename R, typename A>(R, A) {
        constexpr int N = kLanesOfBoth<R, A>;
        const Split<R, A> work{static_cast<A*>(a.din), static_cast<const R*>(a.dout), a.channels,
                               RowDropout(a.dropout, a.positions)};
        const bool aligned = are_aligned(a.din, a.dout) && a.channels % kLanesOf<A> == 0;
        if (a.dbias == nullptr) {
          for_each_strip<N>(work, aligned, a.rows, a.channels, stream);
        } else {
          sum_strips<N>(work, aligned, a.dbias, a.rows, a.channels, a.scratch, stream, a.strips);
        }
      });
}

}  // namespace gradus::cuda
