#include "model/layer_tensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"

namespace gradus {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

TEST(LayerTensors, SavedOnesAreEachLayersAndTransientOnesShared) {
  MemoryPlan plan(Device::cpu);
  LayerTensors layers(plan);
  for (const char* layer : {"block.0", "block.1"}) {
    layers.begin_layer(layer);
    layers.declare("ln1", DType::fp32, {2, 3}, Lifetime::saved());
    layers.declare("up", DType::fp32, {2, 3}, Lifetime::transient({{1, 2}}));
  }
  ASSERT_EQ(plan.entries().size(), 3U);
  EXPECT_EQ(plan.entries()[0].name, "block.0.ln1");
  EXPECT_EQ(plan.entries()[1].name, "shared.up");
  EXPECT_EQ(plan.entries()[2].name, "block.1.ln1");
}

TEST(LayerTensors, ATransientThatAnotherLayerDeclaredOtherwiseIsRefused) {
  MemoryPlan plan(Device::cpu);
  LayerTensors layers(plan);
  const Lifetime lifetime = Lifetime::transient({{1, 2}});
  layers.begin_layer("block.0");
  layers.declare("up", DType::fp32, {2, 3}, lifetime);
  layers.begin_layer("block.1");
  EXPECT_THAT(
      [&] {
        layers.declare("up", DType::bf16, {2, 3}, lifetime);
      },
      ThrowsMessage<ShapeError>(HasSubstr("up is bf16 (2, 3) in block.1 and shared.up fp32 "
                                          "(2, 3) in block.0")));
  EXPECT_THAT(
      [&] {
        layers.declare("up", DType::fp32, {3, 2}, lifetime);
      },
      ThrowsMessage<ShapeError>(HasSubstr("fp32 (3, 2) in block.1")));
  EXPECT_THAT(
      [&] {
        layers.declare("up", DType::fp32, {2, 3}, Lifetime::transient({{1, 3}}));
      },
      ThrowsMessage<ShapeError>(HasSubstr("other instants in block.1 than in block.0")));
  EXPECT_NO_THROW(layers.declare("up", DType::fp32, {2, 3}, lifetime));
}

}  // namespace
}  // namespace gradus
