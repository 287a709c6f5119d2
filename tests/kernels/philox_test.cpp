#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/philox_test.cpp"
#include <hwy/foreach_target.h>
// After foreach_target: included once for each instruction set.
#include "kernels/cpu/philox-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gradus::HWY_NAMESPACE {

void words(uint64_t key, uint64_t counter_hi, uint64_t first_counter_lo, int64_t count,
           uint32_t* out) {
  cpu::HWY_NAMESPACE::philox_words(key, counter_hi, first_counter_lo, count, out);
}

}  // namespace gradus::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <gtest/gtest.h>

#include <vector>

#include "support/simd_targets.h"
#include "support/tensors.h"

namespace gradus {
namespace {

HWY_EXPORT(words);

// The published test vectors of philox4x32-10 (Random123's kat_vectors) pin the scalar generator.
TEST(Philox, KnownAnswers) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(philox4x32(0, 0, 0), (Words{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}));
  EXPECT_EQ(philox4x32(~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0}),
            (Words{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}));
  EXPECT_EQ(philox4x32(0x299f31d0a4093822u, 0x0370734413198a2eu, 0x85a308d3243f6a88u),
            (Words{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}));
}

TEST(Philox, VectorsGiveTheScalarNumbersOnEveryInstructionSet) {
  constexpr uint64_t kStarts[] = {0,
                                  1,
                                  0xFFFFFFF9u,  // carries from word 0 to word 1 inside a vector
                                  0xFFFFFFFFu,
                                  (uint64_t{77} << 32) - 5,
                                  uint64_t{0} - 6};  // wraps
  std::mt19937_64 rng(test::test_seed());
  test::for_each_simd_target([&] {
    for (const uint64_t start : kStarts) {
      for (const int64_t count : {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 100}) {
        const uint64_t key = rng();
        const uint64_t counter_hi = rng();
        constexpr uint32_t kGuard = 0xA5A5A5A5u;
        std::vector<uint32_t> out(static_cast<size_t>(4 * count + 8), kGuard);
        HWY_DYNAMIC_DISPATCH(words)(key, counter_hi, start, count, out.data());
        for (int64_t i = 0; i < count; ++i) {
          const auto expected = philox4x32(key, counter_hi, start + static_cast<uint64_t>(i));
          for (int w = 0; w < 4; ++w) {
            ASSERT_EQ(out[static_cast<size_t>(4 * i + w)], expected[static_cast<size_t>(w)])
                << "start " << start << ", block " << i << ", word " << w;
          }
        }
        for (size_t i = 0; i < 8; ++i) {
          ASSERT_EQ(out[static_cast<size_t>(4 * count) + i], kGuard) << "written past the end";
        }
      }
    }
  });
}

}  // namespace
}  // namespace gradus
#endif  // HWY_ONCE
