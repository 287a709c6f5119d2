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
#include "train/verify_layouts.h"

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

TEST(Verify, SaysWhichLayoutsDoNotFit) {
  Config config = large();
  config.model = {
      .layers = 2, .channels = 12, .heads = 6, .context = 6, .mlp_width = 24, .vocab_size = 11};
  config.train.micro_batch = 1;
  config.train.global_batch = 2;
  const VerifiedLayouts layouts = layouts_to_verify(config, 4);
  std::vector<std::string> names;
  for (const VerifiedLayout& layout : layouts.fitting) names.push_back(layout.name());
  EXPECT_THAT(names,
              testing::ElementsAre(
                  "pp 2 dp 2 tp 1 zero 0", "pp 2 dp 2 tp 1 zero 1", "pp 2 dp 2 tp 1 zero 2",
                  "pp 1 dp 2 tp 2 zero 0", "pp 1 dp 2 tp 2 zero 1", "pp 1 dp 2 tp 2 zero 2",
                  "pp 1 dp 2 tp 2 sequence zero 0", "pp 1 dp 2 tp 2 sequence zero 1",
                  "pp 1 dp 2 tp 2 sequence zero 2", "pp 2 dp 1 tp 2", "pp 2 dp 1 tp 2 sequence"));
  EXPECT_THAT(layouts.left_out,
              testing::ElementsAre(
                  "pp 1 dp 4 tp 1: train.global_batch 2 is not divisible by micro_batch 1 × dp 4",
                  "pp 4 dp 1 tp 1: model.layers 2 are fewer than pp 4",
                  "pp 1 dp 1 tp 4: model.heads 6 are not divisible by tp 4"));
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
    // Of one rank; and of each layout its gradients, those after an update, a curve, a resumed run.
    const size_t layouts = layouts_to_verify(small, test::job().size()).fitting.size();
    EXPECT_EQ(checks.size(), test::job().size() == 1 ? 5u : 4u + 4 * layouts);
    EXPECT_GE(layouts, static_cast<size_t>(test::job().size()));
    for (const Check& check : checks) {
      EXPECT_TRUE(check.passed()) << check.name << ": " << check.worst << " at " << check.where;
    }
  }
}

}  // namespace
}  // namespace gradus
