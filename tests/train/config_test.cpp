#include "train/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <sstream>

#include "core/error.h"
#include "support/temp_dir.h"
#include "train/config_fields.h"
#include "train/config_nearest.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Lines = std::vector<std::string>;

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

/// A folder of configuration files for one test; "DIR/" in expected problems stands for it.
class ConfigTest : public testing::Test {
 protected:
  fs::path write(const std::string& name, const std::string& text) const {
    fs::create_directories((dir_ / name).parent_path());
    std::ofstream(dir_ / name, std::ios::binary) << text;
    return dir_ / name;
  }

  Config load(const std::string& text, const Lines& overrides = {}) const {
    return load_config(write("c.yaml", text), overrides);
  }

  /// The problems of one load, without the headline; the headline's count is checked.
  Lines problems_of(const fs::path& path, const Lines& overrides = {}) const {
    try {
      load_config(path, overrides);
    } catch (const ConfigError& e) {
      std::istringstream in(e.what());
      std::string headline;
      std::getline(in, headline);
      Lines lines;
      for (std::string line; std::getline(in, line);) {
        EXPECT_TRUE(line.starts_with("  ")) << line;
        line.erase(0, 2);
        const std::string folder = dir_.string() + "/";
        for (size_t at; (at = line.find(folder)) != line.npos;) {
          line.replace(at, folder.size(), "DIR/");
        }
        lines.push_back(line);
      }
      EXPECT_EQ(headline, lines.size() == 1
                              ? "1 problem in the configuration"
                              : std::to_string(lines.size()) + " problems in the configuration");
      return lines;
    }
    return {};
  }

  Lines problems(const std::string& text, const Lines& overrides = {}) const {
    return problems_of(write("c.yaml", text), overrides);
  }

  const test::TempDir temp_;
  const fs::path dir_ = temp_.path();
};

TEST_F(ConfigTest, EmptyFilesGiveTheDefaults) {
  EXPECT_EQ(load(""), Config{});
  EXPECT_EQ(load("# nothing but a comment\n"), Config{});
  EXPECT_EQ(load("---\n"), Config{});
  EXPECT_EQ(load("model:\n  # all keys commented out\noptim:\n"), Config{});
}

TEST_F(ConfigTest, ReadsEveryTypeOfValue) {
  const Config config = load(R"(
device: cpu
seed: 7
run: {dir: runs/2024-01-01}
model:
  layers: +6
  mlp_width: 512
  dropout: .1
  bias: false
  attention: plain
  vocab_size: auto
data: {train: [a, "b c"], val: [], tokenizer: auto}
optim: {lr: 1e-3, min_lr: 0, schedule: wsd, decay_steps: 10}
train: {global_batch: 36, threads: 2, precision: fp64, recompute: selective}
parallel: {dp: 1, zero: 0}
checkpoint: {resume: runs/old/checkpoint}
)");
  EXPECT_EQ(config.device, DeviceChoice::cpu);
  EXPECT_EQ(config.seed, 7);
  EXPECT_EQ(config.run.dir, "runs/2024-01-01");
  EXPECT_EQ(config.model.layers, 6);
  EXPECT_EQ(config.model.mlp_width, 512);
  EXPECT_EQ(config.model.dropout, 0.1);
  EXPECT_FALSE(config.model.bias);
  EXPECT_EQ(config.model.attention, AttentionKind::plain);
  EXPECT_EQ(config.model.vocab_size, std::nullopt);
  EXPECT_THAT(config.data.train, ElementsAre("a", "b c"));
  EXPECT_EQ(config.data.tokenizer, TokenizerChoice::automatic);
  EXPECT_EQ(config.optim.lr, 1e-3);
  EXPECT_EQ(config.optim.min_lr, 0.0);
  EXPECT_EQ(config.optim.schedule, ScheduleKind::wsd);
  EXPECT_EQ(config.optim.decay_steps, 10);
  EXPECT_EQ(config.train.threads, 2);
  EXPECT_EQ(config.train.precision, PrecisionPreset::fp64);
  EXPECT_EQ(config.train.recompute, Recompute::selective);
  EXPECT_EQ(config.parallel.dp, 1);
  EXPECT_EQ(config.checkpoint.resume, (Resume{Resume::Mode::from_path, "runs/old/checkpoint"}));
  EXPECT_EQ(load("checkpoint: {resume: never}").checkpoint.resume.mode, Resume::Mode::never);
  EXPECT_EQ(load("checkpoint: {resume: \"never\"}").checkpoint.resume,
            (Resume{Resume::Mode::from_path, "never"}));
}

