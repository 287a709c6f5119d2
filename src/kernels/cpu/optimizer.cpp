#include "kernels/cpu/optimizer.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/optimizer.cpp"
#include <hwy/foreach_target.h>
// After foreach_target: included once for each instruction set.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/parallel_for.h"
#include "kernels/cpu/reduce-inl.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/validate.h"

HWY_BEFORE_NAMESPACE();
namespace gradus::cpu {
namespace HWY_NAMESPACE {
namespace {

/// Lanes at p as doubles.
template <class D, typename S>
HWY_INLINE hn::Vec<D> load_wide(D d, const S* HWY_RESTRICT p, size_t lanes) {
  if constexpr (std::is_same_v<S, double>) {
    return load_some(d, p, lanes);
  } else {
    const hn::Rebind<float, D> narrow;
    return hn::PromoteTo(d, load_some(narrow, p, lanes));
  }
}

void square_chunks(Executor& x, Tensor partials, ConstTensor in) {
  dispatch_float("sum_of_squares", in, [&]<typename S>(S) {
    const hn::ScalableTag<double> d;
    using V = hn::Vec<decltype(d)>;
    const S* values = in.as<S>();
    double* sums = partials.as<double>();
    const int64_t count = in.numel();
    constexpr int64_t kChunksPerThread = 16;  // at least
    parallel_for(x, partials.numel(), kChunksPerThread, [&](int64_t chunk) {
      const S* p = values + chunk * kNormChunk;
      const int64_t n = std::min(kNormChunk, count - chunk * kNormChunk);
      sums[chunk] = sum_vectors(d, n, [&](int64_t i, size_t lanes, V& sum) {
        const auto value = load_wide(d, p + i, lanes);
        sum = hn::MulAdd(value, value, sum);
      });
    });
  });
}

/// The largest magnitude among what one thread sees. Bit patterns of magnitudes are in the order of
/// the magnitudes, those of infinity and NaN last: whole numbers find the largest exactly, in any
/// order of threads and lanes.
template <typename D>
class LargestMagnitude {
 public:
  explicit LargestMagnitude(D d) : d_(d), most_(hn::Zero(bits_)) {}

  void see(hn::Vec<D> values) { most_ = hn::Max(most_, hn::BitCast(bits_, hn::Abs(values))); }
  /// out = max(out, what was seen); infinity for what is not finite. Threads may meet here.
  void raise(double& out) const {
    using T = hn::TFromD<D>;
    const auto found = std::bit_cast<T>(hn::GetLane(hn::MaxOfLanes(bits_, most_)));
    const double mine = std::isfinite(found) ? found : std::numeric_limits<double>::infinity();
    std::atomic_ref<double> shared(out);
    double known = shared;
    while (known < mine && !shared.compare_exchange_weak(known, mine)) {
    }
  }

