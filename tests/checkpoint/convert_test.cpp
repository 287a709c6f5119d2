#include "checkpoint/convert.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace gradus {
namespace {

template <typename To, typename From>
To converted(From from, DType from_dtype, DType to_dtype) {
  To to;
  convert_elements(reinterpret_cast<std::byte*>(&to), to_dtype,
                   reinterpret_cast<const std::byte*>(&from), from_dtype, 1);
  return to;
}

float from_half(uint16_t bits) { return converted<float>(bits, DType::fp16, DType::fp32); }
uint16_t to_half(float value) { return converted<uint16_t>(value, DType::fp32, DType::fp16); }

/// The value of a finite half by its definition.
double half_value(uint16_t bits) {
  const int exponent = (bits >> 10) & 0x1f;
  const int mantissa = bits & 0x3ff;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

TEST(Convert, EveryHalfWidensByItsDefinitionAndComesBack) {
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = from_half(half);
    if ((half & 0x7c00) == 0x7c00) {
      if ((half & 0x3ff) != 0) {
        ASSERT_TRUE(std::isnan(value)) << bits;
        ASSERT_EQ(to_half(value) & 0x7c00, 0x7c00) << bits;
        ASSERT_NE(to_half(value) & 0x3ff, 0) << bits;
        continue;
      }
      ASSERT_EQ(value, (half & 0x8000) != 0 ? -HUGE_VALF : HUGE_VALF);
    } else {
      ASSERT_EQ(static_cast<double>(value), half_value(half)) << bits;
    }
    ASSERT_EQ(to_half(value), half) << bits;
  }
}

TEST(Convert, HalvesRoundToNearestTiesToEven) {
  for (uint32_t bits = 0; bits < 0x7bff; ++bits) {
    const auto low = static_cast<uint16_t>(bits);
    const auto high = static_cast<uint16_t>(bits + 1);
    const auto middle = static_cast<float>((half_value(low) + half_value(high)) / 2);
    ASSERT_EQ(to_half(middle), (low & 1) == 0 ? low : high) << bits;
    ASSERT_EQ(to_half(std::nextafterf(middle, 0.0f)), low) << bits;
    ASSERT_EQ(to_half(std::nextafterf(middle, HUGE_VALF)), high) << bits;
    ASSERT_EQ(to_half(-middle), 0x8000 | to_half(middle)) << bits;
  }
  EXPECT_EQ(to_half(std::nextafterf(65520.0f, 0.0f)), 0x7bff);
  EXPECT_EQ(to_half(65520.0f), 0x7c00);
  EXPECT_EQ(to_half(HUGE_VALF), 0x7c00);
}

TEST(Convert, OtherFloatingPointTypes) {
  const double pi = 3.141592653589793;
  const auto pi_f = static_cast<float>(pi);
  EXPECT_EQ(converted<double>(pi_f, DType::fp32, DType::fp64), static_cast<double>(pi_f));
  EXPECT_EQ(converted<float>(pi, DType::fp64, DType::fp32), pi_f);
  EXPECT_EQ(converted<bf16>(pi_f, DType::fp32, DType::bf16).bits, bf16(pi_f).bits);
  EXPECT_EQ(converted<bf16>(pi, DType::fp64, DType::bf16).bits, bf16(pi_f).bits);
  EXPECT_EQ(converted<float>(bf16(pi_f), DType::bf16, DType::fp32), static_cast<float>(bf16(pi_f)));
  EXPECT_EQ(converted<uint16_t>(bf16(1.5f), DType::bf16, DType::fp16), 0x3e00);
  EXPECT_EQ(converted<double>(uint16_t{0x3e00}, DType::fp16, DType::fp64), 1.5);
}

TEST(Convert, SameTypeKeepsEveryBit) {
  const uint64_t signalling_nan = 0x7ff0000000000001u;
  EXPECT_EQ(converted<uint64_t>(signalling_nan, DType::fp64, DType::fp64), signalling_nan);
  EXPECT_EQ(converted<uint32_t>(0x7f800001u, DType::fp32, DType::fp32), 0x7f800001u);
  EXPECT_EQ(converted<int32_t>(-7, DType::i32, DType::i32), -7);
}

TEST(Convert, SourcesNeedNoAlignment) {
  std::byte source[1 + 3 * sizeof(float)];
  const float values[3] = {1.0f, -2.5f, 1e-3f};
  std::memcpy(source + 1, values, sizeof values);
  double to[3];
  convert_elements(reinterpret_cast<std::byte*>(to), DType::fp64, source + 1, DType::fp32, 3);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(to[i], static_cast<double>(values[i]));
}

TEST(Convertible, FloatingPointAmongItselfAndAnythingToItself) {
  const DType all[] = {DType::fp64, DType::fp32, DType::bf16, DType::fp16, DType::i32, DType::u8};
  for (const DType from : all) {
    for (const DType to : all) {
      const bool integer =
          from == DType::i32 || from == DType::u8 || to == DType::i32 || to == DType::u8;
      EXPECT_EQ(convertible(from, to), from == to || !integer)
          << to_string(from) << " -> " << to_string(to);
    }
  }
}

}  // namespace
}  // namespace gradus