TEST_F(ConfigTest, UnknownKeysNameTheNearestKnownOne) {
  EXPECT_THAT(problems("seed: 1\nmodel:\n  layers: 2\n  chanels: 64\n"),
              ElementsAre("DIR/c.yaml:4: model.chanels: unknown key; did you mean "
                          "model.channels?"));
  EXPECT_THAT(problems("optin:\n  lr: 1\n"),
              ElementsAre("DIR/c.yaml:1: optin: unknown key; did you mean optim?"));
  EXPECT_THAT(problems("train:\n  lr: 1\n"),
              ElementsAre("DIR/c.yaml:2: train.lr: unknown key; did you mean optim.lr?"));
  EXPECT_THAT(problems("model.layers: 3\n"),
              ElementsAre("DIR/c.yaml:1: model.layers: unknown key; write it as the key layers "
                          "of the section model"));
  EXPECT_THAT(problems("log: {tensorboard: true}\n"),
              ElementsAre("DIR/c.yaml:1: log.tensorboard: unknown key; expected one of every"));
  EXPECT_THAT(problems("<<: {seed: 1}\n"),
              ElementsAre("DIR/c.yaml:1: <<: unknown key; expected one of device, seed, run, "
                          "model, data, optim, train, parallel, checkpoint, eval, log"));
  EXPECT_THAT(problems("model:\n  base: x.yaml\n"),
              ElementsAre(HasSubstr("DIR/c.yaml:2: model.base: unknown key")));
}

TEST_F(ConfigTest, EveryMisspellingOfAKeyLeadsBackToIt) {
  const std::vector<std::string> known = known_keys();
  ASSERT_EQ(std::set<std::string>(known.begin(), known.end()).size(), known.size());
  for (const std::string& key : known) {
    EXPECT_EQ(nearest_key(key, known), key);
    if (key.size() - key.rfind('.') <= 5) continue;  // in a short name one letter may fit several
    for (size_t i = key.rfind('.') + 1; i < key.size(); ++i) {
      const std::string dropped = key.substr(0, i) + key.substr(i + 1);
      if (dropped == "optim.beta") continue;  // as near to beta1 as to beta2
      EXPECT_EQ(nearest_key(dropped, known), key) << dropped;
    }
  }
  EXPECT_EQ(nearest_key("model.xyzzyxyzzy", known), "");
}

TEST_F(ConfigTest, EditDistanceCountsSwapsOnce) {
  EXPECT_EQ(edit_distance("", ""), 0u);
  EXPECT_EQ(edit_distance("", "abc"), 3u);
  EXPECT_EQ(edit_distance("steps", "stpes"), 1u);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3u);
  EXPECT_EQ(edit_distance("ca", "abc"), 3u);  // optimal string alignment, not Damerau-Levenshtein
}

