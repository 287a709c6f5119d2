#include "infer/sampler.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <set>
#include <utility>
#include <vector>

#include "core/error.h"

namespace gradus {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

ConstTensor logits(const std::vector<double>& values) {
  return {values.data(), DType::fp64, Device::cpu, {static_cast<int64_t>(values.size())}};
}

std::vector<int32_t> draws(const SamplingOptions& options, const std::vector<double>& values,
                           int count) {
  Sampler sampler(options);
  std::vector<int32_t> out;
  for (int i = 0; i < count; ++i) out.push_back(sampler.sample(logits(values)));
  return out;
}

std::set<int32_t> drawn(const SamplingOptions& options, const std::vector<double>& values,
                        int count = 2000) {
  const auto all = draws(options, values, count);
  return {all.begin(), all.end()};
}

/// exp(logit / temperature), normalised.
std::vector<double> softmax(const std::vector<double>& values, double temperature) {
  const double largest = *std::ranges::max_element(values);
  double sum = 0.0;
  std::vector<double> p;
  for (const double value : values) sum += std::exp((value - largest) / temperature);
  for (const double value : values) p.push_back(std::exp((value - largest) / temperature) / sum);
  return p;
}

/// Pearson's χ² of counts against probabilities.
double chi_square(const std::vector<int32_t>& tokens, const std::vector<double>& p) {
  std::vector<double> counts(p.size(), 0.0);
  for (const int32_t token : tokens) counts.at(static_cast<size_t>(token)) += 1.0;
  double sum = 0.0;
  for (size_t i = 0; i < p.size(); ++i) {
    const double expected = p[i] * static_cast<double>(tokens.size());
    if (expected == 0.0) {
      EXPECT_EQ(counts[i], 0.0) << "token " << i << " has no probability";
    } else {
      sum += (counts[i] - expected) * (counts[i] - expected) / expected;
    }
  }
  return sum;
}

const std::vector<double> kLogits = {0.3, -1.2, 2.0, 0.0, 1.1, -0.4, 0.9, 1.9};

// χ² of 7 degrees of freedom exceeds 24.3 once in a thousand; the seed is fixed, so that the test
// does so always or never.
TEST(Sampler, FrequenciesAreThoseOfSoftmax) {
  for (const double temperature : {0.5, 1.0, 2.0}) {
    const auto tokens = draws({.temperature = temperature, .seed = 17}, kLogits, 40000);
    EXPECT_LT(chi_square(tokens, softmax(kLogits, temperature)), 24.3) << temperature;
  }
  // The test can fail: of another temperature these are not the frequencies.
  EXPECT_GT(
      chi_square(draws({.temperature = 1.1, .seed = 17}, kLogits, 40000), softmax(kLogits, 1.0)),
      24.3);
}

TEST(Sampler, SuccessiveDrawsAreIndependent) {
  // Pairs of a fair coin: four outcomes, χ² of 3 degrees of freedom, 16.3 once in a thousand.
  const auto tokens = draws({.seed = 5}, {0.0, 0.0}, 40000);
  std::vector<int32_t> pairs;
  for (size_t i = 0; i + 1 < tokens.size(); i += 2) pairs.push_back(tokens[i] * 2 + tokens[i + 1]);
  EXPECT_LT(chi_square(pairs, {0.25, 0.25, 0.25, 0.25}), 16.3);
}

TEST(Sampler, TopKKeepsTheMostLikelyInTheirProportions) {
  auto p = softmax({2.0, 1.9, 1.1}, 1.0);
  const std::vector<double> expected = {0, 0, p[0], 0, p[2], 0, 0, p[1]};
  EXPECT_LT(chi_square(draws({.top_k = 3, .seed = 8}, kLogits, 40000), expected), 13.8)
      << "2 degrees of freedom, once in a thousand";
  EXPECT_EQ(drawn({.top_k = 1}, kLogits), (std::set<int32_t>{2}));
}

TEST(Sampler, TopKOfAllAndMoreIsNoLimit) {
  const auto unlimited = draws({.seed = 3}, kLogits, 200);
  EXPECT_EQ(draws({.top_k = 8, .seed = 3}, kLogits, 200), unlimited);
  EXPECT_EQ(draws({.top_k = 1000000, .seed = 3}, kLogits, 200), unlimited);
}

TEST(Sampler, EachLimitKeepsTheSameTokensAsASortOfAll) {
  // 200 logits of 23 values: ties at every limit.
  std::vector<double> values;
  for (int i = 0; i < 200; ++i) values.push_back(0.25 * ((i * 37 + i * i) % 23));
  std::vector<int32_t> order;
  for (int32_t i = 0; i < 200; ++i) order.push_back(i);
  std::ranges::stable_sort(order, std::greater(),
                           [&](int32_t i) { return values[static_cast<size_t>(i)]; });
  for (const int64_t k : {1, 2, 7, 40}) {
    EXPECT_EQ(drawn({.temperature = 20.0, .top_k = k}, values, 4000),
              (std::set<int32_t>(order.begin(), order.begin() + k)));
  }
  EXPECT_EQ(drawn({.temperature = 0.0}, values, 3), (std::set<int32_t>{order.front()}));
}

TEST(Sampler, TopPKeepsTheFewestThatReachIt) {
  // Probabilities 1/2, 1/4, 1/8, 1/8.
  const std::vector<double> values = {0.0, std::log(2.0), -100.0, std::log(4.0), 0.0};
  const auto kept = [&](double p) { return drawn({.top_p = p}, values); };
  EXPECT_EQ(kept(1e-9), (std::set<int32_t>{3})) << "one is always kept";
  EXPECT_EQ(kept(0.49), (std::set<int32_t>{3}));
  EXPECT_EQ(kept(0.51), (std::set<int32_t>{3, 1}));
  EXPECT_EQ(kept(0.74), (std::set<int32_t>{3, 1}));
  EXPECT_EQ(kept(0.76), (std::set<int32_t>{3, 1, 0})) << "of equals the lower id first";
  EXPECT_EQ(kept(0.9), (std::set<int32_t>{3, 1, 0, 4}));
  EXPECT_EQ(draws({.top_p = 0.9, .seed = 2}, values, 500),
            draws({.top_p = 0.999, .seed = 2}, values, 500));
}

TEST(Sampler, TopPThatIsReachedExactlyKeepsNoMore) {
  // Four equal weights of 1: shares of a quarter, without rounding.
  const std::vector<double> flat(4, 0.0);
  EXPECT_EQ(drawn({.top_p = 0.25}, flat), (std::set<int32_t>{0}));
  EXPECT_EQ(drawn({.top_p = 0.5}, flat), (std::set<int32_t>{0, 1}));
  EXPECT_EQ(drawn({.top_p = 1.0}, flat), (std::set<int32_t>{0, 1, 2, 3}));
}

TEST(Sampler, TopPCountsOnlyWhatTopKLeft) {
  // Of 1/2, 1/4, 1/8, 1/8 top-k 2 leaves 2/3 and 1/3.
  const std::vector<double> values = {std::log(4.0), std::log(2.0), 0.0, 0.0};
  EXPECT_EQ(drawn({.top_k = 2, .top_p = 0.66}, values), (std::set<int32_t>{0}));
  EXPECT_EQ(drawn({.top_k = 2, .top_p = 0.67}, values), (std::set<int32_t>{0, 1}));
}

TEST(Sampler, TemperatureZeroTakesTheMostLikely) {
  EXPECT_EQ(drawn({.temperature = 0.0}, kLogits, 50), (std::set<int32_t>{2}));
  EXPECT_EQ(drawn({.temperature = 0.0, .top_p = 0.1}, kLogits, 50), (std::set<int32_t>{2}));
  EXPECT_EQ(drawn({.temperature = 0.0}, {1.0, 3.0, 3.0}, 50), (std::set<int32_t>{1}))
      << "of equals the lowest id";
}

TEST(Sampler, LimitsOfTemperature) {
  // So small that every difference overflows: the most likely, and no NaN.
  EXPECT_EQ(drawn({.temperature = 1e-308}, kLogits), (std::set<int32_t>{2}));
  // So large that every difference vanishes: all alike.
  const std::vector<double> uniform(8, 0.125);
  EXPECT_LT(chi_square(draws({.temperature = 1e300, .seed = 21}, kLogits, 40000), uniform), 24.3);
}

TEST(Sampler, EqualLogitsAreEquallyLikelyAndRankById) {
  const std::vector<double> flat(8, -3.25);
  EXPECT_LT(chi_square(draws({.seed = 4}, flat, 40000), std::vector<double>(8, 0.125)), 24.3);
  EXPECT_EQ(drawn({.top_k = 3}, flat), (std::set<int32_t>{0, 1, 2}));
}

TEST(Sampler, LargeLogitsDoNotOverflow) {
  std::vector<double> shifted = kLogits;
  for (double& value : shifted) value += 1024.0;  // exact in fp64's grid to some 1e-13
  EXPECT_LT(chi_square(draws({.seed = 17}, shifted, 40000), softmax(kLogits, 1.0)), 24.3);
  EXPECT_EQ(drawn({}, {-1e300, 1e300, 0.0}), (std::set<int32_t>{1}));
}

TEST(Sampler, ForbiddenTokensAreNeverDrawn) {
  EXPECT_EQ(drawn({}, {-kInfinity, 1.0, -kInfinity, 0.5}), (std::set<int32_t>{1, 3}));
  EXPECT_EQ(drawn({.temperature = 0.0}, {-kInfinity, -5.0}), (std::set<int32_t>{1}));
}

TEST(Sampler, NotANumberAndInfinityAreRefusedByName) {
  for (const double temperature : {0.0, 1.0}) {
    Sampler sampler({.temperature = temperature});
    for (const auto& [bad, name] :
         {std::pair(std::nan(""), "not a number"), std::pair(kInfinity, "inf")}) {
      EXPECT_THAT(
          [&] {
            sampler.sample(logits({1.0, 2.0, bad, 3.0}));
          },
          ThrowsMessage<NumericError>(
              HasSubstr(fmt::format("the logit of token 2 is {}: the model has blown up", name))));
    }
  }
}

TEST(Sampler, ARefusalDrawsNoNumber) {
  Sampler disturbed({.seed = 6});
  Sampler calm({.seed = 6});
  for (int i = 0; i < 20; ++i) {
    EXPECT_THROW(disturbed.sample(logits({std::nan("")})), NumericError);
    EXPECT_EQ(disturbed.sample(logits(kLogits)), calm.sample(logits(kLogits)));
  }
}

TEST(Sampler, ASeedIsATextAndAnotherSeedAnother) {
  const auto first = draws({.seed = 1}, kLogits, 300);
  EXPECT_EQ(draws({.seed = 1}, kLogits, 300), first);
  EXPECT_NE(draws({.seed = 2}, kLogits, 300), first);
  EXPECT_NE(draws({.seed = 0}, kLogits, 300), first);
}

TEST(Sampler, ADrawDependsOnItsNumberAndNotOnEarlierLogits) {
  Sampler a({.seed = 12});
  Sampler b({.seed = 12});
  for (int i = 0; i < 100; ++i) {
    a.sample(logits({0.0, 1.0}));
    b.sample(logits(kLogits));
    EXPECT_EQ(a.sample(logits(kLogits)), b.sample(logits(kLogits)));
  }
}

TEST(Sampler, OneTokenIsAlwaysThatToken) {
  EXPECT_EQ(drawn({.top_k = 5, .top_p = 0.3}, {-7.0}, 20), (std::set<int32_t>{0}));
}

TEST(Sampler, ReadsFp32AsItReadsFp64) {
  const std::vector<float> single = {0.5f, -1.25f, 2.0f};
  const ConstTensor tensor(single.data(), DType::fp32, Device::cpu, {3});
  Sampler a({.seed = 9});
  Sampler b({.seed = 9});
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(a.sample(tensor), b.sample(logits({0.5, -1.25, 2.0})));
  }
}

TEST(Sampler, OptionsOutOfRangeAreRefused) {
  const auto make = [](const SamplingOptions& options) { Sampler sampler(options); };
  EXPECT_THAT([&] { make({.temperature = -0.5}); },
              ThrowsMessage<ConfigError>(HasSubstr("temperature -0.5")));
  EXPECT_THROW(make({.temperature = std::nan("")}), ConfigError);
  EXPECT_THROW(make({.temperature = kInfinity}), ConfigError);
  EXPECT_THAT([&] { make({.top_k = -1}); }, ThrowsMessage<ConfigError>(HasSubstr("top-k -1")));
  EXPECT_THAT([&] { make({.top_p = 0.0}); }, ThrowsMessage<ConfigError>(HasSubstr("top-p 0")));
  EXPECT_THROW(make({.top_p = 1.5}), ConfigError);
  EXPECT_THROW(make({.top_p = std::nan("")}), ConfigError);
  EXPECT_NO_THROW(make({.temperature = 0.0, .top_k = 0, .top_p = 1.0}));
}

}  // namespace
}  // namespace gradus
