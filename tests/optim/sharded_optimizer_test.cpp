// Replicas that each update a shard of every bucket do together what one optimizer does alone.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/error.h"
#include "optim/optimizer.h"
#include "optimizer_problem.h"
#include "support/tensors.h"

namespace gradus {
namespace {

using Problem = test::OptimizerProblem;
using Kind = Optimizer::Kind;
using testing::Each;
using testing::HasSubstr;
using testing::ThrowsMessage;

constexpr Kind kKinds[] = {Kind::master, Kind::first_moment, Kind::second_moment, Kind::gradient};

/// The replicas of one model, all in this process. Their optimizers have nobody to sum the norm
/// with, so each knows its shards' alone: clipping is off.
struct Replicas {
  Replicas(const Precision& precision, Sharding sharding, int64_t count) {
    for (int64_t rank = 0; rank < count; ++rank) {
      all.push_back(std::make_unique<Problem>(
          Parameters::Options{
              .precision = precision, .dp_rank = rank, .dp_size = count, .sharding = sharding},
          OptimConfig{.weight_decay = 0.1, .clip_norm = 0.0}));
    }
    gather_weights();
  }

  /// What DataParallel::gather_weights does.
  void gather_weights() {
    for (const auto& to : all) {
      for (const auto& from : all) {
        for (size_t b = 0; b < from->parameters().buckets().size(); ++b) {
          const Bucket& source = from->parameters().buckets()[b];
          const ElementRange& shard = source.shard;
          const Tensor part = source.value.slice(0, shard.begin, shard.numel());
          const Tensor& target = to->parameters().buckets()[b].value;
          std::memmove(target.slice(0, shard.begin, shard.numel()).data(), part.data(),
                       static_cast<size_t>(part.bytes()));
        }
      }
    }
  }