struct Misreading {
  const char* text;
  const char* problem;
};
// Each is the whole file and its one problem.
const Misreading kMisreadings[] = {
    {"model: {layers: four}", "1: model.layers: found 'four', expected an integer >= 1"},
    {"model:\n  layers: 4.5", "2: model.layers: found '4.5', expected an integer >= 1"},
    {"train: {steps: 1.0e3}",
     "1: train.steps: found '1.0e3', expected an integer >= 1; write 1000, without fraction or "
     "exponent"},
    {"train: {steps: 1_000}",
     "1: train.steps: found '1_000', expected an integer >= 1; write 1000, without underscores"},
    {"seed: 9223372036854775808",
     "1: seed: found '9223372036854775808', expected an integer >= 0; it does not fit in 64 bits"},
    {"seed: 0x10", "1: seed: found '0x10', expected an integer >= 0"},
    {"seed: 010", "1: seed: found '010', expected an integer >= 0; write it without leading zeros"},
    {"seed: '10'", "1: seed: found '10', expected an integer >= 0; remove the quotes"},
    {"seed: auto", "1: seed: found 'auto', expected an integer >= 0"},
    {"seed:", "1: seed: found nothing, expected an integer >= 0"},
    {"seed: \"1\\n2\"", "1: seed: found '1\\x0a2', expected an integer >= 0"},
    {"seed: [1]", "1: seed: found a list, expected an integer >= 0"},
    {"seed: {a: 1}", "1: seed: found a section, expected an integer >= 0"},
    {"optim: {lr: quick}", "1: optim.lr: found 'quick', expected a number > 0 and <= 1000"},
    {"optim: {lr: \"1e-3\"}",
     "1: optim.lr: found '1e-3', expected a number > 0 and <= 1000; remove the quotes"},
    {"optim: {lr: 1e-3x}", "1: optim.lr: found '1e-3x', expected a number > 0 and <= 1000"},
    {"optim: {lr: .nan}",
     "1: optim.lr: found '.nan', expected a number > 0 and <= 1000; it must be finite"},
    {"optim: {lr: .inf}",
     "1: optim.lr: found '.inf', expected a number > 0 and <= 1000; it must be finite"},
    {"optim: {lr: inf}",
     "1: optim.lr: found 'inf', expected a number > 0 and <= 1000; it must be finite"},
    {"optim: {lr: 1e999}",
     "1: optim.lr: found '1e999', expected a number > 0 and <= 1000; it does not fit in a double"},
    {"model: {bias: yes}", "1: model.bias: found 'yes', expected true or false"},
    {"model: {bias: 1}", "1: model.bias: found '1', expected true or false"},
    {"model: {bias: \"true\"}", "1: model.bias: found 'true', expected true or false"},
    {"model: {attention: sparse}", "1: model.attention: found 'sparse', expected flash or plain"},
    {"train: {precision: fp8}",
     "1: train.precision: found 'fp8', expected fp32, bf16, fp16, bf16_lean or fp64"},
    {"model: {vocab_size: big}",
     "1: model.vocab_size: found 'big', expected auto or an integer >= 1 and <= 2147483647"},
    {"model: 3", "1: model: found '3', expected a section of keys"},
    {"model:\n- layers", "2: model: found a list, expected a section of keys"},
    {"run: {dir: ''}", "1: run.dir: found '', expected text, not empty"},
    {"run: {dir: [a]}", "1: run.dir: found a list, expected text, not empty"},
    {"run: {dir: \"a\xff\"}",
     "1: run.dir: found 'a\xff', expected text, not empty; it is not valid UTF-8"},
    {"data: {train: data/kjv}",
     "1: data.train: found 'data/kjv', expected a list of text, not empty; write [data/kjv]"},
    {"data:\n  train:\n  - a\n  - [b]",
     "4: data.train: found a list as item 2, expected a list of text, not empty"},
    {"data: {val: [~]}", "1: data.val: found nothing as item 1, expected a list of text"},
    {"checkpoint: {resume: [a]}",
     "1: checkpoint.resume: found a list, expected auto, never or a path"},
    {"seed: 1\n\nseed: 1", "3: seed: given twice, first at line 1: remove one"},
    {"model: {layers: 2}\nmodel: {heads: 2}", "2: model: given twice, first at line 1: remove one"},
    {"optim:\n  lr: 1\n  eps: 1\n  lr: 2", "4: optim.lr: given twice, first at line 2: remove one"},
    {"? [a, b]\n: 1", "1: found a list as a key, expected a name"},
    {"- a\n- b", "1: found a list, expected a section of keys"},
    {"hello", "1: found 'hello', expected a section of keys"},
    {"seed: 1\n---\nseed: 2",
     "2: not valid YAML: expected one document, found the start of another (column 1)"},
    {"seed: 1\nmodel: {layers: 2\ntrain: 3",
     "3: not valid YAML: end of map flow not found (column 6)"},
    {"seed: 1\n device: cpu", "2: not valid YAML: illegal map value (column 8)"},
};

