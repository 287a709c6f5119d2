// `gradus verify` as a library: what it makes of configurations, and that it passes on whatever
// ranks this program was started as.

#include "train/verify.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "mpi_job.h"
#include "support/temp_dir.h"

namespace gradus {
namespace {

Config large() {
  Config config;
  config.model = {.layers = 24,
                  .channels = 2048,
                  .heads = 16,
                  .context = 2048,
                  .dropout = 0.1,
                  .vocab_size = 50257};
  config.train.micro_batch = 4;
  config.train.global_batch = 512;
  config.train.precision = PrecisionPreset::bf16;
  config.train.recompute = Recompute::selective;
  return config;
}

TEST(Verify, ShrinksWhatCostsTimeAndLeavesWhatDecides) {
  std::vector<std::string> rule;
  const Config small = shrink_for_verification(large(), 8, rule);
  EXPECT_THAT(rule, testing::ElementsAre("model.layers 24 -> 8", "model.channels 2048 -> 64",
                                         "model.mlp_width 8192 -> 256", "model.context 2048 -> 24",
                                         "model.vocab_size 50257 -> 131",
                                         "train.micro_batch 4 -> 2", "train.global_batch 512 -> 32",
                                         "random tokens, one thread a rank"));
  EXPECT_EQ(small.model.heads, 16);
  EXPECT_EQ(small.model.dropout, 0.1);
  EXPECT_EQ(small.train.precision, PrecisionPreset::bf16);
  EXPECT_EQ(small.train.recompute, Recompute::selective);
  EXPECT_NO_THROW(check_config(small));
}

TEST(Verify, ASmallConfigurationStaysAsItIs) {
  Config config = large();
  config.model = {
      .layers = 3, .channels = 10, .heads = 5, .context = 7, .mlp_width = 15, .vocab_size = 11};
  config.train.micro_batch = 1;
  std::vector<std::string> rule;
  const Config small = shrink_for_verification(config, 1, rule);
  EXPECT_EQ(small.model, config.model);
}

TEST(Verify, ADeviationBeyondItsLimitOrThatIsNoNumberFails) {
  EXPECT_TRUE((Check{.worst = 0.0, .limit = 0.0}).passed());
  EXPECT_FALSE((Check{.worst = 1e-300, .limit = 0.0}).passed());
  EXPECT_FALSE((Check{.worst = std::numeric_limits<double>::quiet_NaN(), .limit = 1.0}).passed());
}

TEST(Verify, EveryCheckPasses) {
  test::TempDir folder;
  for (const bool other : {false, true}) {
    Config config = large();
    config.model.layers = 4;
    config.model.heads = 4;
    config.model.bias = !other;
    config.model.tied_embeddings = !other;
    if (other) config.train.recompute = Recompute::none;
    // One folder for all: the first rank's.
    config.run.dir = test::job().exchange(folder.path().string()).front();
    std::vector<std::string> rule;
    const Config small = shrink_for_verification(config, test::job().size(), rule);
    size_t reported = 0;
    const std::vector<Check> checks = verify(small, test::job(), [&](const Check&) { ++reported; });
    EXPECT_EQ(reported, checks.size());
    EXPECT_GE(checks.size(), 5u);
    for (const Check& check : checks) {
      EXPECT_TRUE(check.passed()) << check.name << ": " << check.worst << " at " << check.where;
    }
  }
}

}  // namespace
}  // namespace gradus