  std::vector<std::unique_ptr<Problem>> all;
};

struct Case {
  const char* name;
  Precision precision;
  Sharding sharding;
};

class ShardedOptimizer : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(
    Layouts, ShardedOptimizer,
    testing::Values(Case{"fp64_optimizer", precision::kFp64, Sharding::optimizer},
                    Case{"fp32_optimizer", precision::kFp32, Sharding::optimizer},
                    Case{"bf16_optimizer", precision::kBf16, Sharding::optimizer},
                    Case{"fp32_gradients", precision::kFp32, Sharding::gradients},
                    Case{"bf16_gradients", precision::kBf16, Sharding::gradients}),
    [](const auto& c) { return std::string(c.param.name); });

TEST_P(ShardedOptimizer, ReplicasTogetherAreOneOptimizerToTheBit) {
  const auto& [_, precision, sharding] = GetParam();
  for (const int64_t count : {2, 3, 5}) {
    SCOPED_TRACE(testing::Message() << count << " replicas");
    Problem whole({.precision = precision, .dp_size = count},
                  {.weight_decay = 0.1, .clip_norm = 0.0});
    Replicas replicas(precision, sharding, count);
    for (uint64_t step = 0; step < 3; ++step) {
      whole.draw_gradients(step);
      const double norm = whole.step(1e-2).grad_norm;
      double squares = 0.0;
      for (const auto& replica : replicas.all) {
        replica->draw_gradients(step);
        squares += std::pow(replica->step(1e-2).grad_norm, 2);
      }
      EXPECT_NEAR(std::sqrt(squares), norm, 1e-14 * norm) << "each chunk is one replica's";
      replicas.gather_weights();
      for (const auto& replica : replicas.all) {
        for (size_t b = 0; b < whole.parameters().buckets().size(); ++b) {
          const Bucket& expected = whole.parameters().buckets()[b];
          EXPECT_EQ(test::values(replica->parameters().buckets()[b].value),
                    test::values(expected.value))
              << expected.name << ", step " << step;
        }
        for (const Parameter& p : replica->parameters().all()) {
          for (const Kind kind : kKinds) {
            const HeldPart part = replica->optimizer().held(p, kind);
            const HeldPart all = whole.optimizer().held(p, kind);
            EXPECT_EQ(test::values(part.values),
                      test::values(all.values.slice(0, part.first, part.values.numel())))
                << p.spec.name << ", kind " << static_cast<int>(kind) << ", step " << step;
          }
        }
      }
    }
  }
}

TEST_P(ShardedOptimizer, AReplicaWritesItsShardsAlone) {
  const auto& [_, precision, sharding] = GetParam();
  Replicas replicas(precision, sharding, 3);
  for (const auto& replica : replicas.all) {
    std::vector<std::vector<double>> before;
    for (const Bucket& bucket : replica->parameters().buckets()) {
      before.push_back(test::values(bucket.value));
    }
    replica->draw_gradients(1);
    replica->step(0.5);
    int64_t changed = 0;
    for (size_t b = 0; b < before.size(); ++b) {
      const Bucket& bucket = replica->parameters().buckets()[b];
      for (int64_t i = 0; i < bucket.numel; ++i) {
        const bool differs = test::get_value(bucket.value, i) != before[b][static_cast<size_t>(i)];
        ASSERT_TRUE(!differs || (i >= bucket.shard.begin && i < bucket.shard.end))
            << bucket.name << "[" << i << "]";
        changed += differs ? 1 : 0;
      }
    }
    EXPECT_GT(changed, 0);
  }
}

TEST_P(ShardedOptimizer, HeldPartsOfReplicasCoverEachElementOnce) {
  const auto& [_, precision, sharding] = GetParam();
  bool divided = false;
  for (const int64_t count : {2, 3, 5}) {
    const Replicas replicas(precision, sharding, count);
    const Parameters& parameters = replicas.all.front()->parameters();
    for (size_t i = 0; i < parameters.all().size(); ++i) {
      for (const Kind kind : kKinds) {
        std::vector<int> times(static_cast<size_t>(parameters.all()[i].numel()));
        for (const auto& replica : replicas.all) {
          const Parameter& p = replica->parameters().all()[i];
          const HeldPart part = replica->optimizer().held(p, kind);
          ASSERT_GE(part.first, 0);
          ASSERT_LE(part.first + part.values.numel(), p.numel());
          for (int64_t e = 0; e < part.values.numel(); ++e) {
            ++times[static_cast<size_t>(part.first + e)];
          }
          divided = divided || (part.values.numel() > 0 && part.values.numel() < p.numel());
        }
        EXPECT_THAT(times, Each(1)) << parameters.all()[i].spec.name << " over " << count;
      }
    }
  }
  EXPECT_TRUE(divided) << "the test wants a parameter across two shards";
}

/// held() gives memory, not copies: checkpoints are loaded through it.
TEST_P(ShardedOptimizer, HeldWeightsReachTheParametersOfThisReplica) {
  const auto& [_, precision, sharding] = GetParam();
  Replicas replicas(precision, sharding, 3);
  for (const auto& replica : replicas.all) {
    for (const Parameter& p : replica->parameters().all()) {
      const HeldPart part = replica->optimizer().held(p, Kind::master);
      for (int64_t i = 0; i < part.values.numel(); ++i) test::set_value(part.values, i, 64.0);
    }
    replica->optimizer().publish_master(replica->x());
    for (const Parameter& p : replica->parameters().all()) {
      const HeldPart part = replica->optimizer().held(p, Kind::master);
      for (int64_t i = 0; i < p.numel(); ++i) {
        const bool held = i >= part.first && i < part.first + part.values.numel();
        ASSERT_EQ(test::get_value(p.value, i) == 64.0, held) << p.spec.name << "[" << i << "]";
      }
    }
  }
}

TEST(ShardedOptimizerViews, AWholeTensorIsRefusedWhereReplicasDivideIt) {
  Problem replica(
      {.precision = precision::kFp32, .dp_rank = 0, .dp_size = 3, .sharding = Sharding::optimizer});
  const Parameters& parameters = replica.parameters();
  for (const auto view :
       {&Optimizer::master, &Optimizer::first_moment, &Optimizer::second_moment}) {
    EXPECT_THAT([&] { (replica.optimizer().*view)(parameters["up"]); },
                ThrowsMessage<Error>(HasSubstr("has a part of up only")));
    EXPECT_THAT([&] { (replica.optimizer().*view)(parameters["position"]); },
                ThrowsMessage<Error>(HasSubstr("has a part of position only")))
        << "nothing of it is a part too";
    EXPECT_EQ((replica.optimizer().*view)(parameters["token"]).shape(),
              parameters["token"].value.shape());
  }
}

TEST(OptimizerOfAStage, ABucketOfAnotherStageHasNoState) {
  Problem stage(
      {.precision = precision::kBf16, .holdings = {Holding::none, Holding::owner, Holding::none}});
  for (const auto& [name, tensor] : stage.tensors()) {
    EXPECT_FALSE(name.starts_with("embedding.") || name.starts_with("final.")) << name;
  }
  stage.draw_gradients(0);
  EXPECT_EQ(stage.step(1e-2).applied, 1);
}

/// A replica's gradients are the owner's, summed already: its weights move with the owner's, and
/// the norm counts them once.
TEST(OptimizerOfAStage, AReplicaIsUpdatedAndNotCounted) {
  const OptimConfig config{.clip_norm = 0.0};
  const auto problem = [&](Holding embedding) {
    return std::make_unique<Problem>(
        Parameters::Options{.precision = precision::kFp32,
                            .holdings = {embedding, Holding::owner, Holding::owner}},
        config);
  };
  const auto owner = problem(Holding::owner);
  const auto replica = problem(Holding::replica);
  for (Problem* p : {owner.get(), replica.get()}) p->draw_gradients(4);
  double squares = 0.0;
  for (const char* name : {"token", "position"}) {
    for (const double g : test::values(owner->parameters()[name].grad)) squares += g * g;
  }
  const double all = owner->step(1e-2).grad_norm;
  const double counted = replica->step(1e-2).grad_norm;
  EXPECT_NEAR(counted * counted + squares, all * all, 1e-13 * all * all);
  EXPECT_GT(squares, 1e-3 * all * all);
  EXPECT_EQ(replica->bytes(), owner->bytes());
}

}  // namespace
}  // namespace gradus
