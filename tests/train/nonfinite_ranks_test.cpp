// A step that is not finite on one rank is skipped by all of them, and its first bad tensor has one
// name.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include "mpi_job.h"
#include "parallel/mesh.h"
#include "support/tensors.h"
#include "support/tiny_model.h"

namespace gradus {
namespace {

using testing::HasSubstr;
using testing::Not;

struct Case {
  MeshShape mesh;
  bool sequence = false;
  int64_t zero = 1;
};

std::vector<Case> cases_of(int ranks) {
  switch (ranks) {
    case 2:
      return {{.mesh = {.tp = 2}},
              {.mesh = {.tp = 2}, .sequence = true},
              {.mesh = {.dp = 2}, .zero = 0},
              {.mesh = {.dp = 2}, .zero = 2},
              {.mesh = {.pp = 2}}};
    case 4:
      return {{.mesh = {.dp = 2, .tp = 2}},
              {.mesh = {.pp = 2, .tp = 2}, .sequence = true},
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

/// What all ranks say must be what the first says.
void expect_agreed(Mesh& mesh, Executor& x, const std::string& text) {
  std::string first = text;
  first.resize(512);
  mesh.world().broadcast(x, Tensor(first.data(), DType::u8, Device::cpu, {512}), 0).wait(x);
  EXPECT_EQ(text, std::string(first.c_str()));
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

class NonfiniteRanks : public testing::Test {
 protected:
  /// Plants `value` into a weight wherever a rank holds it; runs a step; returns what was found.
  template <typename Body>
  void for_each_case(const char* name, float value, Body&& body) {
    for (const Case& c : cases_of(test::job().size())) {
      SCOPED_TRACE(testing::Message() << to_string(c.mesh) << ", rank " << test::job().rank());
      Mesh mesh(test::job(), c.mesh);
      test::TinyModel tiny(config_of(), 1,
                           Parallelism(mesh, {.sequence = c.sequence, .zero = c.zero}));
      if (tiny.model.parameters().has(name)) {
        const Parameter& parameter = tiny.model.parameters()[name];
        for (int64_t i = 0; i < parameter.numel(); ++i) test::set_value(parameter.value, i, value);
      }
      const auto before = all_weights(tiny);
      const StepState state = tiny.stepper.run(0, 1e-2);
      tiny.stepper.wait_for_weights();
      EXPECT_EQ(state.nonfinite, 1);
      EXPECT_EQ(state.skipped, 1);
      EXPECT_TRUE(all_weights(tiny) == before) << "nothing may change";
      const std::string found = tiny.stepper.find_nonfinite();
      expect_agreed(mesh, tiny.x, found);
      body(found);
    }
  }
};

TEST_F(NonfiniteRanks, AWeightThatIsNotFiniteIsNamed) {
  for_each_case("block.2.mlp.up.weight", std::numeric_limits<float>::quiet_NaN(),
                [](const std::string& found) {
                  EXPECT_THAT(found, HasSubstr("the weights of block.2.mlp.up.weight"));
                });
}

/// Finite weights so large that the product overflows: the layer that writes the first infinity is
/// named, not one behind it, on whatever stage that is.
TEST_F(NonfiniteRanks, TheFirstOperationThatOverflowsIsNamed) {
  for_each_case("block.1.mlp.up.weight", std::numeric_limits<float>::max(),
                [](const std::string& found) {
                  EXPECT_THAT(found, HasSubstr("wrote a non-finite value to"));
                  EXPECT_THAT(found, HasSubstr("up"));
                  EXPECT_THAT(found, Not(HasSubstr("block.2")));
                  EXPECT_THAT(found, Not(HasSubstr("block.3")));
                });
}

}  // namespace
}  // namespace gradus
