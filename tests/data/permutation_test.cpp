#include "data/permutation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "core/error.h"

namespace gradus {
namespace {

std::vector<int64_t> images(const RandomPermutation& permutation, int64_t epoch) {
  std::vector<int64_t> result(static_cast<size_t>(permutation.size()));
  for (size_t i = 0; i < result.size(); ++i) {
    result[i] = permutation(epoch, static_cast<int64_t>(i));
  }
  return result;
}

TEST(RandomPermutation, IsAPermutationForEverySize) {
  std::vector<int64_t> sizes(70);
  std::iota(sizes.begin(), sizes.end(), 1);
  sizes.insert(sizes.end(), {97, 255, 256, 257, 1000, 1024, 1025, 65537, 99'991});
  for (const int64_t size : sizes) {
    for (const int64_t epoch : {int64_t{0}, int64_t{1}, INT64_MAX}) {
      auto sorted = images(RandomPermutation(42, size), epoch);
      std::sort(sorted.begin(), sorted.end());
      for (int64_t i = 0; i < size; ++i) {
        ASSERT_EQ(sorted[static_cast<size_t>(i)], i) << "size " << size << " epoch " << epoch;
      }
    }
  }
}

TEST(RandomPermutation, StaysInRangeForHugeSizes) {
  for (const int64_t size :
       {(int64_t{1} << 32) + 1, (int64_t{1} << 53) + 1, INT64_MAX - 1, INT64_MAX}) {
    const RandomPermutation permutation(7, size);
    std::vector<int64_t> seen;
    for (int64_t i = 0; i < 500; ++i) {
      seen.push_back(permutation(3, i));
      seen.push_back(permutation(3, size - 1 - i));
    }
    EXPECT_GE(*std::min_element(seen.begin(), seen.end()), 0);
    EXPECT_LT(*std::max_element(seen.begin(), seen.end()), size);
    std::sort(seen.begin(), seen.end());
    EXPECT_EQ(std::adjacent_find(seen.begin(), seen.end()), seen.end());
  }
}

TEST(RandomPermutation, KeysAndEpochsGiveUnrelatedOrders) {
  const auto order = images(RandomPermutation(1, 1000), 0);
  EXPECT_EQ(order, images(RandomPermutation(1, 1000), 0));
  for (const auto& other :
       {images(RandomPermutation(1, 1000), 1), images(RandomPermutation(2, 1000), 0)}) {
    // The number of agreements is close to Poisson with mean 1; 12 has a probability below 1e-9.
    int agreements = 0;
    for (size_t i = 0; i < order.size(); ++i) agreements += order[i] == other[i];
    EXPECT_LT(agreements, 12);
  }
}

TEST(RandomPermutation, EveryElementIsEquallyLikelyAtEveryPlace) {
  constexpr int64_t kEpochs = 20'000;
  for (const int64_t size : {2, 3, 4, 5, 6, 7, 11}) {
    const RandomPermutation permutation(99, size);
    std::vector<int64_t> counts(static_cast<size_t>(size * size));
    for (int64_t epoch = 0; epoch < kEpochs; ++epoch) {
      for (int64_t i = 0; i < size; ++i)
        ++counts[static_cast<size_t>(i * size + permutation(epoch, i))];
    }
    const double expected = static_cast<double>(kEpochs) / static_cast<double>(size);
    double chi_square = 0;
    for (const int64_t count : counts) {
      chi_square += std::pow(static_cast<double>(count) - expected, 2) / expected;
    }
    // (size - 1)² degrees of freedom; mean and six standard deviations of the distribution.
    const auto freedom = static_cast<double>((size - 1) * (size - 1));
    EXPECT_LT(chi_square, freedom + 6 * std::sqrt(2 * freedom)) << "size " << size;
  }
}

TEST(RandomPermutation, NeighboursAreScattered) {
  // In a random order of n elements, the mean distance of neighbours is n / 3.
  constexpr int64_t kSize = 100'000;
  const auto order = images(RandomPermutation(5, kSize), 0);
  double distance = 0;
  for (size_t i = 1; i < order.size(); ++i) {
    distance += std::abs(static_cast<double>(order[i] - order[i - 1]));
  }
  EXPECT_NEAR(distance / kSize / kSize, 1.0 / 3.0, 0.005);
}

TEST(RandomPermutation, NothingCannotBePermuted) {
  EXPECT_THROW(RandomPermutation(1, 0), DataError);
  EXPECT_THROW(RandomPermutation(1, -1), DataError);
}

}  // namespace
}  // namespace gradus
