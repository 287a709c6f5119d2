// 2^t by vectors, shared by the CPU kernels.

#if defined(GRADUS_KERNELS_CPU_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRADUS_KERNELS_CPU_EXP_INL_H_
#undef GRADUS_KERNELS_CPU_EXP_INL_H_
#else
#define GRADUS_KERNELS_CPU_EXP_INL_H_
#endif

#include <array>
#include <cstddef>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gradus::cpu {
namespace HWY_NAMESPACE {

/// Coefficients ln(2)^k / k! of 2^f. The first term left out, at |f| = 1/2, is 5e-9 of the value
/// in fp32 (unit roundoff 6e-8) and 4e-18 in fp64 (1e-16).
template <typename T>
inline constexpr auto kExp2Coefficients = [] {
  constexpr double kLn2 = 0.693147180559945309417;
  std::array<T, sizeof(T) == 4 ? 8 : 15> coefficients{};
  double term = 1.0;
  for (size_t k = 0; k < coefficients.size(); ++k) {
    coefficients[k] = static_cast<T>(term);
    term *= kLn2 / static_cast<double>(k + 1);
  }
  return coefficients;
}();

/// 2^t for t in [-125, 128] (fp64: [-1021, 1024]); infinity at the upper end. Within 2 ulp. NaN
/// gives an unspecified value: callers carry it through their other operand.
template <class D>
HWY_INLINE hn::Vec<D> exp2_in_range(D d, hn::Vec<D> t) {
  using T = hn::TFromD<D>;
  using Integer = hwy::MakeUnsigned<T>;
  constexpr int kMantissaBits = sizeof(T) == 4 ? 23 : 52;
  const hn::Rebind<Integer, D> di;
  // Adding 1.5 · 2^23 (fp64: 2^52) leaves the nearest integer n in the lowest bits of the sum.
  const auto shifter = hn::Set(d, static_cast<T>(Integer{3} << (kMantissaBits - 1)));
  const auto shifted = hn::Add(t, shifter);
  const auto f = hn::Sub(t, hn::Sub(shifted, shifter));
  constexpr auto kCoefficients = kExp2Coefficients<T>;
  auto power = hn::Set(d, kCoefficients.back());
  for (size_t k = kCoefficients.size() - 1; k-- > 0;) {
    power = hn::MulAdd(power, f, hn::Set(d, kCoefficients[k]));
  }
  // n is added to the exponent. At n = 128, f <= 0 and so power <= 1: at most the bits of infinity.
  const auto exponent = hn::ShiftLeft<kMantissaBits>(hn::BitCast(di, shifted));
  return hn::BitCast(d, hn::Add(hn::BitCast(di, power), exponent));
}

}  // namespace HWY_NAMESPACE
}  // namespace gradus::cpu
HWY_AFTER_NAMESPACE();

#endif  // GRADUS_KERNELS_CPU_EXP_INL_H_
