#include "kernels/cpu/embedding.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/embedding.cpp"
#include <hwy/foreach_target.h>
// After foreach_target: included once for each instruction set.
#include <algorithm>

#include "core/parallel_for.h"
#include "kernels/cpu/dropout-inl.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/precision.h"

HWY_BEFORE_NAMESPACE();
namespace gradus::cpu {
namespace HWY_NAMESPACE {
namespace {

constexpr int64_t kGrain = 16384;  // elements a thread takes at least

/// So many items of `size` elements each make a grain.
int64_t grain_of(int64_t size) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, size)); }

template <typename R, typename P>
void gather_rows(Executor& x, Tensor out, ConstTensor tokens, ConstTensor weight,
                 int64_t first_row) {
  const Tag<R> d;
  const int64_t channels = weight.size(1);
  const int64_t table_rows = weight.size(0);
  R* outs = out.as<R>();
  const P* table = weight.as<P>();
  const int32_t* ids = tokens.as<int32_t>();
  parallel_for(x, tokens.numel(), grain_of(channels), [&](int64_t i) {
    R* to = outs + i * channels;
    const int64_t row = ids[i] - first_row;
    if (row < 0 || row >= table_rows) {
      std::fill_n(to, channels, static_cast<R>(Compute<R>{0}));
      return;
    }
    const P* from = table + row * channels;
    for_each_vector(d, channels, [&](int64_t c, size_t lanes) {
      store_some(d, load_some(d, from + c, lanes), to + c, lanes);
    });
  });
}

/// Each thread owns a range of channels and goes through all tokens: every sum is made in index
/// order, whatever the number of threads, and the most frequent token unbalances nothing.
template <typename R>
void scatter_rows(Executor& x, Tensor dweight, ConstTensor dout, ConstTensor tokens,
                  int64_t first_row) {
  using T = Compute<R>;
  const Tag<R> d;
  const int64_t count = tokens.numel();
  const int64_t channels = dweight.size(1);
  const int64_t table_rows = dweight.size(0);
  T* table = dweight.as<T>();
  const R* douts = dout.as<R>();
  const int32_t* ids = tokens.as<int32_t>();
  // At least two cache lines of fp32, so that threads do not share lines.
  const int64_t grain = std::max<int64_t>(32, (grain_of(count) + 31) / 32 * 32);
  parallel_ranges(x, channels, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = ids[i] - first_row;
      if (row < 0 || row >= table_rows) continue;
      T* to = table + row * channels + begin;
      const R* from = douts + i * channels + begin;
      for_each_vector(d, end - begin, [&](int64_t c, size_t lanes) {
        const auto sum = hn::Add(load_some(d, to + c, lanes), load_some(d, from + c, lanes));
        store_some(d, sum, to + c, lanes);
      });
    }
  });
}

template <typename R, typename P>
void add_positions(Executor& x, Tensor inout, ConstTensor weight, int64_t first_position,
                   const Dropout& dropout) {
  const Tag<R> d;
  const int64_t positions = inout.size(1);
  const int64_t channels = inout.size(2);
  R* rows = inout.as<R>();
  const P* table = weight.as<P>() + first_position * channels;
  parallel_for(x, inout.size(0) * positions, grain_of(channels), [&](int64_t i) {
    const int64_t t = i % positions;
    R* row = rows + i * channels;
    const P* position = table + t * channels;
    for_each_dropout_vector(
        d, dropout, i / positions, t, channels, [&](int64_t c, size_t lanes, auto&& dropped) {
          const auto sum = hn::Add(load_some(d, row + c, lanes), load_some(d, position + c, lanes));
          store_some(d, dropped(sum), row + c, lanes);
        });
  });
}

/// A thread owns a range of positions, so that each row of dweight has one writer and its sum over
/// b is made in order.
template <typename R>
void differentiate_positions(Executor& x, Tensor dinout, Tensor dweight, int64_t first_position,
                             const Dropout& dropout) {
  using T = Compute<R>;
  const Tag<R> d;
  const int64_t batch = dinout.size(0);
  const int64_t positions = dinout.size(1);
  const int64_t channels = dinout.size(2);
  R* rows = dinout.as<R>();
  T* table = dweight.as<T>() + first_position * channels;
  parallel_for(x, positions, grain_of(batch * channels), [&](int64_t t) {
    T* sum = table + t * channels;
    for (int64_t b = 0; b < batch; ++b) {
      R* row = rows + (b * positions + t) * channels;
      for_each_dropout_vector(
          d, dropout, b, t, channels, [&](int64_t c, size_t lanes, auto&& dropped) {
            const auto value = dropped(load_some(d, row + c, lanes));
            if (dropout.active()) store_some(d, value, row + c, lanes);
            store_some(d, hn::Add(load_some(d, sum + c, lanes), value), sum + c, lanes);
          });
    }
  });
}

void token_gather(Executor& x, Tensor out, ConstTensor tokens, ConstTensor weight,
                  int64_t first_row) {
  dispatch_precision("token_embedding_forward", out, weight, [&]<typename R, typename P>(R, P) {
    gather_rows<R, P>(x, out, tokens, weight, first_row);
  });
}

void token_scatter(Executor& x, Tensor dweight, ConstTensor dout, ConstTensor tokens,
                   int64_t first_row) {
  dispatch_float("token_embedding_backward", dout,
                 [&]<typename R>(R) { scatter_rows<R>(x, dweight, dout, tokens, first_row); });
}

void position_add(Executor& x, Tensor inout, ConstTensor weight, int64_t first_position,
                  const Dropout& dropout) {
  dispatch_precision("position_embedding_forward", inout, weight,
                     [&]<typename R, typename P>(R, P) {
                       add_positions<R, P>(x, inout, weight, first_position, dropout);
                     });
}

void position_differentiate(Executor& x, Tensor dinout, Tensor dweight, int64_t first_position,
                            const Dropout& dropout) {
  dispatch_float("position_embedding_backward", dinout, [&]<typename R>(R) {
    differentiate_positions<R>(x, dinout, dweight, first_position, dropout);
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace gradus::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gradus::cpu {

HWY_EXPORT(token_gather);
HWY_EXPORT(token_scatter);
HWY_EXPORT(position_add);
HWY_EXPORT(position_differentiate);

void token_embedding_forward(Executor& x, Tensor out, ConstTensor tokens, ConstTensor weight,
                             int64_t first_row) {
  HWY_DYNAMIC_DISPATCH(token_gather)(x, out, tokens, weight, first_row);
}

void token_embedding_backward(Executor& x, Tensor dweight, ConstTensor dout, ConstTensor tokens,
                              int64_t first_row) {
  HWY_DYNAMIC_DISPATCH(token_scatter)(x, dweight, dout, tokens, first_row);
}

void position_embedding_forward(Executor& x, Tensor inout, ConstTensor weight,
                                int64_t first_position, const Dropout& dropout) {
  HWY_DYNAMIC_DISPATCH(position_add)(x, inout, weight, first_position, dropout);
}

void position_embedding_backward(Executor& x, Tensor dinout, Tensor dweight, int64_t first_position,
                                 const Dropout& dropout) {
  HWY_DYNAMIC_DISPATCH(position_differentiate)(x, dinout, dweight, first_position, dropout);
}

}  // namespace gradus::cpu
#endif  // HWY_ONCE
