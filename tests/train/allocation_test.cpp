// Nothing is allocated inside the step loop: not by Gradus, and not by a library on its behalf.

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <vector>

#include "data/prepare.h"
#include "heap_calls.h"
#include "support/temp_dir.h"
#include "support/tiny_model.h"

namespace gradus {
namespace {

/// A folder of prepared text, training and validation.
class Text {
 public:
  Text() {
    std::string text;
    for (int i = 0; i < 600; ++i) text += static_cast<char>('a' + i * i % 23);
    prepare({.inputs = {test::write_file(dir_ / "text.txt", text)}, .out_dir = dir_ / "data"});
  }
  Loader open(Split split, SampleOrder order, int64_t context) const {
    return Loader(
        {.paths = {dir_ / "data"}, .split = split, .context = context, .seed = 1, .order = order});
  }

 private:
  test::TempDir dir_;
};

/// Keeps the compiler from leaving out a pair of calls that nobody looks at.
void* seen(void* memory) {
  asm volatile("" : "+r"(memory));
  return memory;
}

TEST(HeapCalls, CountEveryWayToAsk) {
  const auto calls_of = [](auto&& body) {
    const int64_t before = test::heap_calls();
    body();
    return test::heap_calls() - before;
  };
  EXPECT_EQ(calls_of([] { std::free(seen(std::malloc(8))); }), 1);
  EXPECT_EQ(calls_of([] { std::free(seen(std::calloc(8, 8))); }), 1);
  EXPECT_EQ(calls_of([] { std::free(seen(std::realloc(nullptr, 8))); }), 1);
  EXPECT_EQ(calls_of([] { std::free(seen(std::aligned_alloc(64, 64))); }), 1);
  EXPECT_EQ(calls_of([] { ::operator delete(seen(::operator new(8))); }), 1);
  EXPECT_EQ(calls_of([] {
              void* memory = nullptr;
              EXPECT_EQ(::posix_memalign(&memory, 64, 64), 0);
              std::free(memory);
            }),
            1);
  EXPECT_EQ(calls_of([] {}), 0);
}

struct Case {
  PrecisionPreset precision = PrecisionPreset::fp32;
  Recompute recompute = Recompute::none;
  AttentionKind attention = AttentionKind::flash;
  int threads = 2;
};

std::string name_of(const Case& c) {
  return fmt::format("{}_{}_{}_{}_threads", to_string(c.precision), to_string(c.recompute),
                     to_string(c.attention), c.threads);
}

class Allocation : public testing::TestWithParam<Case> {};

TEST_P(Allocation, StepsAndEvaluationsAskForNothing) {
  const Case& c = GetParam();
  Config config = test::tiny_config();
  config.model.channels = 40;
  config.model.heads = 5;
  config.model.context = 19;
  config.model.mlp_width = 71;
  config.model.vocab_size = 33;
  config.model.dropout = 0.1;
  config.model.attention = c.attention;
  config.train.precision = c.precision;
  config.train.recompute = c.recompute;
  config.train.global_batch = 6;
  const Text text;
  const Loader train = text.open(Split::kTrain, SampleOrder::kShuffled, config.model.context);
  const Loader val = text.open(Split::kVal, SampleOrder::kSequential, config.model.context);
  test::TinyModel tiny(config, c.threads);
  int64_t sample = 0;
  const auto work = [&](int64_t steps) {
    for (int64_t step = 0; step < steps; ++step, sample += config.train.global_batch) {
      const StepState state = tiny.stepper.run(train, sample, 1e-3);
      EXPECT_EQ(state.nonfinite, 0);
    }
    EXPECT_GT(
        tiny.stepper.evaluate(val, {5 * config.train.micro_batch * config.model.context}).targets,
        0);
  };
  work(2);  // threads start, and matrix products choose their implementation
  const int64_t before = test::heap_calls();
  work(4);
  EXPECT_EQ(test::heap_calls() - before, 0);
}

std::vector<Case> cases() {
  std::vector<Case> out;
  for (const auto precision : {PrecisionPreset::fp32, PrecisionPreset::bf16}) {
    for (const auto recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
      for (const auto attention : {AttentionKind::flash, AttentionKind::plain}) {
        out.push_back({precision, recompute, attention});
      }
    }
  }
  out.push_back({.precision = PrecisionPreset::bf16_lean});
  out.push_back({.precision = PrecisionPreset::fp64});
  for (const int threads : {1, 3, 7}) out.push_back({.threads = threads});
  return out;
}

INSTANTIATE_TEST_SUITE_P(Settings, Allocation, testing::ValuesIn(cases()),
                         [](const auto& c) { return name_of(c.param); });

}  // namespace
}  // namespace gradus
