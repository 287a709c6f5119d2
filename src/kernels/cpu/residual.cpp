#include "kernels/cpu/residual.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/residual.cpp"
#include <hwy/foreach_target.h>
// After foreach_target: included once for each instruction set.
#include <algorithm>

#include "core/parallel_for.h"
#include "kernels/cpu/dropout-inl.h"
#include "kernels/cpu/reduce-inl.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/precision.h"

HWY_BEFORE_NAMESPACE();
namespace gradus::cpu {
namespace HWY_NAMESPACE {
namespace {

/// Rows a thread takes at least.
int64_t row_grain(int64_t channels) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, channels));
}

template <typename R, typename A>
void add_rows(Executor& x, Tensor out, ConstTensor in, ConstTensor bias, ConstTensor residual,
              const Dropout& dropout) {
  const Tag<R> d;
  using V = hn::Vec<Tag<R>>;
  const int64_t positions = out.size(1);
  const int64_t channels = out.size(2);
  R* outs = out.as<R>();
  const A* ins = in.as<A>();
  const A* biases = bias.defined() ? bias.as<A>() : nullptr;
  const R* residuals = residual.as<R>();
  parallel_ranges(
      x, out.size(0) * positions, row_grain(channels), [&](int64_t begin, int64_t end, int) {
        for (int64_t row = begin; row < end; ++row) {
          R* to = outs + row * channels;
          const A* branch = ins + row * channels;
          const R* skip = residuals + row * channels;
          for_each_dropout_vector(d, dropout, row / positions, row % positions, channels,
                                  [&](int64_t c, size_t lanes, auto&& dropped) {
                                    V value = load_some(d, branch + c, lanes);
                                    if (biases != nullptr)
                                      value = hn::Add(value, load_some(d, biases + c, lanes));
                                    const V sum =
                                        hn::Add(load_some(d, skip + c, lanes), dropped(value));
                                    store_some(d, sum, to + c, lanes);
                                  });
        }
      });
}

template <typename R, typename A>
void differentiate_rows(Executor& x, Tensor din, Tensor dbias, ConstTensor dout,
                        const Dropout& dropout) {
  using T = Compute<R>;
  const Tag<R> d;
  using V = hn::Vec<Tag<R>>;
  const int64_t positions = dout.size(1);
  const int64_t channels = dout.size(2);
  const int64_t rows = dout.size(0) * positions;
  A* dins = din.as<A>();
  const R* douts = dout.as<R>();

  Scratch scratch(x);
  const int64_t stride = partial_stride<T>(channels);
  T* partials = dbias.defined() ? scratch.take<T>(x.threads() * stride) : nullptr;
  int threads = 0;
  parallel_ranges(x, rows, row_grain(channels), [&](int64_t begin, int64_t end, int thread) {
    if (end == rows) threads = thread + 1;
    T* sums = partials == nullptr ? nullptr : partials + thread * stride;
    if (sums != nullptr) std::fill_n(sums, stride, T{0});
    for (int64_t row = begin; row < end; ++row) {
      A* to = dins + row * channels;
      const R* from = douts + row * channels;
      for_each_dropout_vector(d, dropout, row / positions, row % positions, channels,
                              [&](int64_t c, size_t lanes, auto&& dropped) {
                                const V value = dropped(load_some(d, from + c, lanes));
                                store_some(d, value, to + c, lanes);
                                if (sums != nullptr) {
                                  store_some(d, hn::Add(load_some(d, sums + c, lanes), value),
                                             sums + c, lanes);
                                }
                              });
    }
  });
  if (partials != nullptr && threads > 0) {
    add_partials(x, dbias.as<T>(), partials, threads, stride, channels);
  }
}

void residual_add(Executor& x, Tensor out, ConstTensor in, ConstTensor bias, ConstTensor residual,
                  const Dropout& dropout) {
  dispatch_precision("residual_forward", residual, in, [&]<typename R, typename A>(R, A) {
    add_rows<R, A>(x, out, in, bias, residual, dropout);
  });
}

void residual_differentiate(Executor& x, Tensor din, Tensor dbias, ConstTensor dout,
                            const Dropout& dropout) {
  dispatch_precision("residual_backward", dout, din, [&]<typename R, typename A>(R, A) {
    differentiate_rows<R, A>(x, din, dbias, dout, dropout);
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace gradus::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gradus::cpu {

HWY_EXPORT(residual_add);
HWY_EXPORT(residual_differentiate);

void residual_forward(Executor& x, Tensor out, ConstTensor in, ConstTensor bias,
                      ConstTensor residual, const Dropout& dropout) {
  HWY_DYNAMIC_DISPATCH(residual_add)(x, out, in, bias, residual, dropout);
}

void residual_backward(Executor& x, Tensor din, Tensor dbias, ConstTensor dout,
                       const Dropout& dropout) {
  HWY_DYNAMIC_DISPATCH(residual_differentiate)(x, din, dbias, dout, dropout);
}

int64_t residual_scratch(const Executor& x, int64_t channels, DType dtype) {
  return column_sums_scratch(x, channels, dtype);
}

}  // namespace gradus::cpu
#endif  // HWY_ONCE
