#include "checkpoint/element_check.h"

#include <algorithm>
#include <cstring>

namespace gradus {
namespace {

/// By the bits: all ones in the exponent are an infinity or NaN.
template <typename Bits, Bits kExponent>
bool is_unfit(Bits bits, bool refuse_negative) {
  constexpr Bits kSign = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));
  const bool infinite = (bits & kExponent) == kExponent;
  return infinite | (refuse_negative & (bits > kSign));  // the sign alone is -0
}

template <typename Bits, Bits kExponent>
int64_t first_of(const std::byte* data, int64_t count, bool refuse_negative) {
  // A block without branches, then a search in the one that has something.
  constexpr int64_t kBlock = 1024;
  const auto unfit = [&](int64_t i) {
    Bits bits;
    std::memcpy(&bits, data + i * static_cast<int64_t>(sizeof(Bits)), sizeof bits);
    return is_unfit<Bits, kExponent>(bits, refuse_negative);
  };
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, count);
    bool any = false;
    for (int64_t i = begin; i < end; ++i) any |= unfit(i);
    if (!any) continue;
    while (!unfit(begin)) ++begin;
    return begin;
  }
  return count;
}

}  // namespace

int64_t first_unfit(const std::byte* data, DType dtype, int64_t count, Elements elements) {
  if (elements == Elements::any) return count;
  const bool refuse_negative = elements == Elements::not_negative;
  switch (dtype) {
    case DType::fp64:
      return first_of<uint64_t, 0x7ff0'0000'0000'0000>(data, count, refuse_negative);
    case DType::fp32:
      return first_of<uint32_t, 0x7f80'0000>(data, count, refuse_negative);
    case DType::bf16:
      return first_of<uint16_t, 0x7f80>(data, count, refuse_negative);
    case DType::fp16:
      return first_of<uint16_t, 0x7c00>(data, count, refuse_negative);
    default:
      return count;
  }
}

}  // namespace gradus
