// What a checkpoint says of a run is checked when it is read, also where its checksums are right.

#include "train/run_state.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "checkpoint/checkpoint_writer.h"
#include "data/tokenizer.h"
#include "support/temp_dir.h"
#include "support/tensors.h"
#include "support/tiny_model.h"
#include "train/run_checkpoint.h"

namespace gradus {
namespace {

using nlohmann::json;
using test::TinyModel;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using Kind = Optimizer::Kind;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

const DataIdentity kData = {.train = {{1000, 0xabc}, {500, 0xdef}}, .val = {{100, 0x123}}};

class RunStateTest : public testing::Test {
 protected:
  RunStateTest() : tokenizer_(build_tokenizer("bytes", {})), tiny_(config()) {
    tiny_.stepper.run(0, 1e-2);
    tiny_.stepper.run(2, 1e-2);
  }

  static Config config() {
    Config config = test::tiny_config();
    config.train.precision = PrecisionPreset::fp32;
    return config;
  }

  /// Saves the model at step 2; whatever stands in it.
  Checkpoint save(const DataIdentity& data = kData) {
    const RunProgress progress = {.step = 2, .samples = 4};
    const SaveResult saved =
        save_run(dir_.path(), progress, tiny_.config, *tokenizer_, data, tiny_.model);
    return Checkpoint::open(saved.path);
  }

  /// A checkpoint with another state.json, whose checksum is right.
  Checkpoint with_state(const std::function<void(json&)>& change) {
    const Checkpoint checkpoint = save();
    CheckpointContents contents{.step = checkpoint.step(), .state = checkpoint.state()};
    for (const char* key : {"step", "format_version"}) contents.state.erase(key);
    change(contents.state);
    for (const auto name : {kConfigFile, kTokenizerFile}) {
      contents.files[std::string(name)] = checkpoint.file(name);
    }
    return Checkpoint::open(save_checkpoint(dir_.path(), contents, 9).path);
  }

  template <typename Action>
  static std::string refusal(Action&& action) {
    try {
      action();
    } catch (const CheckpointError& error) {
      return error.what();
    }
    return "";
  }

  std::string loading() {
    const Checkpoint checkpoint = save();
    TinyModel other(config());
    return refusal([&] { load_run(checkpoint, other.model); });
  }

  void set(const std::string& name, Kind kind, int64_t element, double value) {
    const Parameter& parameter = tiny_.model.parameters()[name];
    test::set_value(tiny_.model.optimizer().held(parameter, kind).values, element, value);
  }

