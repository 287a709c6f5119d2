// What a step communicates is what the formulas say, to the byte, for every kind of collective of
// every group.

#include "train/step_traffic.h"

#include <gtest/gtest.h>

#include <array>
#include <map>
#include <string>
#include <vector>

#include "mpi_job.h"
#include "parallel/gather_values.h"
#include "parallel/mesh.h"
#include "support/tiny_model.h"

namespace gradus {
namespace {

struct Case {
  MeshShape mesh;
  bool sequence = false;
  int64_t zero = 1;
  bool tied = true;
  Recompute recompute = Recompute::none;
  PrecisionPreset precision = PrecisionPreset::bf16;
  int64_t micro_batch = 2;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << to_string(c.mesh) << (c.sequence ? ", sequence" : "") << ", ZeRO-" << c.zero
             << (c.tied ? "" : ", untied") << ", recompute " << to_string(c.recompute) << ", "
             << to_string(c.precision) << ", micro-batch " << c.micro_batch;
}

std::vector<Case> cases_of(int ranks) {
  constexpr auto kFull = Recompute::full;
  switch (ranks) {
    case 1:
      return {{}};
    case 2:
      return {{.mesh = {.tp = 2}},
              {.mesh = {.tp = 2}, .recompute = kFull, .precision = PrecisionPreset::fp32},
              {.mesh = {.tp = 2}, .sequence = true},
              {.mesh = {.tp = 2}, .sequence = true, .tied = false, .recompute = kFull},
              {.mesh = {.dp = 2}, .zero = 0},
              {.mesh = {.dp = 2}, .zero = 1},
              {.mesh = {.dp = 2}, .zero = 2, .precision = PrecisionPreset::fp32},
              {.mesh = {.pp = 2}},
              {.mesh = {.pp = 2}, .tied = false, .micro_batch = 12}};
    case 4:
      return {{.mesh = {.pp = 4}},
              {.mesh = {.pp = 4}, .micro_batch = 6},
              {.mesh = {.pp = 2, .tp = 2}, .sequence = true},
              {.mesh = {.dp = 2, .tp = 2}, .sequence = true, .zero = 2},
              {.mesh = {.pp = 2, .dp = 2}, .zero = 0}};
    default:
      return {};
  }
}

Config config_for(const Case& c) {
  Config config = test::tiny_config();
  config.model.layers = 5;
  config.model.channels = 12;
  config.model.mlp_width = 22;
  config.model.context = 6;
  config.model.tied_embeddings = c.tied;
  config.train.recompute = c.recompute;
  config.train.precision = c.precision;
  config.train.micro_batch = c.micro_batch;
  config.train.global_batch = 12;
  return config;
}

struct Sum {
  int64_t calls = 0;
  int64_t bytes = 0;
  double sent = 0.0;
};
using Counts = std::map<std::pair<std::string, std::string>, Sum>;  // by group and collective

Counts counted(const std::vector<Communicator*>& groups) {
  Counts counts;
  for (const Communicator* group : groups) {
    for (int c = 0; c < kCollectives; ++c) {
      const auto collective = static_cast<Collective>(c);
      const Traffic traffic = group->traffic(collective);
      counts[{group->name(), to_string(collective)}] = {traffic.calls, traffic.bytes,
                                                        static_cast<double>(traffic.sent)};
    }
  }
  return counts;
}

TEST(StepTraffic, IsWhatTheCommunicatorsCount) {
  for (const Case& c : cases_of(test::job().size())) {
    SCOPED_TRACE(testing::Message() << c << ", rank " << test::job().rank());
    Mesh mesh(test::job(), c.mesh);
    test::TinyModel tiny(config_for(c), 1,
                         Parallelism(mesh, {.sequence = c.sequence, .zero = c.zero}));
    std::vector<Communicator*> groups;
    for (Communicator* group :
         {&mesh.tp(), &mesh.dp(), &mesh.pp(), &mesh.embedding(), &mesh.world()}) {
      if (group->size() > 1) groups.push_back(group);
    }
    const Counts before = counted(groups);
    tiny.stepper.run(0, 1e-3);
    tiny.stepper.wait_for_weights();
    Counts step = counted(groups);
    for (auto& [key, sum] : step) {
      sum.calls -= before.at(key).calls;
      sum.bytes -= before.at(key).bytes;
      sum.sent -= before.at(key).sent;
    }
    Counts expected = step;
    for (auto& [key, sum] : expected) sum = {};
    for (const StepTraffic& row : step_traffic(tiny.model)) {
      Sum& sum = expected.at({row.group, to_string(row.collective)});
      sum.calls += row.calls;
      sum.bytes += row.bytes;
      sum.sent += row.sent;
    }
    double sent = 0.0;
    double expected_sent = 0.0;
    for (const auto& [key, sum] : step) {
      SCOPED_TRACE(key.first + " " + key.second);
      EXPECT_EQ(expected.at(key).calls, sum.calls);
      EXPECT_EQ(expected.at(key).bytes, sum.bytes);
      sent += sum.sent;
      expected_sent += expected.at(key).sent;
    }
    // Means over the members of a group: a root sends more than the others, and a rank's piece of a
    // reduction may be an element larger or smaller.
    const auto over_ranks = [&](double mine) {
      double sum = 0.0;
      for (const double value : gather_values(tiny.x, mesh.world(), mine)) sum += value;
      return sum;
    };
    const double all = over_ranks(sent);
    EXPECT_NEAR(over_ranks(expected_sent), all, 1e-9 * all);
  }
}

/// The papers' own words: Megatron's four all-reduces of B·T·C a layer, and twice the parameters
/// per replica for every ZeRO level up to 2.
TEST(StepTraffic, IsThePapers) {
  Executor x(Device::cpu, 1);
  Config config = config_for({.micro_batch = 12});
  const int64_t L = config.model.layers;
  const int64_t activations = 12 * config.model.context * config.model.channels * 2;  // bf16
  Parallelism tp({.tp = 2}, {}, {});
  const TrainingModel cut(config, 13, x, tp);
  int64_t layers = 0;
  for (const StepTraffic& row : step_traffic(cut)) {
    if (row.purpose.starts_with("layers")) layers += row.bytes;
  }
  EXPECT_EQ(layers, (4 * L + 1) * activations);  // and the head's input gradient

  config.train.micro_batch = 6;
  for (const int64_t zero : {0, 1, 2}) {
    Parallelism dp({.dp = 2}, {}, {.zero = zero});
    const TrainingModel replica(config, 13, x, dp);
    int64_t elements = 0;
    for (const Bucket& bucket : replica.parameters().buckets()) elements += bucket.numel;
    double sent = 0.0;
    for (const StepTraffic& row : step_traffic(replica)) {
      if (row.purpose != "gradients" && row.purpose != "weights") continue;
      sent += row.sent;
    }
    // Gradients travel in fp32, gathered weights in bf16.
    EXPECT_EQ(sent, static_cast<double>(elements) * (zero == 0 ? 4.0 : 2.0 + 1.0)) << zero;
  }
}

}  // namespace
}  // namespace gradus
