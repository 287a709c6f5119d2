#include "parallel/mpi_reduce.h"

#include <algorithm>
#include <type_traits>

#include "core/error.h"
#include "core/flush_denormals.h"

namespace gradus {
namespace {

// Elements that stay in the first-level cache while every piece is added to them.
constexpr int64_t kBlock = 1024;

template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, bf16>, float, T>;

template <typename A>
A larger(A a, A b) {
  // A NaN wins, wherever it stands: no rank's non-finite value may get lost.
  return b > a || b != b ? b : a;
}

template <typename T, bool kSum>
void reduce(T* out, std::span<const std::byte* const> pieces, int64_t count) {
  using A = Accumulator<T>;
  alignas(64) A sum[kBlock];
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t n = std::min(kBlock, count - begin);
    const T* first = reinterpret_cast<const T*>(pieces[0]) + begin;
    for (int64_t i = 0; i < n; ++i) sum[i] = static_cast<A>(first[i]);
    for (const std::byte* bytes : pieces.subspan(1)) {
      const T* piece = reinterpret_cast<const T*>(bytes) + begin;
      if constexpr (kSum) {
        for (int64_t i = 0; i < n; ++i) sum[i] += static_cast<A>(piece[i]);
      } else {
        for (int64_t i = 0; i < n; ++i) sum[i] = larger(sum[i], static_cast<A>(piece[i]));
      }
    }
    for (int64_t i = 0; i < n; ++i) out[begin + i] = static_cast<T>(sum[i]);
  }
}

template <typename T>
void reduce(std::byte* out, std::span<const std::byte* const> pieces, int64_t count, ReduceOp op) {
  T* typed = reinterpret_cast<T*>(out);
  if constexpr (!std::is_integral_v<T>) {
    if (op == ReduceOp::sum) return reduce<T, true>(typed, pieces, count);
  }
  if (op == ReduceOp::max) return reduce<T, false>(typed, pieces, count);
  throw ShapeError("integers are not summed between ranks");
}

}  // namespace

void reduce_in_order(std::byte* out, std::span<const std::byte* const> pieces, int64_t count,
                     DType dtype, ReduceOp op) {
  const FlushDenormals flush;
  switch (dtype) {
    case DType::fp64:
      return reduce<double>(out, pieces, count, op);
    case DType::fp32:
      return reduce<float>(out, pieces, count, op);
    case DType::bf16:
      return reduce<bf16>(out, pieces, count, op);
    case DType::i32:
      return reduce<int32_t>(out, pieces, count, op);
    case DType::u8:
      return reduce<uint8_t>(out, pieces, count, op);
    case DType::fp16:
      break;
  }
  throw ShapeError("{} is not reduced between ranks", to_string(dtype));
}

}  // namespace gradus
