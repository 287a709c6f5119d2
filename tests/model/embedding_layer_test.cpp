#include "model/embedding_layer.h"

#include <gtest/gtest.h>

#include "support/tensors.h"

namespace gradus {
namespace {

using test::TensorPool;

// Where a token stands is the model's business; dropout's positions only say which mask is drawn.
TEST(EmbeddingLayer, PositionsDoNotComeFromDropout) {
  Executor x(Device::cpu, 1);
  TensorParallel tp(0, 1, false);
  TensorPool pool;
  const EmbeddingParams w = {pool.normal({13, 4}, DType::fp32), pool.normal({16, 4}, DType::fp32)};
  const Tensor tokens = pool.zeros({1, 5}, DType::i32);
  const Tensor here = pool.poisoned({1, 5, 4}, DType::fp32);
  const Tensor there = pool.poisoned({1, 5, 4}, DType::fp32);
  embedding_forward(x, here, here, tokens, w, 2, {}, tp);
  embedding_forward(x, there, there, tokens, w, 2, {.first_position = 7}, tp);
  EXPECT_EQ(test::values(here), test::values(there));

  const EmbeddingParams dw = {pool.zeros({13, 4}, DType::fp32), pool.zeros({16, 4}, DType::fp32)};
  embedding_backward(x, dw, here, here, tokens, 2, {.first_position = 7}, tp);
  for (int64_t i = 0; i < 16; ++i) {
    EXPECT_EQ(test::get_value(dw.position, i * 4) != 0.0, i >= 2 && i < 7) << "position " << i;
  }
}

}  // namespace
}  // namespace gradus
