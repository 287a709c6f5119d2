// Nothing is allocated inside the step loop on several ranks either: not by the calling thread, not
// by the communication thread.

#include <gtest/gtest.h>

#include <vector>

#include "mpi_job.h"
#include "parallel_layout.h"
#include "support/allocation_count.h"
#include "support/tiny_model.h"

namespace gradus {
namespace {

using Layout = test::ParallelLayout;

std::vector<Layout> layouts_of(int ranks) {
  switch (ranks) {
    case 2:
      return {{.mesh = {.tp = 2}},
              {.mesh = {.tp = 2}, .sequence = true},
              {.mesh = {.dp = 2}, .zero = 0},
              {.mesh = {.dp = 2}, .zero = 1},
              {.mesh = {.dp = 2}, .zero = 2},
              {.mesh = {.pp = 2}}};
    case 4:
      return {{.mesh = {.dp = 2, .tp = 2}, .sequence = true},
              {.mesh = {.pp = 2, .dp = 2}, .zero = 2}};
    default:
      return {};
  }
}

TEST(AllocationRanks, StepsAskForNothing) {
  for (const Layout& layout : layouts_of(test::job().size())) {
    for (const PrecisionPreset precision : {PrecisionPreset::fp32, PrecisionPreset::bf16}) {
      SCOPED_TRACE(testing::Message() << layout << ", " << to_string(precision));
      Config config = test::tiny_config();
      config.model.layers = 4;
      config.model.channels = 8;
      config.model.mlp_width = 12;
      config.model.context = 6;
      config.model.dropout = 0.1;
      config.train.micro_batch = 2;
      config.train.global_batch = 8;
      config.train.precision = precision;
      Mesh mesh(test::job(), layout.mesh);
      test::TinyModel tiny(config, 1, layout.on(mesh));
      const auto work = [&](int64_t steps) {
        for (int64_t step = 0; step < steps; ++step) {
          EXPECT_EQ(tiny.stepper.run(8 * step, 1e-3).nonfinite, 0);
        }
        tiny.stepper.wait_for_weights();
      };
      work(3);  // lists of messages stop growing
      mesh.world().barrier(tiny.x).wait(tiny.x);
      const int64_t before = test::allocation_count();
      work(5);
      EXPECT_EQ(test::allocation_count() - before, 0);
    }
  }
}

}  // namespace
}  // namespace gradus
