// Sums over a row by vectors, shared by the CPU kernels.

#if defined(GRADUS_KERNELS_CPU_REDUCE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRADUS_KERNELS_CPU_REDUCE_INL_H_
#undef GRADUS_KERNELS_CPU_REDUCE_INL_H_
#else
#define GRADUS_KERNELS_CPU_REDUCE_INL_H_
#endif

#include "core/parallel_for.h"
#include "kernels/cpu/column_sums.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gradus::cpu {
namespace HWY_NAMESPACE {

/// The value with the lanes from `lanes` on set to zero.
template <class D>
HWY_INLINE hn::Vec<D> keep_first(D d, hn::Vec<D> value, size_t lanes) {
  return HWY_LIKELY(lanes == hn::Lanes(d)) ? value
                                           : hn::IfThenElseZero(hn::FirstN(d, lanes), value);
}

/// Calls body(offset, lanes, sum) for the vectors of [0, count); body adds to the vector `sum`,
/// zero in unused lanes. Returns the total. Four running sums hide the latency of an addition and
/// shorten the chains along which rounding errors grow. The order depends only on count and the
/// instruction set.
template <class D, class Body>
HWY_INLINE hn::TFromD<D> sum_vectors(D d, int64_t count, Body&& body) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto full = static_cast<size_t>(lanes);
  auto s0 = hn::Zero(d);
  auto s1 = hn::Zero(d);
  auto s2 = hn::Zero(d);
  auto s3 = hn::Zero(d);
  int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    body(i, full, s0);
    body(i + lanes, full, s1);
    body(i + 2 * lanes, full, s2);
    body(i + 3 * lanes, full, s3);
  }
  for (; i + lanes <= count; i += lanes) body(i, full, s0);
  if (i < count) body(i, static_cast<size_t>(count - i), s1);
  return sum_lanes(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)));
}

template <typename T>
struct TwoSums {
  T first;
  T second;
};

/// As sum_vectors with body(offset, lanes, first, second).
template <class D, class Body>
HWY_INLINE TwoSums<hn::TFromD<D>> sum_vectors_twice(D d, int64_t count, Body&& body) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto full = static_cast<size_t>(lanes);
  auto a0 = hn::Zero(d);
  auto a1 = hn::Zero(d);
  auto a2 = hn::Zero(d);
  auto a3 = hn::Zero(d);
  auto b0 = hn::Zero(d);
  auto b1 = hn::Zero(d);
  auto b2 = hn::Zero(d);
  auto b3 = hn::Zero(d);
  int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    body(i, full, a0, b0);
    body(i + lanes, full, a1, b1);
    body(i + 2 * lanes, full, a2, b2);
    body(i + 3 * lanes, full, a3, b3);
  }
  for (; i + lanes <= count; i += lanes) body(i, full, a0, b0);
  if (i < count) body(i, static_cast<size_t>(count - i), a1, b1);
  return {sum_lanes(d, hn::Add(hn::Add(a0, a1), hn::Add(a2, a3))),
          sum_lanes(d, hn::Add(hn::Add(b0, b1), hn::Add(b2, b3)))};
}

/// total[c] += Σ over threads, in their order, of partials[thread · stride + c].
template <typename T>
void add_partials(const Executor& x, T* HWY_RESTRICT total, const T* HWY_RESTRICT partials,
                  int threads, int64_t stride, int64_t columns) {
  const hn::ScalableTag<T> d;
  constexpr int64_t kColumnGrain = 1024;
  parallel_ranges(x, columns, kColumnGrain, [&](int64_t begin, int64_t end, int) {
    for_each_vector(d, end - begin, [&](int64_t i, size_t lanes) {
      auto sum = load_some(d, partials + begin + i, lanes);
      for (int thread = 1; thread < threads; ++thread) {
        sum = hn::Add(sum, load_some(d, partials + thread * stride + begin + i, lanes));
      }
      store_some(d, hn::Add(load_some(d, total + begin + i, lanes), sum), total + begin + i, lanes);
    });
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace gradus::cpu
HWY_AFTER_NAMESPACE();

#endif  // GRADUS_KERNELS_CPU_REDUCE_INL_H_