TEST_F(ConfigTest, MisreadValuesAreShownWithPlaceAndExpectation) {
  for (const Misreading& m : kMisreadings) {
    EXPECT_THAT(problems(m.text), ElementsAre(std::string("DIR/c.yaml:") + m.problem)) << m.text;
  }
}

// Values of the right type outside their range.
const Misreading kOutOfRange[] = {
    {"seed: -1", "1: seed: found -1, expected an integer >= 0"},
    {"model: {layers: 0}", "1: model.layers: found 0, expected an integer >= 1"},
    {"model: {heads: 0}", "1: model.heads: found 0, expected an integer >= 1"},
    {"model: {mlp_width: 0}", "1: model.mlp_width: found 0, expected auto or an integer >= 1"},
    {"model: {vocab_size: 2147483648}",
     "1: model.vocab_size: found 2147483648, expected auto or an integer >= 1 and <= 2147483647"},
    {"model: {dropout: 1}", "1: model.dropout: found 1.0, expected a number >= 0 and <= 0.999"},
    {"model: {dropout: 0.9991}",
     "1: model.dropout: found 0.9991, expected a number >= 0 and <= 0.999"},
    {"model: {dropout: -0.1}", "1: model.dropout: found -0.1, expected a number >= 0 and <= 0.999"},
    {"data: {train: []}", "1: data.train: found [], expected a list of text, not empty"},
    {"optim: {lr: 0}", "1: optim.lr: found 0.0, expected a number > 0 and <= 1000"},
    {"optim: {lr: 1000.1}", "1: optim.lr: found 1000.1, expected a number > 0 and <= 1000"},
    {"optim: {lr: 1e39}", "1: optim.lr: found 1e+39, expected a number > 0 and <= 1000"},
    {"optim: {min_lr: 1e39}", "1: optim.min_lr: found 1e+39, expected a number >= 0 and <= 1000"},
    {"optim: {eps: 1e-46}", "1: optim.eps: found 1e-46, expected a number >= 1e-30 and <= 1"},
    {"optim: {eps: 1.5}", "1: optim.eps: found 1.5, expected a number >= 1e-30 and <= 1"},
    {"optim: {beta2: 1.0}", "1: optim.beta2: found 1.0, expected a number >= 0 and < 1"},
    {"optim: {clip_norm: -1}", "1: optim.clip_norm: found -1.0, expected a number >= 0"},
    {"train: {micro_batch: 0}", "1: train.micro_batch: found 0, expected an integer >= 1"},
    {"parallel: {tp: 0}", "1: parallel.tp: found 0, expected an integer >= 1"},
    {"parallel: {zero: 4}", "1: parallel.zero: found 4, expected an integer >= 0 and <= 3"},
    {"checkpoint: {keep: 0}", "1: checkpoint.keep: found 0, expected an integer >= 1"},
    {"eval: {every: -1}", "1: eval.every: found -1, expected an integer >= 0"},
};

TEST_F(ConfigTest, ValuesOutsideTheirRangeAreShownWithPlaceAndRange) {
  for (const Misreading& m : kOutOfRange) {
    EXPECT_THAT(problems(m.text), ElementsAre(std::string("DIR/c.yaml:") + m.problem)) << m.text;
  }
}