 private:
  [[no_unique_address]] D d_;
  [[no_unique_address]] hn::RebindToUnsigned<D> bits_;
  hn::Vec<hn::RebindToUnsigned<D>> most_;
};

void largest_of(Executor& x, Tensor out, ConstTensor in) {
  dispatch_float("raise_to_largest", in, [&]<typename S>(S) {
    const Tag<S> d;
    const S* values = in.as<S>();
    constexpr int64_t kGrain = 16384;  // elements a thread takes at least
    parallel_ranges(x, in.numel(), kGrain, [&](int64_t begin, int64_t end, int) {
      LargestMagnitude largest(d);
      for_each_vector(d, end - begin, [&](int64_t i, size_t lanes) {
        largest.see(load_some(d, values + begin + i, lanes));
      });
      largest.raise(*out.as<double>());
    });
  });
}

/// P: the parameter as stored. With master weights, P is bf16 and follows them.
template <typename P>
void update_all(Executor& x, Tensor param, Tensor master, Tensor m, Tensor v, double* largest,
                ConstTensor grad, const AdamWScalars& scalars) {
  using T = Compute<P>;
  const Tag<P> d;
  P* params = param.as<P>();
  T* weights;
  if constexpr (std::is_same_v<P, bf16>) {
    weights = master.as<float>();
  } else {
    weights = params;
  }
  T* first_moments = m.as<T>();
  T* second_moments = v.as<T>();
  const T* grads = grad.as<T>();
  const auto set = [&](double value) { return hn::Set(d, static_cast<T>(value)); };
  constexpr int64_t kGrain = 8192;  // elements a thread takes at least
  parallel_ranges(x, param.numel(), kGrain, [&](int64_t begin, int64_t end, int) {
    const auto clip_scale = set(scalars.clip_scale);
    const auto beta1 = set(scalars.beta1);
    const auto one_minus_beta1 = set(1.0 - scalars.beta1);
    const auto beta2 = set(scalars.beta2);
    const auto one_minus_beta2 = set(1.0 - scalars.beta2);
    const auto epsilon = set(scalars.epsilon);
    const auto step_size = set(scalars.step_size);
    const auto second_factor = set(scalars.second_factor);
    const auto decay = set(scalars.decay);
    LargestMagnitude weight_magnitude(d);
    LargestMagnitude first_magnitude(d);
    LargestMagnitude second_magnitude(d);
    for_each_vector(d, end - begin, [&](int64_t offset, size_t lanes) {
      const int64_t i = begin + offset;
      const auto g = hn::Mul(load_some(d, grads + i, lanes), clip_scale);
      const auto m_new =
          hn::MulAdd(beta1, load_some(d, first_moments + i, lanes), hn::Mul(one_minus_beta1, g));
      const auto v_new = hn::MulAdd(beta2, load_some(d, second_moments + i, lanes),
                                    hn::Mul(one_minus_beta2, hn::Mul(g, g)));
      const auto denominator = hn::MulAdd(hn::Sqrt(v_new), second_factor, epsilon);
      const auto w = load_some(d, weights + i, lanes);
      // Decay and step are added before they meet the weight, which is rounded once. 1 - decay
      // would not do: in fp32 it keeps only some 10 bits of a typical decay.
      const auto step = hn::Div(hn::Mul(step_size, m_new), denominator);
      const auto w_new = hn::Sub(w, hn::MulAdd(decay, w, step));
      store_some(d, m_new, first_moments + i, lanes);
      store_some(d, v_new, second_moments + i, lanes);
      store_some(d, w_new, weights + i, lanes);
      if constexpr (std::is_same_v<P, bf16>) store_some(d, w_new, params + i, lanes);
      weight_magnitude.see(w_new);
      first_magnitude.see(m_new);
      second_magnitude.see(v_new);
    });
    weight_magnitude.raise(largest[static_cast<int64_t>(Largest::weight)]);
    first_magnitude.raise(largest[static_cast<int64_t>(Largest::first_moment)]);
    second_magnitude.raise(largest[static_cast<int64_t>(Largest::second_moment)]);
  });
}

void adamw_update(Executor& x, Tensor param, Tensor master, Tensor m, Tensor v, double* largest,
                  ConstTensor grad, const AdamWScalars& scalars) {
  dispatch_float("adamw_step", param, [&]<typename P>(P) {
    update_all<P>(x, param, master, m, v, largest, grad, scalars);
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace gradus::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gradus::cpu {

HWY_EXPORT(square_chunks);
HWY_EXPORT(adamw_update);
HWY_EXPORT(largest_of);

namespace {

double in_index_order(ConstTensor partials) {
  const FlushDenormals flush;
  double sum = 0.0;
  for (int64_t i = 0; i < partials.numel(); ++i) sum += partials.as<double>()[i];
  return sum;
}

/// Whether AdamW can compute the step without leaving the range. Every bound is by the triangle
/// inequality, in fp64, where overflow shows as infinity; half of the range leaves room for the
/// rounding of what adamw_step adds up. Written so that NaN does not fit.
bool update_fits(const StepState& s, const double* largest, const StepDecision& decision) {
  const auto of = [&](Largest which) { return largest[static_cast<int64_t>(which)]; };
  const AdamW& adamw = decision.adamw;
  const double limit = decision.range / 2;
  const double gradient = s.grad_norm * s.loss_scale * s.clip_scale;
  const double moment = std::max(of(Largest::first_moment), gradient);
  const double unbias = 1.0 - std::pow(adamw.beta1, static_cast<double>(s.applied + 1));
  const double step_size = decision.lr / unbias;
  const double step = step_size * moment / std::min(1.0, adamw.epsilon);
  const double decay = decision.lr * adamw.weight_decay;
  const double weight = of(Largest::weight);
  return gradient * gradient <= limit && of(Largest::second_moment) <= limit && moment <= limit &&
         step_size <= limit && decay <= limit && weight + decay * weight + step <= limit;
}

}  // namespace

void sum_of_squares(Executor& x, Tensor partials, ConstTensor in) {
  HWY_DYNAMIC_DISPATCH(square_chunks)(x, partials, in);
}

void sum_partials(Tensor out, ConstTensor partials) {
  *out.as<double>() = in_index_order(partials);
}

void raise_to_largest(Executor& x, Tensor out, ConstTensor in) {
  HWY_DYNAMIC_DISPATCH(largest_of)(x, out, in);
}

void decide_step(Tensor state, Tensor largest, ConstTensor partials, ConstTensor loss,
                 const StepDecision& decision) {
  const FlushDenormals flush;
  StepState s;
  std::memcpy(&s, state.data(), sizeof(s));
  const double sum = in_index_order(partials);
  const double loss_scale = s.loss_scale;
  s.loss = *loss.as<double>();
  s.grad_norm = std::sqrt(sum) / loss_scale;
  const bool clips = decision.clip_norm > 0.0 && s.grad_norm > decision.clip_norm;
  s.clip_scale = static_cast<float>((clips ? decision.clip_norm / s.grad_norm : 1.0) / loss_scale);
  s.lr = static_cast<float>(decision.lr);
  StepFault fault = StepFault::none;
  if (!std::isfinite(s.grad_norm) || !std::isfinite(s.loss)) {
    fault = StepFault::nonfinite;
  } else if (!update_fits(s, largest.as<double>(), decision)) {
    fault = StepFault::overflow;
  }
  s.nonfinite = static_cast<int32_t>(fault);
  s.attempted += 1;
  s.applied += s.nonfinite != 0 ? 0 : 1;
  s.skipped += s.nonfinite != 0 ? 1 : 0;
  s.skipped_in_row = s.nonfinite != 0 ? s.skipped_in_row + 1 : 0;
  std::memcpy(state.data(), &s, sizeof(s));
  if (s.nonfinite == 0) std::fill_n(largest.as<double>(), largest.numel(), 0.0);
}

void adamw_step(Executor& x, Tensor param, Tensor master, Tensor m, Tensor v, Tensor largest,
                ConstTensor grad, ConstTensor state, const AdamW& options) {
  StepState s;
  std::memcpy(&s, state.data(), sizeof(s));
  if (s.nonfinite != 0) return;
  const auto t = static_cast<double>(s.applied);
  const double lr = s.lr;
  const AdamWScalars scalars{
      .clip_scale = s.clip_scale,
      .beta1 = options.beta1,
      .beta2 = options.beta2,
      .epsilon = options.epsilon,
      .step_size = lr / (1.0 - std::pow(options.beta1, t)),
      .second_factor = 1.0 / std::sqrt(1.0 - std::pow(options.beta2, t)),
      .decay = lr * options.weight_decay,
  };
  HWY_DYNAMIC_DISPATCH(adamw_update)(x, param, master, m, v, largest.as<double>(), grad, scalars);
}

}  // namespace gradus::cpu
#endif  // HWY_ONCE
