#include "checkpoint/element_check.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "checkpoint/convert.h"

namespace gradus {
namespace {

/// The first unfit one of a long tensor of ones with `value` at `place`, in a dtype; behind an odd
/// byte, as it may lie in a file.
int64_t found_at(DType dtype, double value, int64_t place, Elements elements) {
  constexpr int64_t kCount = 2500;
  std::vector<double> values(kCount, 1.0);
  values[static_cast<size_t>(place)] = value;
  std::vector<std::byte> bytes(1 + kCount * size_of(dtype));
  convert_elements(bytes.data() + 1, dtype, reinterpret_cast<const std::byte*>(values.data()),
                   DType::fp64, kCount);
  const int64_t found = first_unfit(bytes.data() + 1, dtype, kCount, elements);
  return found == kCount ? -1 : found;
}

TEST(ElementCheck, FindsTheFirstThatIsNotAsItMayBe) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  for (const DType dtype : {DType::fp64, DType::fp32, DType::bf16, DType::fp16}) {
    for (const int64_t place : {0, 1023, 1024, 2499}) {
      for (const double bad : {kInf, -kInf, kNaN, -kNaN}) {
        EXPECT_EQ(found_at(dtype, bad, place, Elements::finite), place) << to_string(dtype) << bad;
        EXPECT_EQ(found_at(dtype, bad, place, Elements::not_negative), place) << bad;
        EXPECT_EQ(found_at(dtype, bad, place, Elements::any), -1);
      }
      for (const double good : {0.0, -0.0, 60000.0, 1e-7}) {
        EXPECT_EQ(found_at(dtype, good, place, Elements::finite), -1) << to_string(dtype) << good;
        EXPECT_EQ(found_at(dtype, good, place, Elements::not_negative), -1) << good;
      }
      EXPECT_EQ(found_at(dtype, -1e-7, place, Elements::finite), -1) << to_string(dtype);
      EXPECT_EQ(found_at(dtype, -1e-7, place, Elements::not_negative), place) << to_string(dtype);
    }
  }
}

TEST(ElementCheck, IntegersAreWhatTheyAre) {
  const std::vector<int32_t> values = {-1, 0x7f800000, 3};
  EXPECT_EQ(first_unfit(reinterpret_cast<const std::byte*>(values.data()), DType::i32, 3,
                        Elements::not_negative),
            3);
  EXPECT_EQ(first_unfit(nullptr, DType::fp32, 0, Elements::finite), 0);
}

}  // namespace
}  // namespace gradus
