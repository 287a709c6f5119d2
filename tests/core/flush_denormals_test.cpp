#include "core/flush_denormals.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "core/parallel_for.h"

namespace gradus {
namespace {

/// What the calling thread makes of a denormal operand and of a denormal result.
template <typename T>
struct Denormals {
  T operand, result;
};
template <typename T>
Denormals<T> computed() {
  volatile T denormal = std::numeric_limits<T>::denorm_min();
  volatile T smallest = std::numeric_limits<T>::min();
  volatile T two = 2;
  return {denormal * (two / std::numeric_limits<T>::epsilon()), smallest / two};
}
template <typename T>
void expect_flushed(bool flushed) {
  const Denormals<T> values = computed<T>();
  EXPECT_EQ(values.operand == 0, flushed);
  EXPECT_EQ(values.result == 0, flushed);
}

TEST(FlushDenormals, HoldsInItsScopeAlone) {
  expect_flushed<float>(false);
  {
    const FlushDenormals outer;
    expect_flushed<float>(true);
    expect_flushed<double>(true);
    {
      const FlushDenormals inner;
      expect_flushed<double>(true);
    }
    expect_flushed<float>(true);
  }
  expect_flushed<float>(false);
  expect_flushed<double>(false);
}

TEST(FlushDenormals, HoldsInEveryRangeOnWhateverThread) {
  for (const int threads : {1, 2, 5}) {
    const Executor x(Device::cpu, threads);
    std::vector<Denormals<float>> values(static_cast<size_t>(threads), {1, 1});
    parallel_ranges(x, threads, 1, [&](int64_t begin, int64_t, int) {
      values[static_cast<size_t>(begin)] = computed<float>();
    });
    for (const Denormals<float>& value : values) {
      EXPECT_EQ(value.operand, 0);
      EXPECT_EQ(value.result, 0);
    }
    expect_flushed<float>(false);
  }
}

}  // namespace
}  // namespace gradus