// Keys that contradict each other, and what this build does not have.
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
    {"model: {layers: 10000000000}",
     "1: model.layers: the model has about 2.0e+15 parameters: sizes above 1e+15 are not "
     "supported (model.channels: default, model.mlp_width: default, model.vocab_size: default, "
     "model.context: default)"},
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
      ASSERT_FALSE(lines.empty());  // as many layers also have too many activations
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
      {"model.layers=" + huge, "model.channels=" + huge, "model.heads=" + huge,
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

TEST_F(ConfigTest, AllProblemsAreReportedAtOnce) {
  EXPECT_THAT(
      problems("seed: -3\n"
               "model:\n"
               "  chanels: 64\n"
               "  heads: 5\n"
               "optim: {lr: quick, schedule: cosin}\n"
               "seed: 4\n"
               "train: {global_batch: 13}\n",
               {"train.steps=0", "foo", "modle.layers=1"}),
      ElementsAre("DIR/c.yaml:3: model.chanels: unknown key; did you mean model.channels?",
                  "DIR/c.yaml:5: optim.lr: found 'quick', expected a number > 0 and <= 1000",
                  "DIR/c.yaml:5: optim.schedule: found 'cosin', expected constant, linear, "
                  "cosine or wsd",
                  "DIR/c.yaml:6: seed: given twice, first at line 1: remove one",
                  "command line: found 'foo', expected section.key=VALUE",
                  "command line: modle: unknown key; did you mean model?",
                  "DIR/c.yaml:1: seed: found -3, expected an integer >= 0",
                  "command line: train.steps: found 0, expected an integer >= 1",
                  "DIR/c.yaml:7: train.global_batch: global_batch 13 is not a multiple of "
                  "micro_batch 12 × dp 1: use global_batch 12 or 24 (train.micro_batch: "
                  "default, parallel.dp: default)"));
}

TEST_F(ConfigTest, AMistypedKeyHidesContradictionsOfTheKeyItMeant) {
  // channels 120 would go with heads 5; complaining about the default 128 would mislead.
  EXPECT_THAT(problems("model: {chanels: 120, heads: 5}"),
              ElementsAre(HasSubstr("did you mean model.channels?")));
  EXPECT_THAT(problems("model: {channels: many, heads: 5}"),
              ElementsAre(HasSubstr("found 'many'")));
}

TEST_F(ConfigTest, OverridesReadTheirValueAsYaml) {
  const Config config = load("model: {layers: 2}\ndata: {train: [x]}",
                             {"data.train=[a, b]", "model.layers=8", "model.layers=3",
                              "optim.lr=2.5e-4", "seed=5", "run.dir=runs/a=b", "train={steps: 300}",
                              "checkpoint.resume=never", "parallel.dp=auto", "model.bias=false"});
  EXPECT_THAT(config.data.train, ElementsAre("a", "b"));
  EXPECT_EQ(config.model.layers, 3);  // the last one wins
  EXPECT_EQ(config.optim.lr, 2.5e-4);
  EXPECT_EQ(config.seed, 5);
  EXPECT_EQ(config.run.dir, "runs/a=b");
  EXPECT_EQ(config.train.steps, 300);
  EXPECT_EQ(config.train.micro_batch, TrainConfig{}.micro_batch);
  EXPECT_EQ(config.checkpoint.resume.mode, Resume::Mode::never);
  EXPECT_EQ(config.parallel.dp, std::nullopt);
  EXPECT_FALSE(config.model.bias);
}

TEST_F(ConfigTest, OverridesGoThroughTheSameChecks) {
  const std::map<std::string, std::string> cases = {
      {"foo", "found 'foo', expected section.key=VALUE"},
      {"", "found '', expected section.key=VALUE"},
      {"=3", "found '=3', expected section.key=VALUE"},
      {".seed=3", "found '.seed=3', expected section.key=VALUE"},
      {"model.=3", "found 'model.=3', expected section.key=VALUE"},
      {"model..layers=3", "found 'model..layers=3', expected section.key=VALUE"},
      {"model=3", "model: found '3', expected a section of keys"},
      {"model=", "model: found nothing, expected a section of keys"},
      {"model.layers=", "model.layers: found nothing, expected an integer >= 1"},
      {"model.layers=two", "model.layers: found 'two', expected an integer >= 1"},
      {"model.layers.x=2", "model.layers: found a section, expected an integer >= 1"},
      {"model.layer=2", "model.layer: unknown key; did you mean model.layers?"},
      {"lr=2", "lr: unknown key; did you mean optim.lr?"},
      {"base=x.yaml", "base: can only be given in a file"},
      {"data.train=[a", "data.train: '[a' is not valid YAML: end of sequence flow not found"},
      {"data.train=a", "data.train: found 'a', expected a list of text, not empty; write [a]"},
      {"model={layers: 1, layers: 2}", "model.layers: given twice: remove one"},
      {"train.micro_batch=0", "train.micro_batch: found 0, expected an integer >= 1"},
      {"parallel.tp=3",
       "parallel.tp: heads 4 are not divisible by tp 3: use tp 1, 2 or 4 (model.heads: default)"},
  };
  for (const auto& [text, problem] : cases) {
    const Lines lines = problems("", {text});
    ASSERT_FALSE(lines.empty()) << text;
    EXPECT_EQ(lines[0], "command line: " + problem);
    EXPECT_EQ(lines.size(), text == "parallel.tp=3" ? 2u : 1u);  // 3 does not divide the MLP either
  }
}

TEST_F(ConfigTest, BaseIsInheritedKeyByKeyAndRelativeToItsFile) {
  write("shared/root.yaml", "seed: 1\nmodel: {layers: 2, heads: 2}\ndata: {train: [a, b]}\n");
  write("shared/middle.yaml", "model: {heads: 8}\nbase: root.yaml\n");
  const fs::path leaf =
      write("leaf.yaml", "base: shared/middle.yaml\nmodel: {channels: 64}\ndata: {train: [c]}\n");
  const Config config = load_config(leaf);
  EXPECT_EQ(config.seed, 1);
  EXPECT_EQ(config.model.layers, 2);
  EXPECT_EQ(config.model.heads, 8);
  EXPECT_EQ(config.model.channels, 64);
  EXPECT_THAT(config.data.train, ElementsAre("c"));
}

TEST_F(ConfigTest, ProblemsOfABasePointIntoIt) {
  write("root.yaml", "seed: 1\n\nmodel:\n  layers: -2\n  channels: 130\n  depth: 1\n");
  EXPECT_THAT(
      problems("base: root.yaml\nmodel:\n  heads: 4\n", {"optim.eps=0"}),
      ElementsAre("DIR/root.yaml:6: model.depth: unknown key; expected one of layers, channels, "
                  "heads, context, mlp_width, dropout, bias, tied_embeddings, attention, "
                  "vocab_size",
                  "DIR/root.yaml:4: model.layers: found -2, expected an integer >= 1",
                  "command line: optim.eps: found 0.0, expected a number >= 1e-30 and <= 1",
                  "DIR/root.yaml:5: model.channels: channels 130 are not divisible by heads 4: use "
                  "channels 128 or 132 (model.heads: DIR/c.yaml:3)"));
  // What an heir replaces is judged by the replacement.
  EXPECT_EQ(problems("base: root.yaml\nmodel: {layers: 2, channels: 128}").size(), 1u);
}

TEST_F(ConfigTest, BasesThatCannotBeReadAreReportedWhereTheyAreNamed) {
  EXPECT_THAT(problems("seed: 1\nbase: none.yaml\n"),
              ElementsAre("DIR/c.yaml:2: base: cannot read the file DIR/none.yaml: it does not "
                          "exist"));
  EXPECT_THAT(problems("base: [a]\n"),
              ElementsAre("DIR/c.yaml:1: base: found a list, expected a path"));
  EXPECT_THAT(problems("base:\n"),
              ElementsAre("DIR/c.yaml:1: base: found nothing, expected a path"));
  write("a.yaml", "");
  EXPECT_THAT(problems("base: a.yaml\nbase: a.yaml\n"),
              ElementsAre("DIR/c.yaml:2: base: given twice, first at line 1: remove one"));
  write("broken.yaml", "seed: 1\nmodel: [\n");
  EXPECT_THAT(problems("base: broken.yaml\nsed: 3\nmodel: {heads: 5}\n"),
              ElementsAre("DIR/broken.yaml:3: not valid YAML: end of sequence flow not found "
                          "(column 1)",
                          "DIR/c.yaml:2: sed: unknown key; did you mean seed?"));
}

TEST_F(ConfigTest, CircularBasesAreReported) {
  EXPECT_THAT(problems("base: c.yaml\n"),
              ElementsAre("DIR/c.yaml:1: base: files inherit in a circle: c.yaml -> c.yaml"));
  write("x/a.yaml", "\nbase: ../c.yaml\n");
  EXPECT_THAT(problems("base: ./x/a.yaml\n"),
              ElementsAre("DIR/x/a.yaml:2: base: files inherit in a circle: c.yaml -> a.yaml -> "
                          "c.yaml"));
}

TEST_F(ConfigTest, UnreadableFilesAreReported) {
  EXPECT_THAT(problems_of(dir_ / "none.yaml", {"sed=1"}),
              ElementsAre("DIR/none.yaml: cannot read the file DIR/none.yaml: it does not exist",
                          "command line: sed: unknown key; did you mean seed?"));
  fs::create_directories(dir_ / "folder");
  EXPECT_THAT(problems_of(dir_ / "folder"),
              ElementsAre("DIR/folder: cannot read the file DIR/folder: it is a folder"));
}

TEST_F(ConfigTest, HostileInputIsRefusedWithoutCrashing) {
  EXPECT_EQ(problems(std::string(100000, '[')).size(), 1u);
  EXPECT_EQ(problems("a: &a [*a]\nseed: *b\n").size(), 1u);
  EXPECT_THAT(problems("model: &m {layers: *m}\n"),
              ElementsAre("DIR/c.yaml:1: model.layers: found a section, expected an integer >= 1"));
  std::mt19937 random(20240229);
  const std::string alphabet = "model: {}[]layers&*-?!|>'\"#%@`,\n\t \\0123e.~\xc3\xff";
  for (int i = 0; i < 500; ++i) {
    std::string text;
    for (unsigned n = random() % 60; n > 0; --n) text += alphabet[random() % alphabet.size()];
    SCOPED_TRACE(text);
    EXPECT_NO_THROW(problems(text));
    EXPECT_NO_THROW(problems("", {"model.layers=" + text}));
  }
}

/// A Config whose every key differs from its default, drawn from `random` and free of problems.
Config drawn_config(std::mt19937_64& random) {
  const auto fraction = [&] { return std::uniform_real_distribution<double>(0, 1)(random); };
  const auto size = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  Config c;
  c.device = DeviceChoice::cpu;
  c.seed = size(0, std::numeric_limits<int64_t>::max());
  c.run.dir = "runs/\"quoted\" \\ #1: ünï\tcode\n- 'x', [y] {z}";
  c.model = {.layers = size(10, 40),
             .channels = 16 * size(10, 99),
             .heads = 16,
             .context = 8 * size(10, 1000),
             .mlp_width = 8 * size(1, 1000),
             .dropout = 0.999 * fraction(),
             .bias = false,
             .tied_embeddings = false,
             .attention = AttentionKind::plain,
             .vocab_size = size(1, 2147483647)};
  c.data = {.train = {"~", "auto", "null", "-a", ".", "../x", "a, b", "true", "1.5"},
            .val = {"[]"},
            .tokenizer = TokenizerChoice::bytes};
  c.optim = {.lr = 1 + fraction(),
             .min_lr = fraction(),
             .warmup_steps = size(1, 99),
             .schedule = ScheduleKind::wsd,
             .decay_steps = size(1, 99),
             .weight_decay = std::ldexp(fraction(), static_cast<int>(size(-900, 900))),
             .beta1 = fraction(),
             .beta2 = fraction(),
             .eps = std::ldexp(0.5 + 0.5 * fraction(), -static_cast<int>(size(0, 98))),
             .clip_norm = std::numeric_limits<double>::max() * fraction()};
  c.train = {.steps = size(3000, 100000),
             .micro_batch = 3,
             .global_batch = 3 * 5 * size(5, 9),
             .precision = PrecisionPreset::fp64,
             .recompute = Recompute::full,
             .max_skipped_steps = size(11, 99),
             .threads = size(1, 99)};
  c.parallel = {.tp = 8, .pp = 1, .dp = 1, .cp = 1, .sequence = true, .zero = 0};
  c.checkpoint = {.every = 0, .keep = size(4, 9), .resume = {Resume::Mode::from_path, "auto"}};
  c.eval = {.every = 0, .batches = size(51, 99)};
  c.log = {.every = size(11, 99)};
  return c;
}

TEST_F(ConfigTest, SavedConfigurationsReadBackBitByBit) {
  EXPECT_EQ(load(to_yaml(Config{})), Config{});
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int i = 0; i < 200; ++i) {
    const Config drawn = drawn_config(random);
    const Config read = load(to_yaml(drawn));
    EXPECT_EQ(read, drawn);
    EXPECT_EQ(to_yaml(read), to_yaml(drawn));
  }
}

