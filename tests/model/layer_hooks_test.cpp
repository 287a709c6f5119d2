// What the layer loop promises to those who move weights and gradients behind it.

#include "model/layer_hooks.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "kernels/elementwise.h"
#include "support/tensors.h"
#include "support/tiny_model.h"

namespace gradus {
namespace {

using test::TinyModel;

MicroBatch batch_of(TinyModel& tiny) {
  return {.tokens = tiny.model.tokens(),
          .targets = tiny.model.targets(),
          .loss_sum = tiny.model.loss(),
          .gradient_scale = 0.1,
          .dropout = {.p = tiny.config.model.dropout, .seed = 3, .first_sample = 8}};
}

class Recorder final : public LayerHooks {
 public:
  void acquire(int bucket) override { calls.push_back(fmt::format("acquire {}", bucket)); }
  void release(int bucket) override { calls.push_back(fmt::format("release {}", bucket)); }
  void gradients_ready(int bucket) override { calls.push_back(fmt::format("ready {}", bucket)); }
  std::vector<std::string> calls;
};

Config config_for(bool tied, Recompute recompute) {
  Config config = test::tiny_config();
  config.model.tied_embeddings = tied;
  config.train.recompute = recompute;
  config.model.dropout = 0.2;
  return config;
}

TEST(LayerHooks, OrderOfAForwardPass) {
  TinyModel tiny(config_for(false, Recompute::none));
  Recorder recorder;
  tiny.model.gpt().forward(tiny.x, batch_of(tiny), recorder);
  EXPECT_THAT(recorder.calls,
              testing::ElementsAre("acquire 0", "release 0", "acquire 1", "release 1",  //
                                   "acquire 2", "release 2", "acquire 3", "release 3"));
}

TEST(LayerHooks, ATiedHeadReadsTheEmbeddingsBucketToo) {
  TinyModel tiny(config_for(true, Recompute::none));
  Recorder recorder;
  tiny.model.gpt().forward(tiny.x, batch_of(tiny), recorder);
  EXPECT_THAT(std::vector(recorder.calls.end() - 4, recorder.calls.end()),
              testing::ElementsAre("acquire 0", "acquire 3", "release 3", "release 0"));
}

TEST(LayerHooks, OrderOfForwardAndBackward) {
  for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
    TinyModel tiny(config_for(false, recompute));
    Recorder recorder;
    tiny.model.gpt().forward_backward(tiny.x, batch_of(tiny), recorder);
    EXPECT_THAT(recorder.calls,
                testing::ElementsAre("acquire 0", "release 0", "acquire 1", "release 1",  //
                                     "acquire 2", "release 2",                            //
                                     "acquire 3", "release 3", "ready 3",                 //
                                     "acquire 2", "release 2", "ready 2",                 //
                                     "acquire 1", "release 1", "ready 1", "ready 0"));
  }
}

/// Takes a bucket's weights away at release and gives them back at acquire, as a rank does that
/// holds only a share of them; and remembers gradients at the moment they are said to be ready.
class Sharded final : public LayerHooks {
 public:
  explicit Sharded(TinyModel& tiny) : buckets_(tiny.model.parameters().buckets()) {
    for (size_t b = 0; b < buckets_.size(); ++b) take_away(static_cast<int>(b));
  }
  void acquire(int bucket) override {
    ASSERT_TRUE(away_.contains(bucket)) << "acquired twice: " << bucket;
    const Tensor& weights = of(bucket).value;
    std::memcpy(weights.data(), away_[bucket].data(), away_[bucket].size());
    away_.erase(bucket);
  }
  void release(int bucket) override {
    ASSERT_FALSE(away_.contains(bucket)) << "released twice: " << bucket;
    take_away(bucket);
  }
  void gradients_ready(int bucket) override {
    ASSERT_FALSE(ready.contains(bucket)) << "ready twice: " << bucket;
    ready[bucket] = test::values(of(bucket).grad);
  }
  bool all_released() const { return away_.size() == buckets_.size(); }

  std::map<int, std::vector<double>> ready;

 private:
  const Bucket& of(int bucket) const { return buckets_.at(static_cast<size_t>(bucket)); }
  void take_away(int bucket) {
    const Tensor& weights = of(bucket).value;
    away_[bucket].assign(weights.data(), weights.data() + weights.bytes());
    for (int64_t i = 0; i < weights.numel(); ++i) test::set_value(weights, i, std::nan(""));
  }

  const std::vector<Bucket>& buckets_;
  std::map<int, std::vector<std::byte>> away_;
};

TEST(LayerHooks, WeightsAreReadOnlyWhileAcquiredAndGradientsAreCompleteWhenReady) {
  for (const bool tied : {true, false}) {
    for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
      SCOPED_TRACE(testing::Message() << (tied ? "tied, " : "untied, ") << to_string(recompute));
      TinyModel whole(config_for(tied, recompute));
      TinyModel sharded(config_for(tied, recompute));
      for (TinyModel* tiny : {&whole, &sharded}) {
        tiny->model.optimizer().zero_gradients(tiny->x);
        fill(tiny->x, tiny->model.loss(), 0.0);
      }
      whole.model.gpt().forward_backward(whole.x, batch_of(whole), whole.hooks);
      Sharded hooks(sharded);
      sharded.model.gpt().forward_backward(sharded.x, batch_of(sharded), hooks);
      EXPECT_TRUE(hooks.all_released());
      EXPECT_EQ(*sharded.model.loss().as<double>(), *whole.model.loss().as<double>());
      for (size_t b = 0; b < whole.model.parameters().buckets().size(); ++b) {
        const auto expected = test::values(whole.model.parameters().buckets()[b].grad);
        EXPECT_EQ(hooks.ready[static_cast<int>(b)], expected) << "bucket " << b << " when ready";
        EXPECT_EQ(test::values(sharded.model.parameters().buckets()[b].grad), expected)
            << "bucket " << b << " at the end";
      }
    }
  }
}

}  // namespace
}  // namespace gradus
