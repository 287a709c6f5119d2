#include "model/pipeline_stage.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "core/error.h"

namespace gradus {
namespace {

ModelConfig model_of(int64_t layers, int64_t channels = 64, bool tied = true) {
  return {.layers = layers, .channels = channels, .heads = 4, .tied_embeddings = tied};
}

std::vector<PipelineStage> stages_of(const ModelConfig& model, int64_t vocabulary, int stages) {
  std::vector<PipelineStage> all;
  for (int s = 0; s < stages; ++s) all.push_back(pipeline_stage(model, vocabulary, s, stages));
  return all;
}

TEST(PipelineStage, StagesFollowEachOtherAndCoverEveryLayerOnce) {
  for (const int64_t vocabulary : {13, 1000, 50257}) {
    for (int64_t layers = 1; layers <= 33; ++layers) {
      for (int count = 1; count <= std::min<int64_t>(layers, 9); ++count) {
        const auto stages = stages_of(model_of(layers), vocabulary, count);
        int64_t next = 0;
        for (int s = 0; s < count; ++s) {
          const PipelineStage& stage = stages[static_cast<size_t>(s)];
          EXPECT_EQ(stage.first_layer, next) << layers << " layers, stage " << s << " of " << count;
          EXPECT_GE(stage.layers(), 1);
          EXPECT_EQ(stage.first, s == 0);
          EXPECT_EQ(stage.last, s == count - 1);
          next = stage.end_layer;
        }
        EXPECT_EQ(next, layers);
      }
    }
  }
}

TEST(PipelineStage, OfTheOthersTheLaterHaveTheLongerShare) {
  for (int64_t layers = 4; layers <= 40; ++layers) {
    auto stages = stages_of(model_of(layers), 1000, 4);
    stages.pop_back();
    EXPECT_LE(stages.back().layers() - stages.front().layers(), 1) << layers;
    EXPECT_TRUE(std::ranges::is_sorted(stages, {}, &PipelineStage::layers)) << layers;
  }
}

/// With F = 4C a head costs V / 12C layers.
TEST(PipelineStage, TheLastHasFewerLayersByWhatItsHeadCosts) {
  const ModelConfig model = model_of(16, 64);
  const auto last = [&](int64_t vocabulary) {
    return pipeline_stage(model, vocabulary, 3, 4).layers();
  };
  EXPECT_EQ(last(8), 4);             // next to nothing
  EXPECT_EQ(last(3 * 12 * 64), 2);   // three layers: 4, 5, 5 and 2 + 3
  EXPECT_EQ(last(50 * 12 * 64), 1);  // more than all others, and still one layer
  EXPECT_EQ(pipeline_stage(model_of(24, 2048), 50257, 3, 4).layers(), 4);
}

TEST(PipelineStage, FewerLayersThanStagesAreRefused) {
  EXPECT_THROW(pipeline_stage(model_of(3), 100, 0, 4), ConfigError);
}

TEST(PipelineStage, BucketsBelongToTheStageThatComputesThem) {
  constexpr auto N = Holding::none;
  constexpr auto O = Holding::owner;
  constexpr auto R = Holding::replica;
  using testing::ElementsAre;
  const auto holdings = [](bool tied, int stage, int stages) {
    const ModelConfig model = model_of(4, 64, tied);
    return bucket_holdings(model, pipeline_stage(model, 8, stage, stages));
  };
  EXPECT_THAT(holdings(true, 0, 1), ElementsAre(O, O, O, O, O, O));
  EXPECT_THAT(holdings(true, 0, 2), ElementsAre(O, O, O, N, N, N));
  EXPECT_THAT(holdings(true, 1, 2), ElementsAre(R, N, N, O, O, O));
  EXPECT_THAT(holdings(false, 1, 2), ElementsAre(N, N, N, O, O, O));
  EXPECT_THAT(holdings(true, 1, 4), ElementsAre(N, N, O, N, N, N));
}

}  // namespace
}  // namespace gradus
