#include "core/rng.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <set>
#include <string>

namespace gradus {
namespace {

using Words = std::array<uint32_t, 4>;

// Random123's published vectors of philox4x32-10. There a counter is four words, the lowest first.
static_assert(philox4x32(0, 0, 0) == Words{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u});
static_assert(philox4x32(~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0}) ==
              Words{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu});
static_assert(philox4x32(0x299f31d0a4093822u, 0x0370734413198a2eu, 0x85a308d3243f6a88u) ==
              Words{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u});
// FNV-1a's published vectors.
static_assert(rng_site("") == 0xcbf29ce484222325u);
static_assert(rng_site("a") == 0xaf63dc4c8601ec8cu);
static_assert(rng_site("foobar") == 0x85944171f73967e8u);

TEST(Rng, SitesReadBytesAsUnsigned) {
  // FNV-1a by its definition, over bytes that a signed char would sign-extend.
  const std::string name = "\xc3\xa9\xff";
  uint64_t hash = 0xcbf29ce484222325u;
  for (const unsigned byte : {0xc3u, 0xa9u, 0xffu}) hash = (hash ^ byte) * 0x100000001b3u;
  EXPECT_EQ(rng_site(name), hash);
}

TEST(Rng, EverySeedAndSiteHasAKeyOfItsOwn) {
  std::set<uint64_t> keys;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    for (uint64_t site = 0; site < 300; ++site) keys.insert(rng_key(seed, site));
  }
  EXPECT_EQ(keys.size(), 90000u);
}

/// Mean Hamming distance of keys of neighbours: 32 bits, within 5 standard deviations of the mean
/// of n distances, each of standard deviation 4.
TEST(Rng, NeighbouringSeedsAndSitesAreUnrelated) {
  constexpr int kCount = 4096;
  for (const bool seeds : {true, false}) {
    double bits = 0.0;
    for (uint64_t i = 0; i < kCount; ++i) {
      bits += std::popcount(rng_key(i, 7) ^ (seeds ? rng_key(i + 1, 7) : rng_key(i, 8 + i)));
    }
    EXPECT_NEAR(bits / kCount, 32.0, 5.0 * 4.0 / std::sqrt(kCount)) << (seeds ? "seeds" : "sites");
  }
  EXPECT_NE(rng_key(1, 2), rng_key(2, 1));
}

TEST(Dropout, ThresholdIsTheShareOfWordsThatAreDropped) {
  EXPECT_FALSE(Dropout{}.active());
  EXPECT_EQ(Dropout{}.threshold(), 0u);
  EXPECT_EQ((Dropout{.p = 0.25f}).threshold(), 0x40000000u);
  EXPECT_EQ((Dropout{.p = 0.5f}).threshold(), 0x80000000u);
  EXPECT_EQ((Dropout{.p = 0.5f}).scale(), 2.0);
  // The largest float below 1: the threshold must not wrap to 0.
  EXPECT_EQ((Dropout{.p = 0x1.fffffep-1f}).threshold(), 0xffffff00u);
  // Closer to 1 than any other float: rounded to fp32 this p would drop everything.
  constexpr double kAlmostOne = 0x1.fffffffffffffp-1;
  EXPECT_EQ((Dropout{.p = kAlmostOne}).threshold(), 0xffffffffu);
  EXPECT_EQ((Dropout{.p = kAlmostOne}).scale(), 0x1p53);
  EXPECT_EQ((Dropout{.p = 0x1p-32}).threshold(), 1u);
}

TEST(Dropout, ThresholdOfARefusedProbabilityIsDefined) {
  EXPECT_EQ((Dropout{.p = 1.0}).threshold(), 0xffffffffu);
  EXPECT_EQ((Dropout{.p = std::numeric_limits<double>::infinity()}).threshold(), 0xffffffffu);
  EXPECT_EQ((Dropout{.p = -0.5}).threshold(), 0u);
  EXPECT_EQ((Dropout{.p = std::numeric_limits<double>::quiet_NaN()}).threshold(), 0u);
}

TEST(Dropout, KeepsItsShareAndItsMean) {
  constexpr int kBlocks = 250000;
  for (const double p : {0.1, 0.37, 0.9, 0.999}) {
    const Dropout dropout{.p = p, .key = rng_key(11, rng_site("share"))};
    double kept = 0.0;
    for (uint64_t block = 0; block < kBlocks; ++block) {
      for (const uint32_t word : philox4x32(dropout.key, 3, block)) {
        kept += word >= dropout.threshold() ? 1.0 : 0.0;
      }
    }
    const double n = 4.0 * kBlocks;
    const double share = 1.0 - p;
    EXPECT_NEAR(kept / n, share, 5.0 * std::sqrt(share * (1.0 - share) / n)) << p;
    EXPECT_DOUBLE_EQ(dropout.scale() * share, 1.0) << p;
  }
}

}  // namespace
}  // namespace gradus
