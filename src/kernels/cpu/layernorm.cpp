#include "kernels/cpu/layernorm.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/layernorm.cpp"
#include <hwy/foreach_target.h>
// After foreach_target: included once for each instruction set.
#include <algorithm>
#include <cmath>

#include "core/parallel_for.h"
#include "kernels/cpu/reduce-inl.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/precision.h"

HWY_BEFORE_NAMESPACE();
namespace gradus::cpu {
namespace HWY_NAMESPACE {
namespace {

/// Rows a thread takes at least.
int64_t row_grain(int64_t channels) { return std::max<int64_t>(1, 16384 / channels); }

template <typename T>
struct RowStatistics {
  T center;  ///< the mean as first summed
  T offset;  ///< mean - center: what that sum had lost to rounding
  T rstd;
};

/// Deviations are summed from the row's own mean, never E[x²] - E[x]², which cancels where the
/// mean is large. The second pass also sums the deviations themselves: their mean corrects the
/// first (Chan, Golub, LeVeque 1983, the corrected two-pass algorithm).
template <typename S>
RowStatistics<Compute<S>> row_statistics(const S* HWY_RESTRICT in, int64_t channels,
                                         double epsilon) {
  using T = Compute<S>;
  const Tag<S> d;
  const auto count = static_cast<T>(channels);
  const T center = sum_vectors(d, channels,
                               [&](int64_t c, size_t lanes, hn::Vec<Tag<S>>& sum) {
                                 sum = hn::Add(sum, load_some(d, in + c, lanes));
                               }) /
                   count;
  const auto subtrahend = hn::Set(d, center);
  const TwoSums<T> deviations = sum_vectors_twice(
      d, channels, [&](int64_t c, size_t lanes, hn::Vec<Tag<S>>& sum, hn::Vec<Tag<S>>& squares) {
        const auto deviation =
            keep_first(d, hn::Sub(load_some(d, in + c, lanes), subtrahend), lanes);
        sum = hn::Add(sum, deviation);
        squares = hn::MulAdd(deviation, deviation, squares);
      });
  const T offset = deviations.first / count;
  // NaN stays NaN: max returns its first argument when the comparison is false.
  const T variance = std::max(deviations.second / count - offset * offset, T{0});
  // A variance that overflows would give rstd 0 and a healthy-looking row of the bias alone.
  const T rstd = std::isinf(variance) ? std::numeric_limits<T>::quiet_NaN()
                                      : T{1} / std::sqrt(variance + static_cast<T>(epsilon));
  return {center, offset, rstd};
}

template <typename R, typename A>
void normalize_rows(Executor& x, Tensor out, Tensor mean, Tensor rstd, ConstTensor in,
                    ConstTensor weight, ConstTensor bias, double epsilon) {
  using T = Compute<R>;
  const Tag<R> d;
  const int64_t channels = in.size(-1);
  const R* from = in.as<R>();
  A* to = out.as<A>();
  const A* scale = weight.as<A>();
  const A* shift = bias.defined() ? bias.as<A>() : nullptr;
  T* means = mean.as<T>();
  T* rstds = rstd.as<T>();
  parallel_ranges(
      x, in.numel() / channels, row_grain(channels), [&](int64_t begin, int64_t end, int) {
        for (int64_t row = begin; row < end; ++row) {
          const R* row_in = from + row * channels;
          A* row_out = to + row * channels;
          const RowStatistics<T> s = row_statistics(row_in, channels, epsilon);
          means[row] = s.center + s.offset;
          rstds[row] = s.rstd;
          const auto center = hn::Set(d, s.center);
          const auto factor = hn::Set(d, s.rstd);
          const auto offset = hn::Set(d, s.offset * s.rstd);
          for_each_vector(d, channels, [&](int64_t c, size_t lanes) {
            const auto deviation = hn::Sub(load_some(d, row_in + c, lanes), center);
            const auto normalized = hn::MulSub(deviation, factor, offset);
            const auto w = load_some(d, scale + c, lanes);
            const auto y = shift == nullptr
                               ? hn::Mul(normalized, w)
                               : hn::MulAdd(normalized, w, load_some(d, shift + c, lanes));
            store_some(d, y, row_out + c, lanes);
          });
        }
      });
}

/// With x̂ = (in - mean) · rstd and g = dout · weight:
/// din += rstd · (g - mean(g) - x̂ · mean(g · x̂)), dweight += Σ dout · x̂, dbias += Σ dout.
template <typename R, typename A>
void differentiate_rows(Executor& x, Tensor din, Tensor dweight, Tensor dbias, ConstTensor dout,
                        ConstTensor in, ConstTensor weight, ConstTensor mean, ConstTensor rstd) {
  using T = Compute<R>;
  const Tag<R> d;
  using V = hn::Vec<Tag<R>>;
  const int64_t channels = in.size(-1);
  const R* ins = in.as<R>();
  const A* douts = dout.as<A>();
  R* dins = din.as<R>();
  const A* weights = weight.as<A>();
  const T* means = mean.as<T>();
  const T* rstds = rstd.as<T>();

  Scratch scratch(x);
  const int64_t stride = partial_stride<T>(channels);
  T* partials = scratch.take<T>(x.threads() * 2 * stride);
  const int64_t rows = in.numel() / channels;
  int threads = 0;
  parallel_ranges(x, rows, row_grain(channels), [&](int64_t begin, int64_t end, int thread) {
    if (end == rows) threads = thread + 1;
    T* dscale = partials + thread * 2 * stride;
    T* dshift = dscale + stride;
    std::fill_n(dscale, 2 * stride, T{0});
    for (int64_t row = begin; row < end; ++row) {
      const R* x_row = ins + row * channels;
      const A* dy_row = douts + row * channels;
      R* dx_row = dins + row * channels;
      const auto center = hn::Set(d, means[row]);
      const TwoSums<T> sums =
          sum_vectors_twice(d, channels, [&](int64_t c, size_t lanes, V& sum, V& product) {
            const auto g =
                hn::Mul(load_some(d, dy_row + c, lanes), load_some(d, weights + c, lanes));
            const auto deviation = hn::Sub(load_some(d, x_row + c, lanes), center);
            sum = hn::Add(sum, g);
            product = hn::MulAdd(g, deviation, product);
          });
      const T r = rstds[row];
      const auto factor = hn::Set(d, r);
      const auto g_mean = hn::Set(d, sums.first / static_cast<T>(channels));
      const auto gx_mean = hn::Set(d, sums.second * r / static_cast<T>(channels));
      for_each_vector(d, channels, [&](int64_t c, size_t lanes) {
        const auto dy = load_some(d, dy_row + c, lanes);
        const auto normalized = hn::Mul(hn::Sub(load_some(d, x_row + c, lanes), center), factor);
        // g rounded as in its mean: what a fused product would keep of it, rstd multiplies by up
        // to 1 / √ε.
        const auto g = hn::Sub(hn::Mul(dy, load_some(d, weights + c, lanes)), g_mean);
        const auto dx = hn::NegMulAdd(normalized, gx_mean, g);
        store_some(d, hn::MulAdd(dx, factor, load_some(d, dx_row + c, lanes)), dx_row + c, lanes);
        store_some(d, hn::MulAdd(dy, normalized, load_some(d, dscale + c, lanes)), dscale + c,
                   lanes);
        store_some(d, hn::Add(dy, load_some(d, dshift + c, lanes)), dshift + c, lanes);
      });
    }
  });
  if (threads == 0) return;
  add_partials(x, dweight.as<T>(), partials, threads, 2 * stride, channels);
  if (dbias.defined()) {
    add_partials(x, dbias.as<T>(), partials + stride, threads, 2 * stride, channels);
  }
}

void normalize(Executor& x, Tensor out, Tensor mean, Tensor rstd, ConstTensor in,
               ConstTensor weight, ConstTensor bias, double epsilon) {
  dispatch_precision("layernorm_forward", in, out, [&]<typename R, typename A>(R, A) {
    normalize_rows<R, A>(x, out, mean, rstd, in, weight, bias, epsilon);
  });
}

void differentiate(Executor& x, Tensor din, Tensor dweight, Tensor dbias, ConstTensor dout,
                   ConstTensor in, ConstTensor weight, ConstTensor mean, ConstTensor rstd) {
  dispatch_precision("layernorm_backward", in, dout, [&]<typename R, typename A>(R, A) {
    differentiate_rows<R, A>(x, din, dweight, dbias, dout, in, weight, mean, rstd);
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace gradus::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gradus::cpu {

HWY_EXPORT(normalize);
HWY_EXPORT(differentiate);

void layernorm_forward(Executor& x, Tensor out, Tensor mean, Tensor rstd, ConstTensor in,
                       ConstTensor weight, ConstTensor bias, double epsilon) {
  HWY_DYNAMIC_DISPATCH(normalize)(x, out, mean, rstd, in, weight, bias, epsilon);
}

void layernorm_backward(Executor& x, Tensor din, Tensor dweight, Tensor dbias, ConstTensor dout,
                        ConstTensor in, ConstTensor weight, ConstTensor mean, ConstTensor rstd) {
  HWY_DYNAMIC_DISPATCH(differentiate)(x, din, dweight, dbias, dout, in, weight, mean, rstd);
}

int64_t layernorm_scratch(const Executor& x, int64_t channels, DType dtype) {
  // A row of dweight's and one of dbias's partial sums a thread.
  return 2 * column_sums_scratch(x, channels, dtype);
}

}  // namespace gradus::cpu
#endif  // HWY_ONCE