  test::TempDir dir_;
  std::unique_ptr<Tokenizer> tokenizer_;
  TinyModel tiny_;
};

TEST_F(RunStateTest, ComesBackAsItWasSaved) {
  const Checkpoint checkpoint = save();
  const RunState state = run_state_of(checkpoint);
  EXPECT_EQ(state.progress.step, 2);
  EXPECT_EQ(state.progress.samples, 4);
  EXPECT_EQ(state.data, kData);
  EXPECT_EQ(state.step_state.applied, 2);
  TinyModel other(config());
  EXPECT_EQ(load_run(checkpoint, other.model).samples, 4);
}

struct Forgery {
  std::vector<std::string> place;
  json value;
  const char* expected;
};

TEST_F(RunStateTest, AStateThatNoRunCanHaveBeenInIsRefusedByField) {
  const std::vector<Forgery> forgeries = {
      {{"samples"}, -1, "field 'samples': found -1, expected an integer of 2"},
      {{"samples"}, 1, "field 'samples': found 1"},
      {{"samples"}, int64_t{1} << 40, "field 'samples': found 1099511627776"},
      {{"samples"}, "4", "field 'samples': found \"4\", expected an integer"},
      {{"evaluation_due"}, 1, "field 'evaluation_due': found 1, expected true or false"},
      {{"vocabulary"}, 0, "field 'vocabulary': found 0"},
      {{"vocabulary"}, 13.0, "field 'vocabulary': found 13.0"},
      {{"tokenizer_hash"}, 7, "field 'tokenizer_hash': found 7, expected text"},
      {{"tokenizer_hash"}, "xyz", "expected 16 hexadecimal digits"},
      {{"step_state"}, json::array(), "field 'step_state': found [], expected an object"},
      {{"step_state", "attempted"}, 3, "found 3, expected 2, the checkpoint's step"},
      {{"step_state", "attempted"}, -2, "field 'attempted': found -2"},
      {{"step_state", "applied"}, -1, "field 'applied': found -1"},
      {{"step_state", "applied"}, 3, "field 'applied': found 3"},
      {{"step_state", "applied"}, 1, "field 'skipped': found 0, expected 1"},
      {{"step_state", "skipped"}, 1, "field 'skipped': found 1, expected 0"},
      {{"step_state", "skipped_in_row"}, 1, "field 'skipped_in_row': found 1"},
      {{"step_state", "skipped_in_row"}, -1, "field 'skipped_in_row': found -1"},
      {{"step_state", "skipped_in_row"}, int64_t{1} << 32, "field 'skipped_in_row': found 42949"},
      {{"step_state", "nonfinite"}, 1, "field 'nonfinite': found 1, expected 0"},
      {{"step_state", "loss"}, "nan", "field 'loss': found \"nan\""},
      {{"step_state", "loss"}, true, "field 'loss': found true, expected a number"},
      {{"step_state", "grad_norm"}, -1.0, "field 'grad_norm': found -1.0"},
      {{"step_state", "grad_norm"}, "inf", "field 'grad_norm': found \"inf\""},
      {{"step_state", "lr"}, -0.1, "field 'lr': found -0.1"},
      {{"step_state", "lr"}, "inf", "field 'lr': found \"inf\""},
      {{"step_state", "loss_scale"}, 0.0, "field 'loss_scale': found 0.0, expected 1"},
      {{"step_state", "loss_scale"}, "nan", "field 'loss_scale'"},
      {{"step_state", "clip_scale"}, -1.0, "field 'clip_scale': found -1.0"},
      {{"step_state", "clip_scale"}, 2.0, "field 'clip_scale': found 2.0"},
      {{"data"}, 5, "field 'data': found 5, expected an object"},
      {{"data", "train"}, json::object(), "data: field 'train': found {}, expected an array"},
      {{"data", "train"},
       json::parse(R"([{"tokens": -5}])"),
       "data.train[0]: field 'tokens': found -5"},
      {{"data", "val"},
       json::parse(R"([{"tokens": 5, "xxh3_64": "0x"}])"),
       "data.val[0]: field 'xxh3_64'"},
  };
  for (const Forgery& forgery : forgeries) {
    const Checkpoint checkpoint = with_state([&](json& state) {
      json* at = &state;
      for (const std::string& key : forgery.place) at = &(*at)[key];
      *at = forgery.value;
    });
    EXPECT_THAT(refusal([&] { run_state_of(checkpoint); }),
                AllOf(HasSubstr("state.json: "), HasSubstr(forgery.expected)))
        << forgery.place.back() << " " << forgery.value;
  }
  for (const char* field : {"samples", "vocabulary", "tokenizer_hash", "step_state"}) {
    const Checkpoint checkpoint = with_state([&](json& state) { state.erase(field); });
    EXPECT_THAT(refusal([&] { run_state_of(checkpoint); }),
                HasSubstr(fmt::format("field '{}' is missing", field)));
  }
}

TEST_F(RunStateTest, WeightsAndMomentsThatNoRunCanGoOnFromAreRefusedByElement) {
  const std::string name = "block.1.mlp.up.weight";
  struct Case {
    Kind kind;
    double value;
    const char* tensor;
  };
  for (const Case& c : {Case{Kind::master, kNaN, ": block.1.mlp.up.weight: element 5 is nan"},
                        Case{Kind::master, -kInf, ": block.1.mlp.up.weight: element 5 is -inf"},
                        Case{Kind::first_moment, kInf, ": adam.m.block.1.mlp.up.weight: element 5"},
                        Case{Kind::second_moment, kNaN, ": adam.v.block.1.mlp.up.weight: element"},
                        Case{Kind::second_moment, -1e-9, ": adam.v.block.1.mlp.up.weight: ele"}}) {
    set(name, c.kind, 5, c.value);
    EXPECT_THAT(loading(), AllOf(HasSubstr("safetensors"), HasSubstr(c.tensor),
                                 HasSubstr("go on from an earlier checkpoint")));
    set(name, c.kind, 5, 0.0);
    EXPECT_EQ(loading(), "");
  }
  set(name, Kind::first_moment, 5, -1.0);
  EXPECT_EQ(loading(), "") << "a first moment may be negative";
}

TEST_F(RunStateTest, AnotherVocabularyThanTheModelsIsRefused) {
  const Checkpoint checkpoint = with_state([](json& state) { state["vocabulary"] = 14; });
  TinyModel other(config());
  EXPECT_THAT(refusal([&] { load_run(checkpoint, other.model); }),
              HasSubstr("field 'vocabulary': found 14, expected the model's 13"));
}

TEST_F(RunStateTest, ACheckpointsConfigurationReadsNoOtherFile) {
  const Checkpoint saved = save();
  CheckpointContents contents{.step = saved.step(), .state = saved.state()};
  for (const char* key : {"step", "format_version"}) contents.state.erase(key);
  contents.files["tokenizer.json"] = saved.file(kTokenizerFile);
  test::write_file(dir_ / "secret", "a line of another file\n");
  contents.files["config.yaml"] = "base: " + (dir_ / "secret").string() + "\n";
  const Checkpoint checkpoint = Checkpoint::open(save_checkpoint(dir_.path(), contents, 9).path);
  try {
    check_run(checkpoint, config(), *tokenizer_, kData);
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(),
                AllOf(HasSubstr("config.yaml:1"), HasSubstr("base"), Not(HasSubstr("a line of"))));
  }
}

TEST_F(RunStateTest, WhatIsNotFiniteIsNotFitToSave) {
  EXPECT_EQ(unfit_to_save(tiny_.model), "");
  for (const Kind kind : {Kind::master, Kind::first_moment, Kind::second_moment}) {
    set("ln_f.bias", kind, 2, kNaN);
    EXPECT_THAT(unfit_to_save(tiny_.model), HasSubstr("ln_f.bias is not finite"));
    set("ln_f.bias", kind, 2, 0.0);
  }
  const StepState good = tiny_.model.optimizer().state();
  StepState state = good;
  state.nonfinite = 1;
  state.skipped_in_row = 3;
  tiny_.model.optimizer().set_state(state);
  EXPECT_EQ(unfit_to_save(tiny_.model), "the last 3 steps changed nothing");
  tiny_.model.optimizer().set_state(good);
  EXPECT_EQ(unfit_to_save(tiny_.model), "");
}

TEST_F(RunStateTest, ATokenizerWithAnotherHashThanItsOwnIsRefused) {
  const Checkpoint checkpoint =
      with_state([](json& state) { state["tokenizer_hash"] = "0123456789abcdef"; });
  EXPECT_THAT(refusal([&] { check_run(checkpoint, config(), *tokenizer_, kData); }),
              HasSubstr("field 'tokenizer_hash': found \"0123456789abcdef\""));
}

TEST_F(RunStateTest, OtherDataIsSaidAndRefusedUnlessItIsAllowed) {
  const Checkpoint checkpoint = save();
  const auto refusal_of = [&](const DataIdentity& data) {
    return refusal([&] { check_run(checkpoint, config(), *tokenizer_, data); });
  };
  EXPECT_EQ(refusal_of(kData), "");
  DataIdentity other = kData;
  other.train[1].checksum += 1;
  EXPECT_THAT(refusal_of(other),
              AllOf(HasSubstr("data.train, shard 2: 500 tokens (checksum 0000000000000def) -> 500 "
                              "tokens (checksum 0000000000000df0)"),
                    HasSubstr("data.changed=allow")));
  Config allowing = config();
  allowing.data.changed = ChangedData::allow;
  EXPECT_THAT(check_run(checkpoint, allowing, *tokenizer_, other),
              testing::Contains(HasSubstr("changed since step-00000002: data.train, shard 2")));
  other = kData;
  std::swap(other.train[0], other.train[1]);
  EXPECT_THAT(refusal_of(other), AllOf(HasSubstr("shard 1"), HasSubstr("shard 2")));
  other = kData;
  other.train.push_back({7, 7});
  EXPECT_THAT(refusal_of(other), HasSubstr("data.train, shard 3: none -> 7 tokens"));
  other = kData;
  other.train.pop_back();
  EXPECT_THAT(refusal_of(other),
              HasSubstr("shard 2: 500 tokens (checksum 0000000000000def) -> none"));
  other = kData;
  other.val[0].tokens += 1;
  EXPECT_THAT(refusal_of(other), HasSubstr("data.val, shard 1"));
  other.val.clear();  // nothing is evaluated any more
  EXPECT_EQ(refusal_of(other), "");
}

TEST_F(RunStateTest, ACheckpointWithoutARecordOfItsDataIsGoneOnFromAndSaysSo) {
  const Checkpoint checkpoint = with_state([](json& state) { state.erase("data"); });
  EXPECT_EQ(run_state_of(checkpoint).data, std::nullopt);
  EXPECT_THAT(check_run(checkpoint, config(), *tokenizer_, kData),
              ElementsAre(HasSubstr("step-00000002 was saved by a version that did not note its "
                                    "data")));
  EXPECT_THAT(check_run(save(), config(), *tokenizer_, kData), IsEmpty());
}

}  // namespace
}  // namespace gradus
