#include "kernels/cpu/elementwise.h"

#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/elementwise.cpp"
#include <hwy/foreach_target.h>
// After foreach_target: included once for each instruction set.
#include "core/parallel_for.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/validate.h"

HWY_BEFORE_NAMESPACE();
namespace gradus::cpu {
namespace HWY_NAMESPACE {

constexpr int64_t kGrain = 16384;  // elements a thread takes at least

void fill_all(Executor& x, Tensor out, double value) {
  dispatch_float("fill", out, [&]<typename S>(S) {
    const Tag<S> d;
    S* p = out.as<S>();
    const auto v = hn::Set(d, static_cast<Compute<S>>(value));
    parallel_ranges(x, out.numel(), kGrain, [&](int64_t begin, int64_t end, int) {
      for_each_vector(d, end - begin,
                      [&](int64_t i, size_t lanes) { store_some(d, v, p + begin + i, lanes); });
    });
  });
}

template <typename To, typename From>
void convert(Executor& x, Tensor out, ConstTensor in) {
  To* to = out.as<To>();
  const From* from = in.as<From>();
  parallel_ranges(x, out.numel(), kGrain, [&](int64_t begin, int64_t end, int) {
    if constexpr (std::is_same_v<Compute<To>, Compute<From>>) {
      const Tag<To> d;
      for_each_vector(d, end - begin, [&](int64_t i, size_t lanes) {
        store_some(d, load_some(d, from + begin + i, lanes), to + begin + i, lanes);
      });
    } else {  // fp64 meets the others only in tests and checkpoints
      for (int64_t i = begin; i < end; ++i) {
        to[i] = static_cast<To>(static_cast<Compute<To>>(static_cast<Compute<From>>(from[i])));
      }
    }
  });
}

void copy_all(Executor& x, Tensor out, ConstTensor in) {
  dispatch_float("copy", out, [&]<typename To>(To) {
    dispatch_float("copy", in, [&]<typename From>(From) { convert<To, From>(x, out, in); });
  });
}

void add_all(Executor& x, Tensor out, ConstTensor in) {
  dispatch_float("add", out, [&]<typename S>(S) {
    const Tag<S> d;
    S* to = out.as<S>();
    const S* from = in.as<S>();
    parallel_ranges(x, out.numel(), kGrain, [&](int64_t begin, int64_t end, int) {
      for_each_vector(d, end - begin, [&](int64_t i, size_t lanes) {
        const auto sum =
            hn::Add(load_some(d, to + begin + i, lanes), load_some(d, from + begin + i, lanes));
        store_some(d, sum, to + begin + i, lanes);
      });
    });
  });
}

void scale_all(Executor& x, Tensor inout, double factor) {
  dispatch_float("scale", inout, [&]<typename S>(S) {
    const Tag<S> d;
    S* p = inout.as<S>();
    const auto f = hn::Set(d, static_cast<Compute<S>>(factor));
    parallel_ranges(x, inout.numel(), kGrain, [&](int64_t begin, int64_t end, int) {
      for_each_vector(d, end - begin, [&](int64_t i, size_t lanes) {
        store_some(d, hn::Mul(f, load_some(d, p + begin + i, lanes)), p + begin + i, lanes);
      });
    });
  });
}

bool are_all_finite(Executor& x, ConstTensor in) {
  bool finite = true;
  dispatch_float("all_finite", in, [&]<typename S>(S) {
    const Tag<S> d;
    const S* p = in.as<S>();
    // 0 · v is 0 for finite v and NaN otherwise, and NaN stays NaN through sums.
    parallel_ranges(x, in.numel(), kGrain, [&](int64_t begin, int64_t end, int) {
      auto probe = hn::Zero(d);
      for_each_vector(d, end - begin, [&](int64_t i, size_t lanes) {
        probe = hn::MulAdd(hn::Zero(d), load_some(d, p + begin + i, lanes), probe);
      });
      if (sum_lanes(d, probe) != 0) {
#pragma omp atomic write
        finite = false;
      }
    });
  });
  return finite;
}

}  // namespace HWY_NAMESPACE
}  // namespace gradus::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gradus::cpu {

HWY_EXPORT(fill_all);
HWY_EXPORT(copy_all);
HWY_EXPORT(add_all);
HWY_EXPORT(scale_all);
HWY_EXPORT(are_all_finite);

void fill(Executor& x, Tensor out, double value) { HWY_DYNAMIC_DISPATCH(fill_all)(x, out, value); }
void copy(Executor& x, Tensor out, ConstTensor in) { HWY_DYNAMIC_DISPATCH(copy_all)(x, out, in); }
void copy_strided(Executor& x, Tensor out, ConstTensor in) {
  const int64_t run = out.size(-1);
  const int64_t runs = run == 0 ? 0 : out.numel() / run;
  const auto offset = [](const ConstTensor& tensor, int64_t index) {
    int64_t elements = 0;
    for (int axis = tensor.rank() - 2; axis >= 0; --axis) {
      elements += index % tensor.size(axis) * tensor.stride(axis);
      index /= tensor.size(axis);
    }
    return elements * size_of(tensor.dtype());
  };
  const int64_t bytes = run * size_of(out.dtype());
  parallel_for(x, runs, 4096 / (run + 1) + 1, [&](int64_t i) {
    std::memcpy(out.data() + offset(out, i), in.data() + offset(in, i), static_cast<size_t>(bytes));
  });
}

void add(Executor& x, Tensor out, ConstTensor in) { HWY_DYNAMIC_DISPATCH(add_all)(x, out, in); }
void scale(Executor& x, Tensor inout, double factor) {
  HWY_DYNAMIC_DISPATCH(scale_all)(x, inout, factor);
}
bool all_finite(Executor& x, ConstTensor in) { return HWY_DYNAMIC_DISPATCH(are_all_finite)(x, in); }

}  // namespace gradus::cpu
#endif  // HWY_ONCE
