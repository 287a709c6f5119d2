// Reading a configuration: values, places, overrides, inheritance; what cannot be read.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <random>
#include <set>
#include <string>

#include "config_files.h"
#include "train/config_fields.h"
#include "train/config_nearest.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

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
data: {train: [a, "b c"], val: [], tokenizer: auto, changed: allow}
optim: {lr: 1e-3, min_lr: 0, schedule: wsd, decay_steps: 10}
train: {global_batch: 36, threads: 2, precision: fp64, recompute: selective}
parallel: {dp: 1, zero: 0, check_replicas: 25}
checkpoint: {resume: runs/old/checkpoint}
eval: {tokens: 77}
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
  EXPECT_EQ(config.data.changed, ChangedData::allow);
  EXPECT_EQ(config.optim.lr, 1e-3);
  EXPECT_EQ(config.optim.min_lr, 0.0);
  EXPECT_EQ(config.optim.schedule, ScheduleKind::wsd);
  EXPECT_EQ(config.optim.decay_steps, 10);
  EXPECT_EQ(config.train.threads, 2);
  EXPECT_EQ(config.train.precision, PrecisionPreset::fp64);
  EXPECT_EQ(config.train.recompute, Recompute::selective);
  EXPECT_EQ(config.parallel.dp, 1);
  EXPECT_EQ(config.parallel.check_replicas, 25);
  EXPECT_EQ(config.checkpoint.resume, (Resume{Resume::Mode::from_path, "runs/old/checkpoint"}));
  EXPECT_EQ(config.eval.tokens.count, 77);
  EXPECT_EQ(load("eval: {tokens: all}").eval.tokens, EvalTokens{});
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

TEST_F(ConfigTest, BatchesOfEvaluationNameTheTokensThatReplaceThem) {
  EXPECT_THAT(problems("train: {micro_batch: 12, global_batch: 12}\neval:\n  batches: 8\n"),
              ElementsAre("DIR/c.yaml:3: eval.batches: 8 is now eval.tokens: 6144 (8 batches of "
                          "micro_batch 12 × context 64 tokens)"));
  // The arithmetic is that of the whole configuration, wherever its parts come from.
  write("base.yaml", "eval: {batches: 1}\n");
  EXPECT_THAT(
      problems("base: base.yaml\nmodel: {context: 7}\n", {"train.micro_batch=3", "eval.batches=2"}),
      ElementsAre("DIR/base.yaml:1: eval.batches: 1 is now eval.tokens: 21 (1 batch of "
                  "micro_batch 3 × context 7 tokens)",
                  "command line: eval.batches: 2 is now eval.tokens: 42 (2 batches of "
                  "micro_batch 3 × context 7 tokens)"));
  for (const char* value : {"x", "0", "-1", "9223372036854775807", "[1]", ""}) {
    EXPECT_THAT(problems("eval:\n  batches: " + std::string(value) + "\n"),
                ElementsAre("DIR/c.yaml:2: eval.batches: is now eval.tokens: write the batches × "
                            "train.micro_batch × model.context, or all"));
  }
  EXPECT_THAT(problems("eval: {batches: 8}\nmodel: {context: x}\n"),
              ElementsAre(HasSubstr("model.context: found 'x'"),
                          HasSubstr("eval.batches: is now eval.tokens: write")));
}

TEST_F(ConfigTest, WhatAnOlderVersionSavedIsTranslated) {
  const std::string yaml = to_yaml(Config{});
  const std::string key = "  tokens: 32768\n";
  ASSERT_NE(yaml.find(key), yaml.npos);
  std::string old = yaml;
  old.replace(old.find(key), key.size(), "  batches: 8\n");
  Config expected;
  expected.eval.tokens.count = 8 * 12 * 64;
  EXPECT_EQ(load_saved_config(old, "step/config.yaml"), expected);
  EXPECT_EQ(load_saved_config(yaml, "step/config.yaml"), Config{});
}

