#include "kernels/cpu/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/cross_entropy.cpp"
#include <hwy/foreach_target.h>
// After foreach_target: included once for each instruction set.
#include <hwy/contrib/math/math-inl.h>

#include "core/parallel_for.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gradus::cpu {
namespace HWY_NAMESPACE {

// Logits whose maximum is found before their exponentials are summed: they are in the L1 cache for
// the second look, so that memory is read once.
constexpr int64_t kBlock = 1024;
constexpr int64_t kGrain = 16384;  // elements a thread takes at least

int64_t row_grain(int64_t columns) { return std::max<int64_t>(1, kGrain / columns); }

/// Columns of this rank that are real.
int64_t real_columns(const ConstTensor& logits, int64_t first_column, int64_t vocabulary) {
  return std::clamp<int64_t>(vocabulary - first_column, 0, logits.size(1));
}

/// Highway's Exp makes 0 of NaN; a NaN among the logits has to reach the loss.
template <class D>
HWY_INLINE hn::Vec<D> exponential(D d, hn::Vec<D> v) {
  return hn::IfThenElse(hn::IsNaN(v), v, hn::Exp(d, v));
}

template <typename T>
struct RowStatistics {
  T max = -std::numeric_limits<T>::infinity();
  T sum = 0;
};

/// max and Σ exp(v - max) in one pass (online softmax, arXiv:1805.02867), block by block.
template <class D, typename T>
HWY_INLINE RowStatistics<T> row_statistics(D d, const T* HWY_RESTRICT row, int64_t columns) {
  constexpr T kMinusInfinity = -std::numeric_limits<T>::infinity();
  RowStatistics<T> total;
  for (int64_t begin = 0; begin < columns; begin += kBlock) {
    const T* block = row + begin;
    const int64_t count = std::min(kBlock, columns - begin);
    auto lane_max = hn::Set(d, kMinusInfinity);
    for_each_vector(d, count, [&](int64_t i, size_t lanes) {
      const auto v = load_some(d, block + i, lanes);
      lane_max = hn::Max(lane_max, hn::IfThenElse(hn::FirstN(d, lanes), v, lane_max));
    });
    const T max = std::max(total.max, hn::GetLane(hn::MaxOfLanes(d, lane_max)));
    // While all logits are -inf any shift gives exp(-inf) = 0; -inf - -inf would be NaN.
    const auto shift = hn::Set(d, max == kMinusInfinity ? T{0} : max);
    auto lane_sum = hn::Zero(d);
    for_each_vector(d, count, [&](int64_t i, size_t lanes) {
      const auto e = exponential(d, hn::Sub(load_some(d, block + i, lanes), shift));
      lane_sum = hn::Add(lane_sum, hn::IfThenElseZero(hn::FirstN(d, lanes), e));
    });
    if (total.sum != 0) total.sum *= std::exp(total.max - max);
    total.sum += sum_lanes(d, lane_sum);
    total.max = max;
  }
  return total;
}

template <typename T>
void statistics_of(Executor& x, Tensor row_max, Tensor row_sum, Tensor target_logit,
                   ConstTensor logits, ConstTensor targets, int64_t first_column,
                   int64_t vocabulary) {
  const int64_t columns = real_columns(logits, first_column, vocabulary);
  const int64_t stride = logits.size(1);
  const T* in = logits.as<T>();
  const int32_t* target = targets.as<int32_t>();
  T* max = row_max.as<T>();
  T* sum = row_sum.as<T>();
  T* at_target = target_logit.as<T>();
  parallel_for(x, logits.size(0), row_grain(stride), [&](int64_t i) {
    const auto statistics = row_statistics(Tag<T>(), in + i * stride, columns);
    max[i] = statistics.max;
    sum[i] = statistics.sum;
    const int64_t column = target[i] - first_column;
    at_target[i] = T{0};
    if (target[i] != kIgnoredTarget) {
      if (target[i] < 0 || target[i] >= vocabulary) {
        at_target[i] = std::numeric_limits<T>::quiet_NaN();  // no token: the loss has to show it
      } else if (column >= 0 && column < columns) {
        at_target[i] = in[i * stride + column];
      }
    }
  });
}

/// One row of dlogits; target: its column, or any number that is none.
template <typename T, typename O>
HWY_INLINE void gradient_row(O* out, const T* in, T lse, int64_t columns, int64_t stride,
                             int64_t target, T scale) {
  const Tag<T> d;
  const auto shift = hn::Set(d, lse);
  const auto factor = hn::Set(d, scale);
  const T target_logit = target >= 0 && target < columns ? in[target] : T{0};
  for_each_vector(d, columns, [&](int64_t j, size_t lanes) {
    const auto p = exponential(d, hn::Sub(load_some(d, in + j, lanes), shift));
    store_some(d, hn::Mul(factor, p), out + j, lanes);
  });
  if (target >= 0 && target < columns) {
    // expm1 keeps the digits of p - 1 when the model is sure.
    out[target] = static_cast<O>(scale * std::expm1(target_logit - lse));
  }
  std::fill(out + columns, out + stride, O(T{0}));
}

template <typename T, typename O>
void backward_of(Executor& x, Tensor dlogits, ConstTensor logits, ConstTensor lse,
                 ConstTensor targets, int64_t first_column, int64_t vocabulary, double scale) {
  const int64_t columns = real_columns(logits, first_column, vocabulary);
  const int64_t stride = logits.size(1);
  const T* in = logits.as<T>();
  const T* row_lse = lse.as<T>();
  const int32_t* target = targets.as<int32_t>();
  O* out = dlogits.as<O>();
  parallel_for(x, logits.size(0), row_grain(stride), [&](int64_t i) {
    O* row = out + i * stride;
    if (target[i] == kIgnoredTarget) {
      std::fill(row, row + stride, O(T{0}));
      return;
    }
    gradient_row(row, in + i * stride, row_lse[i], columns, stride, target[i] - first_column,
                 static_cast<T>(scale));
  });
}

void statistics_any(Executor& x, Tensor row_max, Tensor row_sum, Tensor target_logit,
                    ConstTensor logits, ConstTensor targets, int64_t first_column,
                    int64_t vocabulary) {
  const auto run = logits.dtype() == DType::fp64 ? statistics_of<double> : statistics_of<float>;
  run(x, row_max, row_sum, target_logit, logits, targets, first_column, vocabulary);
}

void backward_any(Executor& x, Tensor dlogits, ConstTensor logits, ConstTensor lse,
                  ConstTensor targets, int64_t first_column, int64_t vocabulary, double scale) {
  const auto run = logits.dtype() == DType::fp64    ? backward_of<double, double>
                   : dlogits.dtype() == DType::bf16 ? backward_of<float, bf16>
                                                    : backward_of<float, float>;
  run(x, dlogits, logits, lse, targets, first_column, vocabulary, scale);
}

}  // namespace HWY_NAMESPACE
}  // namespace gradus::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gradus::cpu {

