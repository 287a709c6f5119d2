#include "checkpoint/convert.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace gradus {
namespace {

/// IEEE binary16, only as it lies in files.
struct Half {
  uint16_t bits;
};

float to_float(double value) { return static_cast<float>(value); }
float to_float(float value) { return value; }
float to_float(bf16 value) { return static_cast<float>(value); }
float to_float(Half half) {
  const uint32_t sign = uint32_t{half.bits & 0x8000u} << 16;
  const uint32_t exponent = (half.bits >> 10) & 0x1fu;
  const uint32_t mantissa = half.bits & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: mantissa · 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t widened = exponent == 0x1f ? 0xffu : exponent - 15 + 127;
  return std::bit_cast<float>(sign | widened << 23 | mantissa << 13);
}

template <typename T>
T from_float(float value) {
  return static_cast<T>(value);
}
template <>
bf16 from_float(float value) {
  return bf16(value);
}
template <>
Half from_float(float value) {
  const uint32_t word = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (word >> 16) & 0x8000u;
  const float magnitude = std::fabs(value);
  uint32_t bits = 0;
  if (std::isnan(value)) {
    bits = 0x7e00u | ((word >> 13) & 0x3ffu);
  } else if (magnitude >= 65520.0f) {  // halfway between the largest finite number and the next
    bits = 0x7c00u;
  } else if (magnitude < 0x1p-14f) {
    // Adding 1/2 leaves the ulp of a subnormal, 2^-24, as the sum's own: the addition rounds.
    bits = std::bit_cast<uint32_t>(magnitude + 0.5f) - std::bit_cast<uint32_t>(0.5f);
  } else {
    const uint32_t rounded = (word & 0x7fffffffu) + 0xfffu + ((word >> 13) & 1u);
    bits = (rounded >> 13) - ((127u - 15u) << 10);
  }
  return {static_cast<uint16_t>(sign | bits)};
}

template <typename To, typename From>
void convert(std::byte* to, const std::byte* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    From source;
    std::memcpy(&source, from + i * static_cast<int64_t>(sizeof(From)), sizeof(From));
    const To value = from_float<To>(to_float(source));
    std::memcpy(to + i * static_cast<int64_t>(sizeof(To)), &value, sizeof(To));
  }
}

template <typename To>
void convert_to(std::byte* to, const std::byte* from, DType from_dtype, int64_t count) {
  switch (from_dtype) {
    case DType::fp64:
      return convert<To, double>(to, from, count);
    case DType::fp32:
      return convert<To, float>(to, from, count);
    case DType::bf16:
      return convert<To, bf16>(to, from, count);
    case DType::fp16:
      return convert<To, Half>(to, from, count);
    case DType::i32:
    case DType::u8:
      return;
  }
}

bool floating(DType dtype) { return dtype != DType::i32 && dtype != DType::u8; }

}  // namespace

bool convertible(DType from, DType to) { return from == to || (floating(from) && floating(to)); }

void convert_elements(std::byte* to, DType to_dtype, const std::byte* from, DType from_dtype,
                      int64_t count) {
  if (to_dtype == from_dtype) {
    std::memcpy(to, from, static_cast<size_t>(count * size_of(to_dtype)));
    return;
  }
  switch (to_dtype) {
    case DType::fp64:
      return convert_to<double>(to, from, from_dtype, count);
    case DType::fp32:
      return convert_to<float>(to, from, from_dtype, count);
    case DType::bf16:
      return convert_to<bf16>(to, from, from_dtype, count);
    case DType::fp16:
      return convert_to<Half>(to, from, from_dtype, count);
    case DType::i32:
    case DType::u8:
      return;
  }
}

}  // namespace gradus
