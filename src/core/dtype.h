#pragma once

#include <bit>
#include <cstdint>
#include <string_view>

namespace gradus {

/// Element types. fp64 is the CPU's oracle; i32 holds tokens, u8 raw bytes.
enum class DType : uint8_t { fp64, fp32, bf16, fp16, i32, u8 };

/// bfloat16 storage: the upper half of an IEEE binary32. Arithmetic happens in fp32.
struct bf16 {
  uint16_t bits = 0;

  bf16() = default;
  /// Rounds to nearest, ties to even; NaN stays a (quiet) NaN.
  explicit bf16(float value) {
    const uint32_t word = std::bit_cast<uint32_t>(value);
    if ((word & 0x7fffffffu) > 0x7f800000u) {
      bits = static_cast<uint16_t>((word >> 16) | 0x0040u);
    } else {
      bits = static_cast<uint16_t>((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
    }
  }
  explicit operator float() const { return std::bit_cast<float>(uint32_t{bits} << 16); }
};
static_assert(sizeof(bf16) == 2);

constexpr int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::fp64:
      return 8;
    case DType::fp32:
    case DType::i32:
      return 4;
    case DType::bf16:
    case DType::fp16:
      return 2;
    case DType::u8:
      return 1;
  }
  return 0;
}

constexpr std::string_view to_string(DType dtype) {
  switch (dtype) {
    case DType::fp64:
      return "fp64";
    case DType::fp32:
      return "fp32";
    case DType::bf16:
      return "bf16";
    case DType::fp16:
      return "fp16";
    case DType::i32:
      return "i32";
    case DType::u8:
      return "u8";
  }
  return "?";
}

/// The DType of a C++ element type.
template <typename T>
inline constexpr DType kDTypeOf = [] { static_assert(sizeof(T) == 0, "no DType"); }();
template <>
inline constexpr DType kDTypeOf<double> = DType::fp64;
template <>
inline constexpr DType kDTypeOf<float> = DType::fp32;
template <>
inline constexpr DType kDTypeOf<bf16> = DType::bf16;
template <>
inline constexpr DType kDTypeOf<int32_t> = DType::i32;
template <>
inline constexpr DType kDTypeOf<uint8_t> = DType::u8;

/// The type in which sums, statistics and losses over elements of a type are accumulated:
/// fp64 for fp64, else fp32.
constexpr DType accumulator_of(DType dtype) {
  return dtype == DType::fp64 ? DType::fp64 : DType::fp32;
}

}  // namespace gradus