HWY_EXPORT(statistics_any);
HWY_EXPORT(backward_any);

void cross_entropy_statistics(Executor& x, Tensor row_max, Tensor row_sum, Tensor target_logit,
                              ConstTensor logits, ConstTensor targets, int64_t first_column,
                              int64_t vocabulary) {
  HWY_DYNAMIC_DISPATCH(statistics_any)
  (x, row_max, row_sum, target_logit, logits, targets, first_column, vocabulary);
}

void cross_entropy_rescale(Executor&, Tensor row_sum, ConstTensor row_max, ConstTensor whole_max) {
  const FlushDenormals flush;
  const auto rescale = [&]<typename S>(S) {
    const S* from = row_max.as<S>();
    const S* to = whole_max.as<S>();
    S* sum = row_sum.as<S>();
    // A rank of padding alone has -inf and 0, and exp(-inf) · 0 = 0.
    for (int64_t i = 0; i < row_sum.size(0); ++i) sum[i] *= std::exp(from[i] - to[i]);
  };
  row_sum.dtype() == DType::fp64 ? rescale(double{}) : rescale(float{});
}

void cross_entropy_forward(Executor&, Tensor loss_sum, Tensor lse, ConstTensor row_max,
                           ConstTensor row_sum, ConstTensor target_logit, ConstTensor targets) {
  const FlushDenormals flush;
  // N numbers by one thread, in index order: the sum depends on nothing else.
  const auto reduce = [&]<typename S>(S) {
    const S* max = row_max.as<S>();
    const S* sum = row_sum.as<S>();
    const S* at_target = target_logit.as<S>();
    const int32_t* target = targets.as<int32_t>();
    S* out = lse.as<S>();
    double loss = 0.0;
    for (int64_t i = 0; i < lse.size(0); ++i) {
      const auto largest = static_cast<double>(max[i]);
      const double log_sum = std::log(static_cast<double>(sum[i]));
      out[i] = static_cast<S>(largest + log_sum);
      // In this order log_sum keeps its digits when the logits are large.
      if (target[i] != kIgnoredTarget) {
        loss += largest - static_cast<double>(at_target[i]) + log_sum;
      }
    }
    *loss_sum.as<double>() += loss;
  };
  lse.dtype() == DType::fp64 ? reduce(double{}) : reduce(float{});
}

void cross_entropy_backward(Executor& x, Tensor dlogits, ConstTensor logits, ConstTensor lse,
                            ConstTensor targets, int64_t first_column, int64_t vocabulary,
                            double scale) {
  HWY_DYNAMIC_DISPATCH(backward_any)
  (x, dlogits, logits, lse, targets, first_column, vocabulary, scale);
}

}  // namespace gradus::cpu
#endif  // HWY_ONCE
