// The order of a pipeline's passes on every stage, and what they send each other.

#include "train/pipeline_schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "mpi_job.h"
#include "parallel/mesh.h"
#include "support/tensors.h"
#include "support/tiny_model.h"

namespace gradus {
namespace {

TEST(MicroBatchesInFlight, AreThoseOfTheStagesBehindAndOneMore) {
  for (int stages = 1; stages <= 8; ++stages) {
    for (int stage = 0; stage < stages; ++stage) {
      const PipelineParallel pp(stage, stages);
      for (const int64_t micro_batches : {1, 2, 3, 7, 8, 100}) {
        EXPECT_EQ(micro_batches_in_flight(pp, micro_batches),
                  std::min<int64_t>(micro_batches, stages - stage))
            << "stage " << stage << " of " << stages << ", " << micro_batches << " micro-batches";
      }
    }
  }
}

/// One stage of a model on all ranks of the job. Passes do no computing here: they write down when
/// they were called, and mark what they give to their neighbours.
class Pipeline {
 public:
  explicit Pipeline(int64_t micro_batches)
      : mesh_(test::job(), {.pp = test::job().size()}),
        tiny_(config_of(micro_batches), 1, Parallelism(mesh_, {})),
        schedule_(tiny_.model.gpt(), tiny_.parallel.pp) {}

  int64_t slots() const {
    return micro_batches_in_flight(tiny_.parallel.pp, tiny_.model.micro_batches());
  }

  void train() {
    schedule_.train(
        tiny_.x, tiny_.model.micro_batches(), [this](int64_t m, int64_t slot) { forward(m, slot); },
        [this](int64_t m, int64_t slot) { backward(m, slot); });
  }
  void evaluate(int64_t micro_batches) {
    schedule_.evaluate(tiny_.x, micro_batches, [this](int64_t m, int64_t slot) {
      EXPECT_EQ(slot, 0);
      forward(m, slot);
    });
  }

  /// "F0 F1 B0 …".
  std::vector<std::string> passes;

 private:
  static Config config_of(int64_t micro_batches) {
    Config config = test::tiny_config();
    config.model.layers = 4;
    config.train.micro_batch = 1;
    config.train.global_batch = micro_batches;
    return config;
  }

  /// What stage `stage` makes of micro-batch m.
  static double mark(int64_t m, int stage) { return static_cast<double>(100 * m + stage); }

  static void expect_all(const Tensor& tensor, double value, const std::string& what) {
    EXPECT_THAT(test::values(tensor), testing::Each(value)) << what;
  }
  static void set_all(const Tensor& tensor, double value) {
    for (int64_t i = 0; i < tensor.numel(); ++i) test::set_value(tensor, i, value);
  }

  void forward(int64_t m, int64_t slot) {
    passes.push_back("F" + std::to_string(m));
    EXPECT_LT(slot, slots());
    const PipelineParallel& pp = tiny_.parallel.pp;
    Gpt& gpt = tiny_.model.gpt();
    if (!pp.first()) expect_all(gpt.input(slot), mark(m, pp.stage() - 1), passes.back());
    set_all(gpt.input(slot), mark(m, pp.stage()));  // until backward: nothing else may write here
    set_all(gpt.output(slot), mark(m, pp.stage()));
  }

  void backward(int64_t m, int64_t slot) {
    passes.push_back("B" + std::to_string(m));
    const PipelineParallel& pp = tiny_.parallel.pp;
    Gpt& gpt = tiny_.model.gpt();
    expect_all(gpt.input(slot), mark(m, pp.stage()), passes.back() + ": the slot of its forward");
    if (!pp.last()) expect_all(gpt.gradient(), -mark(m, pp.stage() + 1), passes.back());
    set_all(gpt.gradient(), -mark(m, pp.stage()));
  }

  Mesh mesh_;
  test::TinyModel tiny_;
  PipelineSchedule schedule_;
};

/// 1F1B from its definition (arXiv:2104.04473, section 2.2): a warm-up of one forward pass for each
/// stage behind, then a forward and a backward pass in turns, then the backward passes left.
std::vector<std::string> one_forward_one_backward(int64_t micro_batches, int stage, int stages) {
  std::vector<std::string> passes;
  const int64_t warm_up = std::min<int64_t>(stages - stage - 1, micro_batches);
  int64_t forward = 0;
  int64_t backward = 0;
  while (forward < warm_up) passes.push_back("F" + std::to_string(forward++));
  while (backward < micro_batches) {
    if (forward < micro_batches) passes.push_back("F" + std::to_string(forward++));
    passes.push_back("B" + std::to_string(backward++));
  }
  return passes;
}

TEST(PipelineSchedule, IsOneForwardOneBackwardAndSendsToTheRightPass) {
  const int stages = test::job().size();
  const int stage = test::job().rank();
  for (const int64_t micro_batches : {1, 2, 3, 4, 5, 9}) {
    SCOPED_TRACE(testing::Message()
                 << micro_batches << " micro-batches, stage " << stage << " of " << stages);
    Pipeline pipeline(micro_batches);
    pipeline.train();
    EXPECT_EQ(pipeline.passes, one_forward_one_backward(micro_batches, stage, stages));
    // As many are kept at once as there are slots, and no more.
    int64_t kept = 0;
    int64_t most = 0;
    for (const std::string& pass : pipeline.passes) {
      kept += pass.front() == 'F' ? 1 : -1;
      most = std::max(most, kept);
    }
    EXPECT_EQ(most, pipeline.slots());
    EXPECT_EQ(kept, 0);
  }
}

TEST(PipelineSchedule, EvaluationPassesForwardInOneSlot) {
  for (const int64_t count : {0, 1, 5}) {
    Pipeline pipeline(2);
    pipeline.evaluate(count);
    std::vector<std::string> expected;
    for (int64_t m = 0; m < count; ++m) expected.push_back("F" + std::to_string(m));
    EXPECT_EQ(pipeline.passes, expected);
  }
}

}  // namespace
}  // namespace gradus
