// Keys that contradict each other, and what this build does not have.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "config_files.h"

namespace gradus {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const Misreading kContradictions[] = {
    {"model:\n  channels: 130\n  heads: 4",
     "2: model.channels: channels 130 are not divisible by heads 4: use channels 128 or 132 "
     "(model.heads: DIR/c.yaml:3)"},
    {"model: {heads: 5}",
     "1: model.heads: channels 128 are not divisible by heads 5: use channels 125 or 130 "
     "(model.channels: default)"},
    {"model: {channels: 768, heads: 12}\nparallel: {tp: 8}",
     "1: model.heads: heads 12 are not divisible by tp 8: use tp 1, 2, 3, 4, 6 or 12 "
     "(parallel.tp: DIR/c.yaml:2)"},
    {"model: {mlp_width: 510}\nparallel: {tp: 4}",
     "1: model.mlp_width: mlp_width 510 is not divisible by tp 4: use mlp_width 508 or 512 "
     "(model.channels: default, parallel.tp: DIR/c.yaml:2)"},
    {"model: {context: 63}\nparallel: {tp: 4, sequence: true}",
     "1: model.context: context 63 is not divisible by tp 4, along which sequence: true cuts it: "
     "use context 60 or 64 (parallel.tp: DIR/c.yaml:2, parallel.sequence: DIR/c.yaml:2)"},
    {"optim:\n  lr: 1e-5",
     "2: optim.lr: min_lr 0.0001 is above lr 1e-05: schedule cosine would raise the rate "
     "(optim.min_lr: default, optim.schedule: default)"},
    {"train: {steps: 50}",
     "1: train.steps: warmup_steps 100 exceed the run's 50 steps: use at most that many "
     "(optim.warmup_steps: default)"},
    {"train: {steps: 100}",
     "1: train.steps: warmup_steps 100 leave none of the run's 100 steps for schedule cosine to go "
     "down to min_lr 0.0001: use at most 99, or schedule constant (optim.warmup_steps: default, "
     "optim.schedule: default, optim.min_lr: default, optim.lr: default)"},
    {"optim: {schedule: wsd, warmup_steps: 2000}",
     "1: optim.warmup_steps: warmup_steps 2000 leave none of the run's 2000 steps for schedule wsd "
     "to go down to min_lr 0.0001: use at most 1999, or schedule constant (train.steps: default, "
     "optim.schedule: DIR/c.yaml:1, optim.min_lr: default, optim.lr: default)"},
    {"optim: {decay_steps: 100}",
     "1: optim.decay_steps: decay_steps has no effect with schedule cosine: use schedule wsd or "
     "decay_steps auto (optim.schedule: default)"},
    {"optim: {schedule: wsd, decay_steps: 1901}",
     "1: optim.decay_steps: warmup_steps 100 and decay_steps 1901 exceed the run's 2000 steps: use "
     "decay_steps of at most 1900 (optim.warmup_steps: default, train.steps: default, "
     "optim.schedule: DIR/c.yaml:1)"},
    {"optim: {schedule: wsd, warmup_steps: 1601}",
     "1: optim.warmup_steps: warmup_steps 1601 and decay_steps 400 (auto) exceed the run's 2000 "
     "steps: use decay_steps of at most 399 (optim.decay_steps: default, train.steps: default, "
     "optim.schedule: DIR/c.yaml:1)"},
    {"train: {global_batch: 30}",
     "1: train.global_batch: global_batch 30 is not a multiple of micro_batch 12 × dp 1: use "
     "global_batch 24 or 36 (train.micro_batch: default, parallel.dp: default)"},
    {"model: {channels: 10000000000}",
     "1: model.channels: the model has about 4.8e+21 parameters: sizes above 1e+15 are not "
     "supported (model.layers: default, model.mlp_width: default, model.vocab_size: default, "
     "model.context: default)"},
    {"train: {global_batch: 120000000000000, steps: 101}",
     "1: train.global_batch: a step has about 7.7e+15 tokens: sizes above 1e+15 are not supported "
     "(model.context: default)"},
    {"train:\n  steps: 9223372036854775807",
     "2: train.steps: the run would see 7.1e+21 tokens, more than 64 bits can count "
     "(train.global_batch: default, model.context: default)"},
    {"device: cuda", "1: device: cuda is not part of this build: use cpu or auto"},
    {"train: {precision: fp16}",
     "1: train.precision: fp16 is not part of this build: use bf16 or fp32"},
    {"parallel: {cp: 2}",
     "1: parallel.cp: context parallelism is not part of this build: found 2, use 1"},
    {"parallel: {zero: 3}", "1: parallel.zero: ZeRO-3 is not part of this build: use 0, 1 or 2"},
};

TEST_F(ConfigTest, ContradictionsNameEveryKeyInvolvedAndItsPlace) {
  for (const Misreading& m : kContradictions) {
    const Lines lines = problems(m.text);
    if (std::string(m.text).find("10000000000") != std::string::npos) {
      ASSERT_FALSE(lines.empty());  // as many channels also have too many activations
      EXPECT_EQ(lines[0], std::string("DIR/c.yaml:") + m.problem);
    } else {
      EXPECT_THAT(lines, ElementsAre(std::string("DIR/c.yaml:") + m.problem)) << m.text;
    }
  }
}

TEST_F(ConfigTest, LayoutsMustDivideLayersAndBatches) {
  EXPECT_THAT(
      problems("parallel: {pp: 5}"),
      ElementsAre(
          "DIR/c.yaml:1: parallel.pp: layers 4 are too few for pp 5, where every stage needs "
          "one: use pp of at most 4 (model.layers: default)"));
  EXPECT_THAT(problems("parallel: {dp: 2}\ntrain: {micro_batch: 4, global_batch: 20}"),
              ElementsAre("DIR/c.yaml:2: train.global_batch: global_batch 20 is not a multiple of "
                          "micro_batch 4 × dp 2: use global_batch 16 or 24 (train.micro_batch: "
                          "DIR/c.yaml:2, parallel.dp: DIR/c.yaml:1)"));
  EXPECT_THAT(problems("parallel: {dp: 2}"),
              ElementsAre("DIR/c.yaml:1: parallel.dp: global_batch 12 is less than micro_batch 12 "
                          "× dp 2: use micro_batch of at most 6 (train.global_batch: default, "
                          "train.micro_batch: default)"));
  EXPECT_THAT(
      problems("parallel: {dp: 24}\ntrain: {micro_batch: 1}"),
      ElementsAre("DIR/c.yaml:2: train.micro_batch: global_batch 12 is less than micro_batch "
                  "1 × dp 24: use dp of at most 12 (train.global_batch: default, "
                  "parallel.dp: DIR/c.yaml:1)"));
  EXPECT_THAT(
      problems("parallel: {dp: 4294967296}\ntrain: {micro_batch: 1, global_batch: 4294967296}"),
      ElementsAre("DIR/c.yaml:1: parallel.dp: the mesh has 4.3e+09 ranks, more than MPI can number "
                  "(parallel.pp: default, parallel.cp: default, parallel.tp: default)"));
}

TEST_F(ConfigTest, WarmupMayFillTheRunWhereNothingFollowsIt) {
  EXPECT_EQ(load("train: {steps: 100}\noptim: {schedule: constant}").train.steps, 100);
  EXPECT_EQ(load("train: {steps: 100}\noptim: {min_lr: 1e-3}").train.steps, 100);
  EXPECT_EQ(load("train: {steps: 101}").train.steps, 101);
  EXPECT_EQ(problems("train: {steps: 99}\noptim: {schedule: constant}").size(), 1u);
}

TEST_F(ConfigTest, SizesAtTheEndOfInt64AreRefusedWithoutOverflow) {
  const std::string huge = std::to_string(std::numeric_limits<int64_t>::max());
  const Lines lines = problems(
      "model: {layers: H, channels: H, heads: H, context: H, mlp_width: H}\n"
      "train: {micro_batch: 1, global_batch: 1}\n",
      {"model.layers=100000", "model.channels=" + huge, "model.heads=" + huge,
       "model.context=" + huge, "model.mlp_width=" + huge, "parallel.tp=" + huge});
  EXPECT_THAT(lines, testing::Contains(HasSubstr("parameters: sizes above 1e+15")));
  EXPECT_THAT(problems("model: {channels: " + huge + ", heads: 7}\nparallel: {tp: 7}"),
              testing::Contains(HasSubstr("activations: sizes above 1e+15")));
}

TEST_F(ConfigTest, SchedulesThatIgnoreAKeyDoNotCheckIt) {
  EXPECT_EQ(load("optim: {schedule: constant, lr: 1e-5}").optim.lr, 1e-5);
  EXPECT_EQ(load("optim: {schedule: wsd}").optim.decay_steps, std::nullopt);
  EXPECT_EQ(resolved_decay_steps(OptimConfig{}, 2000), 400);
  EXPECT_EQ(resolved_decay_steps(OptimConfig{}, 11), 3);
  EXPECT_EQ(resolved_decay_steps(OptimConfig{.decay_steps = 7}, 11), 7);
  EXPECT_EQ(resolved_mlp_width(ModelConfig{.channels = 96}), 384);
  EXPECT_EQ(resolved_mlp_width(ModelConfig{.mlp_width = 100}), 100);
}

TEST_F(ConfigTest, AMistypedKeyHidesContradictionsOfTheKeyItMeant) {
  // channels 120 would go with heads 5; complaining about the default 128 would mislead.
  EXPECT_THAT(problems("model: {chanels: 120, heads: 5}"),
              ElementsAre(HasSubstr("did you mean model.channels?")));
  EXPECT_THAT(problems("model: {channels: many, heads: 5}"),
              ElementsAre(HasSubstr("found 'many'")));
}

TEST(ConfigCheck, ConfigurationsMadeInCodeAreCheckedToo) {
  EXPECT_NO_THROW(check_config(Config{}));
  Config config;
  config.model.heads = 3;
  config.optim.lr = std::numeric_limits<double>::quiet_NaN();
  config.run.dir.clear();
  config.data.train = {"a", ""};
  try {
    check_config(config);
    FAIL() << "accepted";
  } catch (const ConfigError& e) {
    EXPECT_STREQ(e.what(),
                 "4 problems in the configuration\n"
                 "  run.dir: found \"\", expected text, not empty\n"
                 "  data.train: found [a, \"\"], expected a list of text, not empty\n"
                 "  optim.lr: found nan, expected a number > 0 and <= 1000\n"
                 "  model.channels: channels 128 are not divisible by heads 3: use channels 126 or "
                 "129 (model.heads: default)");
  }
}

}  // namespace
}  // namespace gradus