TEST_F(ConfigTest, DifferencesListEveryKeyThatDiffers) {
  EXPECT_THAT(config_differences(Config{}, Config{}), IsEmpty());
  Config changed;
  changed.optim.lr = std::nextafter(changed.optim.lr, 1.0);
  changed.seed = 2;
  changed.parallel.dp = 4;
  EXPECT_THAT(config_differences(Config{}, changed),
              ElementsAre(ConfigDifference{"seed", "1337", "2"},
                          ConfigDifference{"optim.lr", "0.001", "0.0010000000000000002"},
                          ConfigDifference{"parallel.dp", "auto", "4"}));
  std::mt19937_64 random(1);
  std::set<std::string> all;
  for_each_value(changed, "", [&](const std::string& key, const auto&, const auto&) {
    if (key != "parallel.cp" && key != "parallel.pp") all.insert(key);  // only 1 is allowed
  });
  std::set<std::string> differing;
  for (const auto& difference : config_differences(Config{}, drawn_config(random))) {
    differing.insert(difference.key);
  }
  EXPECT_EQ(differing, all);
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

TEST(ConfigFields, EveryMemberHasOneDocumentedKey) {
  std::set<std::string> keys;
  std::set<const void*> members;
  const auto check_doc = [](const std::string& key, std::string_view doc) {
    EXPECT_GE(doc.size(), 10u) << key;
    EXPECT_TRUE(doc.ends_with('.')) << key;
    EXPECT_EQ(doc.find('|'), doc.npos) << key << " would break the table";
  };
  const Config config;
  for_each_field(config, [&](const auto& field, const auto&) {
    check_doc(std::string(field.key), field.doc);
  });
  for_each_value(config, "", [&](const std::string& key, const auto& field, const auto& value) {
    check_doc(key, field.doc);
    EXPECT_TRUE(keys.insert(key).second) << key;
    EXPECT_TRUE(members.insert(&value).second) << key << " shares its member with another key";
  });
}

// The tests run in the root of the source tree.
TEST(ConfigReference, DocsAreUpToDate) {
  EXPECT_EQ(read_file("docs/configuration.md"), config_reference_markdown())
      << "docs/configuration.md is stale. Write it anew with\n"
         "  cmake --build build/release --target gradus_config_reference && "
         "build/release/bin/gradus_config_reference > docs/configuration.md";
}

TEST(ConfigFiles, EveryShippedConfigurationLoads) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator("configs")) {
    SCOPED_TRACE(entry.path());
    ASSERT_EQ(entry.path().extension(), ".yaml");
    names.insert(entry.path().stem().string());
    EXPECT_NO_THROW(load_config(entry.path()));
  }
  EXPECT_TRUE(names.contains("kjv_char_cpu"));
}

TEST(ConfigFiles, TheCharacterModelHasThePublishedSettings) {
  const Config c = load_config("configs/kjv_char_cpu.yaml");
  Config expected;
  expected.run.dir = "runs/kjv_char_cpu";
  expected.train.precision = PrecisionPreset::fp32;
  expected.eval.batches = 20;
  EXPECT_THAT(config_differences(c, expected), IsEmpty());
  const Config bytes = load_config("configs/kjv_bytes_cpu.yaml");
  std::vector<std::string> keys;
  for (const auto& difference : config_differences(c, bytes)) keys.push_back(difference.key);
  EXPECT_THAT(keys, ElementsAre("run.dir", "data.train", "data.tokenizer"));
}

}  // namespace
}  // namespace gradus
