#include "core/parameters.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/error.h"
#include "support/tensors.h"

namespace gradus {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

constexpr int64_t kC = 12;
constexpr int64_t kV = 13;
constexpr int64_t kF = 20;

/// A small table with every kind of entry; the vocabulary is padded to 8 rows a rank.
std::vector<ParamSpec> table(int64_t tp, int64_t C = kC) {
  const Init normal = Init::normal;
  return {
      {.name = "token",
       .shape = {kV, C},
       .cut = TpCut::rows,
       .padded_rows = (kV + 8 * tp - 1) / (8 * tp) * 8 * tp,
       .decay = true,
       .tied = {"head"},
       .init = normal},
      {.name = "position", .shape = {7, C}, .decay = true, .init = normal},
      {.name = "ln", .shape = {C}, .bucket = 1, .init = Init::ones},
      {.name = "q", .shape = {C, C}, .bucket = 1, .cut = TpCut::rows, .decay = true},
      {.name = "k",
       .shape = {C, C},
       .bucket = 1,
       .cut = TpCut::rows,
       .packed = true,
       .decay = true},
      {.name = "v",
       .shape = {C, C},
       .bucket = 1,
       .cut = TpCut::rows,
       .packed = true,
       .decay = true},
      {.name = "q.bias", .shape = {C}, .bucket = 1, .cut = TpCut::rows},
      {.name = "k.bias", .shape = {C}, .bucket = 1, .cut = TpCut::rows, .packed = true},
      {.name = "v.bias", .shape = {C}, .bucket = 1, .cut = TpCut::rows, .packed = true},
      {.name = "down", .shape = {C, kF}, .bucket = 1, .cut = TpCut::columns, .decay = true},
      {.name = "down.bias", .shape = {C}, .bucket = 1},
      {.name = "ln_f", .shape = {C}, .bucket = 2, .init = Init::ones},
  };
}

/// Parameters with memory.
struct Bound {
  explicit Bound(std::vector<ParamSpec> specs, const Parameters::Options& options = {})
      : parameters(std::move(specs), options) {
    auto plan = std::make_unique<MemoryPlan>(Device::cpu);
    parameters.declare(*plan);
    plan->lay_out();
    arena = std::make_unique<Arena>(std::move(plan));
    parameters.declare(*arena);
    arena->check_complete();
  }
  Parameters parameters;
  std::unique_ptr<Arena> arena;
};

TEST(Parameters, BucketsHoldALayerEach) {
  const Parameters parameters(table(1), {});
  ASSERT_EQ(parameters.buckets().size(), 3u);
  EXPECT_EQ(parameters.buckets()[0].name, "embedding");
  EXPECT_EQ(parameters.buckets()[1].name, "block.0");
  EXPECT_EQ(parameters.buckets()[2].name, "final");
  std::set<size_t> seen;
  for (size_t b = 0; b < 3; ++b) {
    for (const size_t index : parameters.buckets()[b].parameters) {
      EXPECT_EQ(parameters.all()[index].spec.bucket, static_cast<int>(b));
      EXPECT_TRUE(seen.insert(index).second);
    }
  }
  EXPECT_EQ(seen.size(), table(1).size());
}

TEST(Parameters, SectionsAreAlikeAlignedAndHoldTheirParametersApart) {
  for (const int64_t tp : {1, 2, 4}) {
    for (const int64_t C : {12, 4, 20, 36}) {
      const Parameters parameters(table(tp, C), {.tp_size = tp});
      for (const Bucket& bucket : parameters.buckets()) {
        SCOPED_TRACE(testing::Message() << bucket.name << ", tp " << tp << ", C " << C);
        EXPECT_EQ(bucket.numel % kSectionAlignment, 0);
        int64_t end = 0;
        for (const BucketSection& section : bucket.sections) {
          EXPECT_EQ(section.range.begin % kSectionAlignment, 0);
          EXPECT_GE(section.range.begin, end);
          end = section.range.end;
        }
        EXPECT_LE(end, bucket.numel);
        EXPECT_LT(bucket.numel - end, kSectionAlignment) << "no more padding than alignment";
        std::vector<int64_t> taken(static_cast<size_t>(bucket.numel), 0);
        std::map<int64_t, int64_t> last;  // end of a section's last parameter, by its begin
        for (const size_t index : bucket.parameters) {
          const Parameter& p = parameters.all()[index];
          const auto section = std::ranges::find_if(bucket.sections, [&](const auto& s) {
            return s.range.begin <= p.offset && p.offset + p.numel() <= s.range.end;
          });
          ASSERT_NE(section, bucket.sections.end()) << p.spec.name;
          EXPECT_EQ(section->decay, p.spec.decay) << p.spec.name;
          EXPECT_EQ(section->replicated, p.spec.cut == TpCut::none) << p.spec.name;
          EXPECT_TRUE(p.spec.packed || p.offset % 32 == 0) << p.spec.name;
          for (int64_t i = 0; i < p.numel(); ++i) {
            ASSERT_EQ(taken[static_cast<size_t>(p.offset + i)]++, 0) << p.spec.name;
          }
          last[section->range.begin] = std::max(last[section->range.begin], p.offset + p.numel());
        }
        for (const BucketSection& section : bucket.sections) {
          EXPECT_EQ(last.at(section.range.begin), section.range.end);
        }
      }
    }
  }
}

TEST(Parameters, PackedEntriesAreOneMatrixWithOddSizesToo) {
  for (const int64_t C : {5, 7, 12}) {
    std::vector<ParamSpec> specs = table(1, C);
    Bound bound(specs);
    const Parameters& parameters = bound.parameters;
    for (const Parameter& p : parameters.all()) {
      for (int64_t i = 0; i < p.numel(); ++i) {
        test::set_value(p.value, i, static_cast<double>(i) + 1000.0 * p.spec.name[0]);
        test::set_value(p.grad, i, -static_cast<double>(i) - 1000.0 * p.spec.name[0]);
      }
    }
    for (const bool grad : {false, true}) {
      const Tensor packed = grad ? parameters.packed("q", 3, &Parameter::grad)
                                 : parameters.packed("q", 3, &Parameter::value);
      EXPECT_EQ(packed.shape(), (Shape{3 * C, C}));
      EXPECT_TRUE(packed.contiguous());
      std::vector<double> joined;
      for (const char* name : {"q", "k", "v"}) {
        const auto part = test::values(grad ? parameters[name].grad : parameters[name].value);
        joined.insert(joined.end(), part.begin(), part.end());
      }
      EXPECT_EQ(test::values(packed), joined);
    }
    EXPECT_EQ(parameters.packed("q.bias", 3, &Parameter::value).shape(), (Shape{3 * C}));
    EXPECT_EQ(test::get_value(parameters.packed("q.bias", 3, &Parameter::value), C),
              test::get_value(parameters["k.bias"].value, 0));
  }
}

TEST(Parameters, PackedRefusesEntriesThatLieApart) {
  Bound bound(table(1));
  EXPECT_THAT([&] { bound.parameters.packed("v", 2, &Parameter::value); },
              ThrowsMessage<Error>("parameter down is not packed behind v"));
  EXPECT_THROW(bound.parameters.packed("token", 2, &Parameter::grad), Error);
  EXPECT_THROW(bound.parameters.packed("ln_f", 2, &Parameter::value), Error) << "beyond the last";
}

TEST(Parameters, ViewsLieInTheirBucket) {
  Bound bound(table(1), {.precision = precision::kBf16});
  for (const Bucket& bucket : bound.parameters.buckets()) {
    EXPECT_EQ(bucket.value.dtype(), DType::bf16);
    EXPECT_EQ(bucket.grad.dtype(), DType::fp32);
    for (const size_t index : bucket.parameters) {
      const Parameter& p = bound.parameters.all()[index];
      EXPECT_EQ(p.value.data(), bucket.value.data() + p.offset * 2) << p.spec.name;
      EXPECT_EQ(p.grad.data(), bucket.grad.data() + p.offset * 4) << p.spec.name;
      EXPECT_EQ(p.value.shape(), p.grad.shape());
      EXPECT_STREQ(p.value.name(), p.spec.name.c_str());
    }
  }
}

TEST(Parameters, WithoutGradientsNoneAreDeclared) {
  MemoryPlan plan(Device::cpu);
  Parameters parameters(table(1), {.gradients = false});
  parameters.declare(plan);
  EXPECT_EQ(plan.entries().size(), 3u);
  for (const Parameter& p : parameters.all()) EXPECT_FALSE(p.grad.defined());
  for (const Bucket& bucket : parameters.buckets()) EXPECT_FALSE(bucket.grad.defined());
}

TEST(Parameters, NamesTiedOnesIncluded) {
  const Parameters parameters(table(1), {});
  EXPECT_EQ(&parameters["head"], &parameters["token"]);
  EXPECT_TRUE(parameters.has("head"));
  EXPECT_FALSE(parameters.has("ghost"));
  EXPECT_THAT([&] { parameters["ghost"]; },
              ThrowsMessage<Error>("this rank has no parameter ghost"));
}

TEST(Parameters, LogicalCountHasTiedWeightsOnceAndNoPadding) {
  const int64_t expected = kV * kC + 7 * kC + kC + 3 * kC * kC + 3 * kC + kC * kF + kC + kC;
  for (const int64_t tp : {1, 2, 4}) {
    EXPECT_EQ(Parameters(table(tp), {.tp_size = tp}).logical_numel(), expected);
  }
}

TEST(Parameters, RefusesACutThatDoesNotDivide) {
  EXPECT_THAT(([] { Parameters parameters(table(8), {.tp_size = 8}); }),
              ThrowsMessage<ShapeError>("parameter q (12, 12): axis 0 is not divisible by tp 8"));
  std::vector<ParamSpec> columns = {{.name = "down", .shape = {4, 9}, .cut = TpCut::columns}};
  EXPECT_THAT(([&] { Parameters parameters(columns, {.tp_size = 2}); }),
              ThrowsMessage<ShapeError>(HasSubstr("axis 1 is not divisible by tp 2")));
}

/// Every rank writes into its logical parts the number of each logical element; together they must
/// have each element exactly once (replicated ones: once a rank).
TEST(Parameters, PartsOfTpTileTheLogicalTensor) {
  for (const int64_t tp : {1, 2, 4}) {
    std::map<std::string, std::vector<int>> held;
    for (int64_t rank = 0; rank < tp; ++rank) {
      const Parameters parameters(table(tp), {.tp_rank = rank, .tp_size = tp});
      for (const Parameter& p : parameters.all()) {
        const Shape& logical = p.spec.shape;
        auto& count = held[p.spec.name];
        count.resize(static_cast<size_t>(logical.numel()), 0);
        const Tensor part = p.logical(p.value);
        const int64_t columns = part.rank() == 2 ? part.size(1) : 1;
        const int64_t logical_columns = logical.rank() == 2 ? logical[1] : 1;
        for (int64_t row = 0; row < part.size(0); ++row) {
          for (int64_t column = 0; column < columns; ++column) {
            const int64_t r = row + (p.spec.cut == TpCut::rows ? p.row_begin : 0);
            const int64_t c = column + (p.spec.cut == TpCut::columns ? p.row_begin : 0);
            ASSERT_LT(r, logical[0]) << p.spec.name;
            ASSERT_LT(c, logical_columns) << p.spec.name;
            ++count[static_cast<size_t>(r * logical_columns + c)];
          }
        }
      }
    }
    for (const ParamSpec& spec : table(tp)) {
      const int copies = spec.cut == TpCut::none ? static_cast<int>(tp) : 1;
      EXPECT_EQ(held.at(spec.name),
                std::vector<int>(static_cast<size_t>(spec.shape.numel()), copies))
          << spec.name << ", tp " << tp;
    }
  }
}

TEST(Parameters, LogicalCutsPaddingRowsOff) {
  // 13 rows in 4 · 8: a whole rank, five rows of the next, then ranks of padding alone.
  const int64_t rows[] = {8, 5, 0, 0};
  for (int64_t rank = 0; rank < 4; ++rank) {
    const Parameters parameters(table(4), {.tp_rank = rank, .tp_size = 4});
    const Parameter& token = parameters["token"];
    EXPECT_EQ(token.value.shape(), (Shape{8, kC}));
    EXPECT_EQ(token.row_begin, 8 * rank);
    EXPECT_EQ(token.logical(token.value).shape(), (Shape{rows[rank], kC})) << "rank " << rank;
    EXPECT_EQ(parameters["q"].logical(parameters["q"].value).shape(), (Shape{3, kC}));
  }
  const Parameters whole(table(1), {});
  EXPECT_EQ(whole["token"].value.shape(), (Shape{16, kC}));
  EXPECT_EQ(whole["token"].logical(whole["token"].value).shape(), (Shape{kV, kC}));
}

TEST(Parameters, RowsThatAreMultiplesOfThePaddingHaveNone) {
  std::vector<ParamSpec> specs = {
      {.name = "token", .shape = {16, 3}, .cut = TpCut::rows, .padded_rows = 16}};
  const Parameters parameters(specs, {.tp_rank = 1, .tp_size = 2});
  EXPECT_EQ(parameters["token"].logical(parameters["token"].value).shape(), (Shape{8, 3}));
}

const Sharding kShardings[] = {Sharding::none, Sharding::optimizer, Sharding::gradients};

/// table() with `layers` equal blocks instead of one.
std::vector<ParamSpec> deep_table(int layers) {
  std::vector<ParamSpec> all;
  for (ParamSpec spec : table(1)) {
    if (spec.bucket == 2) spec.bucket = layers + 1;
    for (int l = 1; l <= (spec.bucket == 1 ? layers : 1); ++l) {
      all.push_back(spec);
      if (spec.bucket != 1) continue;
      all.back().bucket = l;
      all.back().name = fmt::format("block.{}.{}", l - 1, spec.name);
    }
  }
  return all;
}

TEST(ShardedParameters, ShardsOfReplicasCoverEachBucketOnceAndBeginAtSections) {
  for (const Sharding sharding : {Sharding::optimizer, Sharding::gradients}) {
    for (const int64_t replicas : {2, 3, 5, 8}) {
      std::vector<int64_t> end(3, 0);
      for (int64_t rank = 0; rank < replicas; ++rank) {
        const Parameters parameters(table(1),
                                    {.dp_rank = rank, .dp_size = replicas, .sharding = sharding});
        for (size_t b = 0; b < 3; ++b) {
          const Bucket& bucket = parameters.buckets()[b];
          SCOPED_TRACE(testing::Message()
                       << bucket.name << ", rank " << rank << " of " << replicas);
          EXPECT_EQ(bucket.shard.begin, end[b]);
          EXPECT_EQ(bucket.shard.begin % kSectionAlignment, 0);
          EXPECT_EQ(bucket.shard.numel() * replicas, bucket.numel) << "equal parts";
          EXPECT_LT(bucket.numel - bucket.sections.back().range.end, kSectionAlignment * replicas)
              << "no more padding than alignment";
          end[b] = bucket.shard.end;
          if (rank == replicas - 1) {
            EXPECT_EQ(end[b], bucket.numel);
          }
        }
      }
    }
  }
}

/// Buckets travel whole, so every replica must have them alike, and every ZeRO level gives a rank
/// the same place for every element.
TEST(ShardedParameters, LieAlikeForEveryReplicaAndSharding) {
  const Parameters reference(table(2), {.tp_size = 2, .dp_size = 3});
  for (const Sharding sharding : kShardings) {
    for (int64_t rank = 0; rank < 3; ++rank) {
      const Parameters parameters(
          table(2), {.tp_size = 2, .dp_rank = rank, .dp_size = 3, .sharding = sharding});
      for (size_t i = 0; i < parameters.all().size(); ++i) {
        EXPECT_EQ(parameters.all()[i].offset, reference.all()[i].offset);
        EXPECT_EQ(parameters.all()[i].value.shape(), reference.all()[i].value.shape());
      }
      for (size_t b = 0; b < parameters.buckets().size(); ++b) {
        const Bucket& bucket = parameters.buckets()[b];
        EXPECT_EQ(bucket.numel, reference.buckets()[b].numel);
        if (sharding == Sharding::none) {
          EXPECT_EQ(bucket.shard.begin, 0);
          EXPECT_EQ(bucket.shard.end, bucket.numel);
        }
      }
    }
  }
}

TEST(ShardedParameters, GradientShardsAreViewsUntilOnlyTheyAreKept) {
  for (const Sharding sharding : kShardings) {
    Bound bound(table(1), {.dp_rank = 1, .dp_size = 3, .sharding = sharding});
    for (const Bucket& bucket : bound.parameters.buckets()) {
      EXPECT_EQ(bucket.grad.numel(), bucket.numel);
      EXPECT_EQ(bucket.grad_shard.numel(), bucket.shard.numel());
      const float* grad = bucket.grad.as<float>();
      const float* shard = bucket.grad_shard.as<float>();
      if (sharding == Sharding::gradients) {
        EXPECT_TRUE(shard >= grad + bucket.numel || shard + bucket.shard.numel() <= grad)
            << "memory of its own";
      } else {
        EXPECT_EQ(shard, grad + bucket.shard.begin);
      }
    }
  }
}

TEST(ShardedParameters, BlocksTakeTurnsInTwoGradientBuffers) {
  constexpr int kLayers = 5;
  const auto bytes_of = [](Sharding sharding) {
    const Bound bound(deep_table(kLayers), {.dp_size = 2, .sharding = sharding});
    return bound.arena->plan().bytes_of(Lifetime::Kind::persistent);
  };
  const Bound bound(deep_table(kLayers), {.dp_size = 2, .sharding = Sharding::gradients});
  const auto& buckets = bound.parameters.buckets();
  ASSERT_EQ(buckets.size(), static_cast<size_t>(kLayers) + 2);
  std::set<const std::byte*> distinct;
  for (size_t b = 0; b < buckets.size(); ++b) distinct.insert(buckets[b].grad.data());
  EXPECT_EQ(distinct.size(), 4u) << "embedding, final, and two of the blocks";
  for (size_t b = 1; b + 2 < static_cast<size_t>(kLayers) + 1; ++b) {
    EXPECT_EQ(buckets[b].grad.data(), buckets[b + 2].grad.data());
    EXPECT_NE(buckets[b].grad.data(), buckets[b + 1].grad.data());
  }
  for (const Parameter& p : bound.parameters.all()) {
    const Bucket& bucket = buckets[static_cast<size_t>(p.spec.bucket)];
    EXPECT_EQ(p.grad.as<float>(), bucket.grad.as<float>() + p.offset) << p.spec.name;
  }
  // Three whole gradients of blocks fewer, and a shard (a half, here) of each bucket more.
  int64_t shards = 0;
  for (const Bucket& bucket : buckets) shards += bucket.grad_shard.bytes();
  EXPECT_EQ(bytes_of(Sharding::none) - bytes_of(Sharding::gradients),
            3 * buckets[1].grad.bytes() - shards);
}

/// A table whose blocks differ, which no two blocks may share.
TEST(ShardedParameters, BlocksOfDifferentSizesDoNotShare) {
  std::vector<ParamSpec> specs = deep_table(3);
  specs.push_back({.name = "block.2.extra", .shape = {64, 64}, .bucket = 3, .decay = true});
  std::ranges::stable_sort(specs, {}, &ParamSpec::bucket);
  const Bound bound(specs, {.dp_size = 2, .sharding = Sharding::gradients});
  const auto& buckets = bound.parameters.buckets();
  EXPECT_NE(buckets[3].numel, buckets[1].numel);
  EXPECT_NE(buckets[3].grad.data(), buckets[1].grad.data());
  EXPECT_EQ(buckets[3].grad.numel(), buckets[3].numel);
}

TEST(HeldParameters, BucketsOfOtherStagesHaveNoMemoryAndNoNames) {
  constexpr auto N = Holding::none;
  constexpr auto O = Holding::owner;
  constexpr auto R = Holding::replica;
  const Bound whole(deep_table(3));
  for (const std::vector<Holding>& holdings :
       {std::vector{O, O, N, N, N}, std::vector{R, N, N, O, O}, std::vector{N, N, O, N, N}}) {
    const Bound stage(deep_table(3), {.holdings = holdings});
    const Parameters& parameters = stage.parameters;
    EXPECT_EQ(parameters.logical_numel(), whole.parameters.logical_numel()) << "the whole model's";
    EXPECT_EQ(parameters.table().size(), whole.parameters.table().size());
    for (size_t b = 0; b < holdings.size(); ++b) {
      const Bucket& bucket = parameters.buckets()[b];
      const Bucket& of_whole = whole.parameters.buckets()[b];
      EXPECT_EQ(bucket.holding, holdings[b]);
      EXPECT_EQ(bucket.name, of_whole.name);
      EXPECT_EQ(bucket.value.defined(), holdings[b] != N);
      EXPECT_EQ(bucket.grad.defined(), holdings[b] != N);
      EXPECT_EQ(bucket.grad_shard.defined(), holdings[b] != N);
      EXPECT_EQ(bucket.numel, holdings[b] == N ? 0 : of_whole.numel);
    }
    for (const Parameter& p : whole.parameters.all()) {
      const bool held = holdings[static_cast<size_t>(p.spec.bucket)] != N;
      ASSERT_EQ(parameters.has(p.spec.name), held) << p.spec.name;
      if (held) {
        EXPECT_EQ(parameters[p.spec.name].offset, p.offset);
      } else {
        EXPECT_THROW(parameters[p.spec.name], Error);
      }
    }
  }
}

}  // namespace
}  // namespace gradus
