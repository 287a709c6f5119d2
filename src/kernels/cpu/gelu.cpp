#include "kernels/cpu/gelu.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gelu.cpp"
#include <hwy/foreach_target.h>
// After foreach_target: included once for each instruction set.
#include "core/parallel_for.h"
#include "kernels/cpu/exp-inl.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/validate.h"

HWY_BEFORE_NAMESPACE();
namespace gradus::cpu {
namespace HWY_NAMESPACE {
namespace {

/// With u = √(2/π) (x + 0.044715 x³), (1 + tanh u) / 2 = 1 / (1 + exp(-2u)) = 1 / (1 + 2^t),
/// t = -2 log2(e) u: no cancellation where tanh nears -1, and one exponential instead of a tanh.
constexpr double kCubic = 0.044715;
constexpr double kTwiceSqrt2OverPi = 1.59576912160573071176;
constexpr double kLog2E = 1.44269504088896340736;

constexpr int64_t kGrain = 8192;  // elements a thread takes at least

/// t by x.
template <class D>
HWY_INLINE hn::Vec<D> exponent(D d, hn::Vec<D> x) {
  using T = hn::TFromD<D>;
  const auto linear = hn::Set(d, static_cast<T>(-kTwiceSqrt2OverPi * kLog2E));
  const auto cubic = hn::Set(d, static_cast<T>(-kTwiceSqrt2OverPi * kLog2E * kCubic));
  return hn::Mul(x, hn::MulAdd(hn::Mul(x, x), cubic, linear));
}

template <class D>
HWY_INLINE hn::Vec<D> gelu(D d, hn::Vec<D> x) {
  using T = hn::TFromD<D>;
  // Below the range 1 + 2^t is 1; at its upper end 2^t is infinite and the result 0.
  const auto lowest = hn::Set(d, sizeof(T) == 4 ? T{-125} : T{-1021});
  const auto highest = hn::Set(d, sizeof(T) == 4 ? T{128} : T{1024});
  const auto t = hn::Min(hn::Max(exponent(d, x), lowest), highest);
  return hn::Div(x, hn::Add(hn::Set(d, T{1}), exp2_in_range(d, t)));
}

/// gelu'(x) = s (1 + (1 - s) · 2 x du/dx) with s = 1 / (1 + e), 1 - s = e s, e = 2^t.
template <class D>
HWY_INLINE hn::Vec<D> gelu_derivative(D d, hn::Vec<D> x) {
  using T = hn::TFromD<D>;
  // Past the bound the derivative is 0 or 1 to the last bit; at it, e is still finite. NaN is not
  // past it and goes through.
  const auto bound = hn::Set(d, sizeof(T) == 4 ? T{9.9} : T{20.7});
  const auto clamped = hn::IfThenElse(hn::Gt(hn::Abs(x), bound), hn::CopySign(bound, x), x);
  const auto e = exp2_in_range(d, exponent(d, clamped));
  const auto s = hn::Div(hn::Set(d, T{1}), hn::Add(hn::Set(d, T{1}), e));
  const auto linear = hn::Set(d, static_cast<T>(kTwiceSqrt2OverPi));
  const auto cubic = hn::Set(d, static_cast<T>(3 * kTwiceSqrt2OverPi * kCubic));
  const auto slope = hn::Mul(clamped, hn::MulAdd(hn::Mul(clamped, clamped), cubic, linear));
  return hn::MulAdd(hn::Mul(hn::Mul(e, s), slope), s, s);
}

void apply(Executor& x, Tensor out, ConstTensor in) {
  dispatch_float("gelu_forward", in, [&]<typename S>(S) {
    const Tag<S> d;
    S* to = out.as<S>();
    const S* from = in.as<S>();
    parallel_ranges(x, in.numel(), kGrain, [&](int64_t begin, int64_t end, int) {
      for_each_vector(d, end - begin, [&](int64_t i, size_t lanes) {
        store_some(d, gelu(d, load_some(d, from + begin + i, lanes)), to + begin + i, lanes);
      });
    });
  });
}

void differentiate(Executor& x, Tensor din, ConstTensor dout, ConstTensor in) {
  dispatch_float("gelu_backward", in, [&]<typename S>(S) {
    const Tag<S> d;
    S* to = din.as<S>();
    const S* upstream = dout.as<S>();
    const S* from = in.as<S>();
    parallel_ranges(x, in.numel(), kGrain, [&](int64_t begin, int64_t end, int) {
      for_each_vector(d, end - begin, [&](int64_t i, size_t lanes) {
        const auto slope = gelu_derivative(d, load_some(d, from + begin + i, lanes));
        const auto product = hn::Mul(load_some(d, upstream + begin + i, lanes), slope);
        store_some(d, product, to + begin + i, lanes);
      });
    });
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace gradus::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gradus::cpu {

HWY_EXPORT(apply);
HWY_EXPORT(differentiate);

void gelu_forward(Executor& x, Tensor out, ConstTensor in) {
  HWY_DYNAMIC_DISPATCH(apply)(x, out, in);
}

void gelu_backward(Executor& x, Tensor din, ConstTensor dout, ConstTensor in) {
  HWY_DYNAMIC_DISPATCH(differentiate)(x, din, dout, in);
}

}  // namespace gradus::cpu
#endif  // HWY_ONCE
