#include "core/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/precision.h"

namespace gradus {
namespace {

float from_bits(uint32_t bits) { return std::bit_cast<float>(bits); }

bool is_nan(uint16_t bits) { return (bits & 0x7fffu) > 0x7f80u; }

/// The value of a bfloat16 pattern by its definition, (-1)^s · 1.f · 2^(e - 127); infinity as the
/// next power of two, which is what rounding sees.
double defined_value(uint16_t bits) {
  const int exponent = (bits >> 7) & 0xff;
  const int fraction = bits & 0x7f;
  const double magnitude = exponent == 0 ? std::ldexp(fraction, -126 - 7)
                                         : std::ldexp(128 + fraction, exponent - 127 - 7);
  return (bits & 0x8000u) != 0 ? -magnitude : magnitude;
}

TEST(Bf16, EveryPatternIsReadByItsDefinitionAndComesBack) {
  for (uint32_t pattern = 0; pattern < 0x10000u; ++pattern) {
    bf16 value;
    value.bits = static_cast<uint16_t>(pattern);
    const float read = static_cast<float>(value);
    if (is_nan(value.bits)) {
      ASSERT_TRUE(std::isnan(read)) << pattern;
      // A signalling NaN becomes quiet; nothing else of it changes.
      ASSERT_EQ(bf16(read).bits, pattern | 0x0040u);
      continue;
    }
    if ((pattern & 0x7fffu) == 0x7f80u) {
      ASSERT_TRUE(std::isinf(read));
    } else {
      ASSERT_EQ(static_cast<double>(read), defined_value(value.bits)) << pattern;
    }
    ASSERT_EQ(std::signbit(read), (pattern & 0x8000u) != 0) << pattern;
    ASSERT_EQ(bf16(read).bits, pattern);
  }
}

TEST(Bf16, RoundsToNearestTiesToEvenBehindEveryPattern) {
  for (uint32_t high = 0; high < 0x10000u; ++high) {
    if ((high & 0x7f80u) == 0x7f80u) continue;  // infinities and NaN
    const auto down = static_cast<uint16_t>(high);
    const auto up = static_cast<uint16_t>(high + 1);  // one further from zero, at last infinity
    for (const uint32_t low : {0u, 1u, 0x3fffu, 0x7fffu, 0x8000u, 0x8001u, 0xc000u, 0xffffu}) {
      const float value = from_bits(high << 16 | low);
      const double below = std::abs(static_cast<double>(value) - defined_value(down));
      const double above = std::abs(defined_value(up) - static_cast<double>(value));
      const uint16_t nearest = below < above      ? down
                               : above < below    ? up
                               : (down & 1u) == 0 ? down
                                                  : up;
      ASSERT_EQ(bf16(value).bits, nearest) << high << " " << low;
    }
  }
}

TEST(Bf16, NanStaysNanWhateverItsPayload) {
  for (const uint32_t sign : {0u, 0x80000000u}) {
    // Payloads that lie in the dropped half alone would round to infinity, large ones to zero.
    for (const uint32_t payload : {1u, 0x8000u, 0xffffu, 0x10000u, 0x400000u, 0x7fffffu}) {
      const bf16 rounded(from_bits(sign | 0x7f800000u | payload));
      EXPECT_TRUE(is_nan(rounded.bits)) << payload;
      EXPECT_NE(rounded.bits & 0x0040u, 0) << "quiet";
      EXPECT_EQ(rounded.bits & 0x8000u, sign >> 16) << payload;
    }
  }
}

TEST(Bf16, OverflowIsInfinityFromHalfwayToTheNextPowerOfTwo) {
  constexpr float kMax = std::numeric_limits<float>::max();
  EXPECT_EQ(bf16(from_bits(0x7f7f7fffu)).bits, 0x7f7f);
  EXPECT_EQ(bf16(from_bits(0x7f7f8000u)).bits, 0x7f80);
  EXPECT_EQ(bf16(kMax).bits, 0x7f80);
  EXPECT_EQ(bf16(-kMax).bits, 0xff80);
}

TEST(DType, SizesAndNames) {
  struct Row {
    DType dtype;
    int64_t size;
    std::string_view name;
    DType accumulator;
  };
  for (const Row& row : {Row{DType::fp64, 8, "fp64", DType::fp64},
                         {DType::fp32, 4, "fp32", DType::fp32},
                         {DType::bf16, 2, "bf16", DType::fp32},
                         {DType::fp16, 2, "fp16", DType::fp32},
                         {DType::i32, 4, "i32", DType::fp32},
                         {DType::u8, 1, "u8", DType::fp32}}) {
    EXPECT_EQ(size_of(row.dtype), row.size) << row.name;
    EXPECT_EQ(to_string(row.dtype), row.name);
    EXPECT_EQ(accumulator_of(row.dtype), row.accumulator) << row.name;
  }
  EXPECT_EQ(kDTypeOf<double>, DType::fp64);
  EXPECT_EQ(kDTypeOf<float>, DType::fp32);
  EXPECT_EQ(kDTypeOf<bf16>, DType::bf16);
  EXPECT_EQ(kDTypeOf<int32_t>, DType::i32);
  EXPECT_EQ(kDTypeOf<uint8_t>, DType::u8);
}

TEST(Precision, MasterWeightsAreSeparateWhereTheyDiffer) {
  EXPECT_FALSE(precision::kFp64.separate_master());
  EXPECT_FALSE(precision::kFp32.separate_master());
  EXPECT_TRUE(precision::kBf16.separate_master());
  EXPECT_TRUE(precision::kBf16Lean.separate_master());
  // Gradients of bf16 are accumulated and reduced in fp32.
  EXPECT_EQ(precision::kBf16.gradient, DType::fp32);
  EXPECT_EQ(precision::kBf16.reduce, DType::fp32);
  EXPECT_EQ(precision::kBf16.residual, DType::fp32);
  EXPECT_EQ(precision::kBf16Lean.residual, DType::bf16);
}

}  // namespace
}  // namespace gradus