TEST_F(ConfigTest, WhatIsSavedInheritsNothing) {
  try {
    load_saved_config("seed: 1\nbase: /etc/passwd\n", "step/config.yaml");
    FAIL() << "a saved configuration was inherited from another file";
  } catch (const ConfigError& error) {
    EXPECT_STREQ(
        error.what(),
        "1 problem in the configuration\n  step/config.yaml:2: base: unknown key; expected "
        "one of device, seed, run, model, data, optim, train, parallel, checkpoint, eval, "
        "log");
  }
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

// Each is the whole file and its one problem.
const Misreading kMisreadings[] = {
    {"model: {layers: four}",
     "1: model.layers: found 'four', expected an integer >= 1 and <= 100000"},
    {"model:\n  layers: 4.5",
     "2: model.layers: found '4.5', expected an integer >= 1 and <= 100000"},
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
    {"eval: {tokens: auto}", "1: eval.tokens: found 'auto', expected all or an integer >= 1"},
    {"eval: {tokens: 'all'}", "1: eval.tokens: found 'all', expected all or an integer >= 1"},
    {"eval: {tokens: 0}", "1: eval.tokens: found 0, expected all or an integer >= 1"},
    {"model: {attention: sparse}", "1: model.attention: found 'sparse', expected flash or plain"},
    {"train: {precision: fp8}",
     "1: train.precision: found 'fp8', expected fp32, bf16, fp16, bf16_lean or fp64"},
    {"model: {vocab_size: big}",
     "1: model.vocab_size: found 'big', expected auto or an integer >= 1 and <= 2147483647"},
    {"model: 3", "1: model: found '3', expected a section of keys"},
    {"model:\n- layers", "2: model: found a list, expected a section of keys"},
    {"run: {dir: ''}", "1: run.dir: found '', expected text, not empty"},
    {"run: {dir: [a]}", "1: run.dir: found a list, expected text, not empty"},
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
    {"model: {layers: 0}", "1: model.layers: found 0, expected an integer >= 1 and <= 100000"},
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
    {"parallel: {check_replicas: -1}",
     "1: parallel.check_replicas: found -1, expected an integer >= 0"},
    {"checkpoint: {keep: 0}", "1: checkpoint.keep: found 0, expected an integer >= 1"},
    {"eval: {every: -1}", "1: eval.every: found -1, expected an integer >= 0"},
};

TEST_F(ConfigTest, ValuesOutsideTheirRangeAreShownWithPlaceAndRange) {
  for (const Misreading& m : kOutOfRange) {
    EXPECT_THAT(problems(m.text), ElementsAre(std::string("DIR/c.yaml:") + m.problem)) << m.text;
  }
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
      {"=3", "found '=3', expected section.key=VALUE; write no spaces around the ="},
      {".seed=3", "found '.seed=3', expected section.key=VALUE"},
      {"model.=3", "found 'model.=3', expected section.key=VALUE"},
      {"model..layers=3", "found 'model..layers=3', expected section.key=VALUE"},
      {"model=3", "model: found '3', expected a section of keys"},
      {"model=", "model: found nothing, expected a section of keys"},
      {"model.layers=",
       "model.layers: found nothing, expected an integer >= 1 and <= 100000; is a variable of the "
       "shell empty?"},
      {"run.dir=a\xff", "run.dir: found 'a\xff', expected text, not empty; it is not valid UTF-8"},
      {"model.layers=two", "model.layers: found 'two', expected an integer >= 1 and <= 100000"},
      {"model.layers.x=2", "model.layers: found a section, expected an integer >= 1 and <= 100000"},
      {"model.layer=2", "model.layer: unknown key; did you mean model.layers?"},
      {"lr=2", "lr: unknown key; did you mean optim.lr?"},
      {"base=x.yaml", "base: can only be given in a file"},
      {"data.train=[a",
       "data.train: '[a' is not valid YAML: end of sequence flow not found; a list with spaces "
       "needs quotes in a shell"},
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
                  "DIR/root.yaml:4: model.layers: found -2, expected an integer >= 1 and <= 100000",
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
  EXPECT_THAT(
      problems_of(dir_ / "folder"),
      ElementsAre(
          "DIR/folder: cannot read the file DIR/folder: it is a folder, expected a regular file"));
}

TEST_F(ConfigTest, HostileInputIsRefusedWithoutCrashing) {
  EXPECT_EQ(problems(std::string(100000, '[')).size(), 1u);
  EXPECT_EQ(problems("a: &a [*a]\nseed: *b\n").size(), 1u);
  EXPECT_THAT(
      problems("model: &m {layers: *m}\n"),
      ElementsAre(
          "DIR/c.yaml:1: model.layers: found a section, expected an integer >= 1 and <= 100000"));
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

}  // namespace
}  // namespace gradus
