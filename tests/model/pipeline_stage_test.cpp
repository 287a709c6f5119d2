#include "model/pipeline_stage.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "core/error.h"

namespace gradus {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

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
  for (int count = 2; count <= 12; ++count) {
    for (int64_t layers = count; layers <= 40; ++layers) {
      auto stages = stages_of(model_of(layers), 1000, count);
      stages.pop_back();
      EXPECT_LE(stages.back().layers() - stages.front().layers(), 1) << layers << ", " << count;
      EXPECT_TRUE(std::ranges::is_sorted(stages, {}, &PipelineStage::layers))
          << layers << ", " << count;
    }
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

/// Operations of the slowest stage in units of a layer's.
double slowest_of(const std::vector<int64_t>& layers, double head) {
  const double others = static_cast<double>(*std::max_element(layers.begin(), layers.end() - 1));
  return std::max(others, static_cast<double>(layers.back()) + head);
}

/// The least that slowest_of is over every way to divide `left` layers among the stages that are
/// not in `given` yet.
double least_of_all(std::vector<int64_t>& given, int64_t left, size_t stages, double head) {
  if (given.size() == stages - 1) {
    given.push_back(left);
    const double slowest = slowest_of(given, head);
    given.pop_back();
    return slowest;
  }
  double least = std::numeric_limits<double>::infinity();
  const auto behind = static_cast<int64_t>(stages - given.size() - 1);
  for (int64_t layers = 1; layers <= left - behind; ++layers) {
    given.push_back(layers);
    least = std::min(least, least_of_all(given, left - layers, stages, head));
    given.pop_back();
  }
  return least;
}

TEST(PipelineStage, NoOtherDivisionHasAFasterSlowestStage) {
  constexpr int64_t kChannels = 64;
  for (const double head : {0.01, 0.5, 1.0, 2.4, 7.0, 100.0}) {
    const auto vocabulary = static_cast<int64_t>(head * 12 * kChannels);
    const double cost = static_cast<double>(vocabulary) / (12 * kChannels);  // with F = 4C
    for (int stages = 2; stages <= 5; ++stages) {
      for (int64_t layers = stages; layers <= 13; ++layers) {
        std::vector<int64_t> divided;
        for (const PipelineStage& stage :
             stages_of(model_of(layers, kChannels), vocabulary, stages)) {
          divided.push_back(stage.layers());
        }
        std::vector<int64_t> given;
        EXPECT_DOUBLE_EQ(slowest_of(divided, cost),
                         least_of_all(given, layers, static_cast<size_t>(stages), cost))
            << layers << " layers over " << stages << " stages, a head of " << cost << " layers";
      }
    }
  }
}

TEST(PipelineStage, FewerLayersThanStagesAreRefused) {
  for (const int stage : {0, 3}) {
    EXPECT_THAT(
        [&] { pipeline_stage(model_of(3), 100, stage, 4); },
        ThrowsMessage<ConfigError>(HasSubstr("model.layers 3 are too few for pp 4: every stage")));
  }
  EXPECT_EQ(pipeline_stage(model_of(4), 100, 0, 4).layers(), 1);
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
