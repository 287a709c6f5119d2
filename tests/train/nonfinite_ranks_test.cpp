// A step that is not finite on one rank is skipped by all of them, and its first bad tensor has one
// name.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include "mpi_job.h"
#include "parallel_layout.h"
#include "support/tensors.h"
#include "support/tiny_model.h"
#include "train/first_nonfinite.h"

namespace gradus {
namespace {

using testing::AllOf;
using testing::Each;
using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

using Case = test::ParallelLayout;

std::vector<Case> cases_of(int ranks) {
  switch (ranks) {
    case 2:
      return {{.mesh = {.tp = 2}},
              {.mesh = {.tp = 2}, .sequence = true},
              {.mesh = {.dp = 2}, .zero = 0},
              {.mesh = {.dp = 2}, .zero = 2},
              {.mesh = {.pp = 2}}};
    case 4:
      return {{.mesh = {.dp = 2, .tp = 2}, .zero = 0},
              {.mesh = {.dp = 2, .tp = 2}, .sequence = true},
              {.mesh = {.pp = 2, .tp = 2}, .sequence = true},
              {.mesh = {.pp = 2, .dp = 2}, .zero = 0},
              {.mesh = {.pp = 4}}};
    default:
      return {{}};
  }
}

Config config_of() {
  Config config = test::tiny_config();
  config.model.layers = 4;
  config.model.channels = 8;
  config.model.heads = 4;
  config.model.mlp_width = 12;
  config.model.context = 4;
  config.train.micro_batch = 1;
  config.train.global_batch = 4;
  config.train.precision = PrecisionPreset::fp32;
  return config;
}

/// What each rank says, by rank.
std::vector<std::string> said_by_all(const std::string& mine) { return test::job().exchange(mine); }

/// The lowest rank of which something is true.
int lowest_rank(bool mine) {
  const std::vector<std::string> all = test::job().exchange(mine ? "true" : "false");
  return static_cast<int>(std::ranges::find(all, "true") - all.begin());
}

/// As bytes: a NaN is not equal to itself.
std::vector<std::byte> all_weights(const test::TinyModel& tiny) {
  std::vector<std::byte> all;
  for (const Bucket& bucket : tiny.model.parameters().buckets()) {
    if (!bucket.value.defined()) continue;
    all.insert(all.end(), bucket.value.data(), bucket.value.data() + bucket.value.bytes());
  }
  return all;
}

/// Sets every element of a weight that this rank holds, padding included.
void set_weight(test::TinyModel& tiny, const std::string& name, float value) {
  if (!tiny.model.parameters().has(name)) return;
  const Tensor& weight = tiny.model.parameters()[name].value;
  for (int64_t i = 0; i < weight.numel(); ++i) test::set_value(weight, i, value);
}

/// What all ranks together say of a step that must be skipped: the finding, and by which rank.
std::string found_in_a_skipped_step(test::TinyModel& tiny) {
  const StepState state = tiny.stepper.run(0, 1e-2);
  tiny.stepper.wait_for_weights();
  EXPECT_EQ(state.nonfinite, 1);
  EXPECT_EQ(state.skipped, 1);
  EXPECT_EQ(state.applied, 0);
  const std::string found = tiny.stepper.find_nonfinite();
  EXPECT_THAT(said_by_all(found), Each(found)) << "every rank must say the same";
  return found;
}

/// A rank alone has no need to say that it is rank 0.
std::string on_rank(int rank) {
  return test::job().size() == 1 ? "" : fmt::format(" on rank {}", rank);
}

/// A tensor of an activation has its slot's number before its name where there are several.
auto NamesWriteOf(const std::string& operation, const std::string& tensor, int rank) {
  return AllOf(StartsWith(operation + " wrote a non-finite value to "), HasSubstr(tensor + " fp32"),
               EndsWith(on_rank(rank)));
}

template <typename Body>
void for_each_case(Body&& body) {
  for (const Case& c : cases_of(test::job().size())) {
    SCOPED_TRACE(testing::Message() << c << ", rank " << test::job().rank());
    Mesh mesh(test::job(), c.mesh);
    test::TinyModel tiny(config_of(), 1, c.on(mesh));
    body(c, mesh, tiny);
  }
}

TEST(NonfiniteRanks, AWeightThatIsNotFiniteIsNamed) {
  const std::string name = "block.2.mlp.up.weight";
  for_each_case([&](const Case&, Mesh&, test::TinyModel& tiny) {
    set_weight(tiny, name, std::numeric_limits<float>::quiet_NaN());
    const auto before = all_weights(tiny);
    const int first = lowest_rank(tiny.model.parameters().has(name));
    EXPECT_EQ(found_in_a_skipped_step(tiny),
              "the weights of " + name + " are not finite" + on_rank(first));
    EXPECT_TRUE(all_weights(tiny) == before) << "nothing may change";
  });
}

/// One element on one rank: the name comes with the rank that has it.
TEST(NonfiniteRanks, AWeightOfOneRankIsNamedWithThatRank) {
  for (const std::string name : {"block.1.attention.out.weight", "ln_f.bias"}) {
    for (int rank = 0; rank < test::job().size(); ++rank) {
      for_each_case([&](const Case& c, Mesh&, test::TinyModel& tiny) {
        // Beyond ZeRO-0 a replica's weights are what the others give it.
        if (c.mesh.dp > 1 && c.zero > 0) return;
        const bool mine = test::job().rank() == rank && tiny.model.parameters().has(name);
        if (lowest_rank(mine) == test::job().size()) return;  // of another stage
        if (mine) {
          test::set_value(tiny.model.parameters()[name].value, 3,
                          std::numeric_limits<float>::infinity());
        }
        EXPECT_EQ(found_in_a_skipped_step(tiny),
                  "the weights of " + name + " are not finite" + on_rank(rank));
      });
    }
  }
}

/// Finite weights so large that the product overflows: the layer that writes the first infinity is
/// named, not one behind it, on whatever stage that is.
TEST(NonfiniteRanks, TheFirstOperationThatOverflowsIsNamed) {
  const std::string name = "block.1.mlp.up.weight";
  for_each_case([&](const Case&, Mesh&, test::TinyModel& tiny) {
    set_weight(tiny, name, std::numeric_limits<float>::max());
    const int first = lowest_rank(tiny.model.parameters().has(name));
    const std::string found = found_in_a_skipped_step(tiny);
    EXPECT_THAT(found, NamesWriteOf("matmul_forward", "block.1.up", first));
  });
}

/// Through the sum over replicas the others' gradients become infinite too, and later.
TEST(NonfiniteRanks, TheReplicaThatOverflowsIsNamed) {
  for_each_case([&](const Case& c, Mesh& mesh, test::TinyModel& tiny) {
    if (c.mesh.dp == 1 || c.zero > 0) return;
    const bool mine = mesh.at().dp == c.mesh.dp - 1;
    if (mine) set_weight(tiny, "block.1.mlp.up.weight", std::numeric_limits<float>::max());
    const int first = lowest_rank(mine);
    EXPECT_GT(first, 0);
    const std::string found = found_in_a_skipped_step(tiny);
    EXPECT_THAT(found, NamesWriteOf("matmul_forward", "block.1.up", first));
  });
}

/// Forward multiplies 1e38 by zeros; backward does not. Two blocks overflow alike, and backward
/// comes to the later one first, though an earlier rank may have the other.
TEST(NonfiniteRanks, BackwardNamesTheLaterStage) {
  for_each_case([&](const Case&, Mesh&, test::TinyModel& tiny) {
    for (const std::string block : {"block.0", "block.3"}) {
      set_weight(tiny, block + ".ln2.weight", 1e38f);
      set_weight(tiny, block + ".mlp.up.weight", 0.0f);
      set_weight(tiny, block + ".mlp.down.weight", 1e37f);
    }
    const int first = lowest_rank(tiny.model.parameters().has("block.3.ln2.weight"));
    const std::string found = found_in_a_skipped_step(tiny);
    EXPECT_THAT(found, NamesWriteOf("matmul_backward_weight", "block.3.mlp.up.weight", first));
  });
}

TEST(FirstFinding, IsTheEarliestAndOfEqualOnesTheLowestRanks) {
  Mesh mesh(test::job(), {.dp = test::job().size()});
  Executor x(Device::cpu, 1);
  const int rank = test::job().rank();
  const int size = test::job().size();
  const auto first = [&](const std::string& found, double order) {
    const std::string agreed = first_finding(x, &mesh.world(), found, order);
    EXPECT_THAT(said_by_all(agreed), Each(agreed));
    return agreed;
  };
  EXPECT_EQ(first("", 0.0), "");
  EXPECT_EQ(first("", rank), "") << "an order alone says nothing";
  for (int only = 0; only < size; ++only) {
    EXPECT_EQ(first(rank == only ? "a NaN" : "", 1e9 - rank), "a NaN" + on_rank(only));
  }
  EXPECT_EQ(first("a NaN", 5.0), "a NaN" + on_rank(0));
  EXPECT_EQ(first("a NaN", size - rank), "a NaN" + on_rank(size - 1));
  EXPECT_EQ(
      first(rank == 0 ? "late" : "early", rank == 0 ? 65536.0 * 4096.0 + 1 : 65536.0 * 4096.0),
      size == 1 ? "late" : "early on rank 1");
}

}  // namespace
}  // namespace gradus
