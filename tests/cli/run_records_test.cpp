// What a run writes down: its metrics, what it says of its memory, and the steps it left out.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <iostream>
#include <map>
#include <regex>
#include <set>
#include <sstream>

#include "checkpoint/checkpoint.h"
#include "checkpoint/checkpoint_writer.h"
#include "gradus_process.h"
#include "metrics_lines.h"
#include "optim/schedule.h"
#include "support/temp_dir.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::ProcessResult;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

/// Names in RUN/checkpoints, in order.
std::vector<std::string> checkpoints_of(const fs::path& run) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(run / "checkpoints")) {
    names.push_back(entry.path().filename().string());
  }
  std::ranges::sort(names);
  return names;
}

/// Everything below a folder: each path with its time and, of a file, its bytes.
std::map<std::string, std::string> tree_of(const fs::path& folder) {
  std::map<std::string, std::string> tree;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    tree[entry.path().string()] =
        fmt::format("{} {}", entry.last_write_time().time_since_epoch().count(),
                    entry.is_directory() ? "" : test::read_file(entry.path()));
  }
  return tree;
}

class RunRecords : public testing::Test {
 protected:
  void SetUp() override { test::prepare_text(folder(), test::some_text(6000), "bytes"); }

  const fs::path& folder() const { return dir_.path(); }
  fs::path run() const { return folder() / "run"; }
  void write_config() const {
    test::write_file(folder() / "config.yaml",
                     "run: {dir: run}\n"
                     "model: {layers: 2, channels: 24, heads: 3, context: 16}\n"
                     "data: {train: [data], tokenizer: bytes}\n"
                     "optim: {warmup_steps: 2}\n"
                     "train: {steps: 6, micro_batch: 3, global_batch: 6, precision: fp32}\n"
                     "eval: {every: 4, tokens: 90}\n"
                     "log: {every: 1}\n");
  }
  ProcessResult gradus(const std::string& command, const std::vector<std::string>& settings) const {
    write_config();
    std::vector<std::string> arguments = {command, "config.yaml"};
    arguments.insert(arguments.end(), settings.begin(), settings.end());
    return test::run_gradus(folder(), arguments);
  }

 private:
  test::TempDir dir_;
};

// Metrics

enum class Kind { text, count, number };
using Schema = std::map<std::string, Kind>;

void expect_schema(const json& line, const Schema& schema) {
  for (const auto& [key, kind] : schema) {
    ASSERT_TRUE(line.contains(key)) << key << " is missing: " << line;
    const json& value = line.at(key);
    const bool as_it_should_be = kind == Kind::text    ? value.is_string()
                                 : kind == Kind::count ? value.is_number_integer() && value >= 0
                                                       : value.is_number();
    EXPECT_TRUE(as_it_should_be) << key << ": " << line;
  }
  EXPECT_EQ(line.size(), schema.size()) << line;
}

/// The keys that docs/metrics.md has for an event, `event` itself included.
std::set<std::string> documented_keys(const std::string& event) {
  std::istringstream page(test::read_file(fs::path(GRADUS_SOURCE_DIR) / "docs" / "metrics.md"));
  std::set<std::string> keys = {"event"};
  bool here = false;
  for (std::string line; std::getline(page, line);) {
    if (line.starts_with("## ")) here = line == "## `\"event\": \"" + event + "\"`";
    if (!here || !line.starts_with("| `")) continue;
    const std::string cell = line.substr(1, line.find('|', 1) - 1);  // one key, or several
    const std::regex key("`([a-z_]+)`");
    for (std::sregex_iterator at(cell.begin(), cell.end(), key), end; at != end; ++at) {
      keys.insert((*at)[1]);
    }
  }
  return keys;
}

std::set<std::string> keys_of(const json& line) {
  std::set<std::string> keys;
  for (const auto& [key, value] : line.items()) keys.insert(key);
  return keys;
}

TEST_F(RunRecords, EachLineOfMetricsHasItsFields) {
  const ProcessResult result = gradus("train", {});
  ASSERT_EQ(result.exit_code, 0) << result.text();
  const Schema train = {{"event", Kind::text},
                        {"step", Kind::count},
                        {"loss", Kind::number},
                        {"grad_norm", Kind::number},
                        {"lr", Kind::number},
                        {"tokens", Kind::count},
                        {"tokens_per_s", Kind::number},
                        {"step_ms", Kind::number},
                        {"skipped", Kind::count},
                        {"arena_bytes", Kind::count},
                        {"baseline_bytes", Kind::count},
                        {"resident_bytes", Kind::count},
                        {"peak_bytes", Kind::count}};
  const Schema eval = {{"event", Kind::text},
                       {"step", Kind::count},
                       {"loss", Kind::number},
                       {"perplexity", Kind::number},
                       {"targets", Kind::count}};
  std::vector<std::string> order;
  OptimConfig optim;
  optim.warmup_steps = 2;
  for (const json& line : test::metrics_lines(run())) {
    const auto event = line.at("event").get<std::string>();
    const auto step = line.at("step").get<int64_t>();
    order.push_back(event + " " + std::to_string(step));
    expect_schema(line, event == "train" ? train : eval);
    EXPECT_EQ(keys_of(line), documented_keys(event)) << event;
    if (event == "train") {
      EXPECT_EQ(line.at("tokens"), step * 6 * 16);
      EXPECT_EQ(line.at("skipped"), 0);
      EXPECT_FLOAT_EQ(line.at("lr").get<float>(),
                      static_cast<float>(learning_rate(optim, step - 1, 6)));
      EXPECT_GT(line.at("step_ms"), 0.0);
      EXPECT_GE(line.at("peak_bytes"), line.at("resident_bytes"));
    } else {
      EXPECT_EQ(line.at("targets"), 6 * 16);
      EXPECT_NEAR(line.at("perplexity").get<double>(), std::exp(line.at("loss").get<double>()),
                  1e-9);
    }
  }
  EXPECT_THAT(order, ElementsAre("train 1", "train 2", "train 3", "train 4", "eval 4", "train 5",
                                 "train 6", "eval 6"));
}

// Memory

int64_t planned_bytes(const ProcessResult& plan) {
  std::smatch found;
  EXPECT_EQ(plan.exit_code, 0) << plan.text();
  if (!std::regex_search(plan.out, found, std::regex("\\narena .* (\\d+) bytes"))) {
    ADD_FAILURE() << plan.out;
    return -1;
  }
  return std::stoll(found[1]);
}

TEST_F(RunRecords, ThePlanIsWhatTheRunAllocatesToTheByte) {
  const std::vector<std::vector<std::string>> cases = {
      {"train.precision=fp32"},
      {"train.precision=bf16", "model.bias=false"},
      {"train.precision=bf16_lean", "train.recompute=full"},
      {"train.precision=fp64", "train.recompute=selective", "model.tied_embeddings=false"},
      {"train.precision=fp32", "model.attention=plain", "model.dropout=0.1", "train.threads=3"},
  };
  std::set<int64_t> sizes;
  for (size_t i = 0; i < cases.size(); ++i) {
    std::vector<std::string> settings = cases[i];
    settings.insert(settings.end(),
                    {"train.steps=2", "optim.warmup_steps=1", fmt::format("run.dir=run{}", i)});
    const ProcessResult trained = gradus("train", settings);
    ASSERT_EQ(trained.exit_code, 0) << trained.text();
    const auto lines = test::metrics_of(folder() / fmt::format("run{}", i), "train");
    ASSERT_EQ(lines.size(), 2u);
    const int64_t planned = planned_bytes(gradus("plan", settings));
    EXPECT_EQ(lines.back().at("arena_bytes"), planned) << cases[i].front();
    sizes.insert(planned);
  }
  EXPECT_EQ(sizes.size(), cases.size()) << "settings that change memory change the plan";
}

/// A model of 25 million parameters: what is resident beyond the program itself is the arena.
class ResidentMemory : public RunRecords, public testing::WithParamInterface<const char*> {};

TEST_P(ResidentMemory, IsTheArenaWithinFivePercent) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the sanitizer's own memory is resident too";
#endif
  const ProcessResult result = gradus(
      "train", {std::string("train.precision=") + GetParam(), "model.layers=8",
                "model.channels=512", "model.heads=8", "model.context=64", "train.micro_batch=2",
                "train.global_batch=4", "train.steps=3", "eval.every=0"});
  ASSERT_EQ(result.exit_code, 0) << result.text();
  const json line = test::metrics_of(run(), "train").back();
  const auto bytes = [&](const char* key) { return line.at(key).get<double>(); };
  const double held = bytes("resident_bytes") - bytes("baseline_bytes");
  std::cout << GetParam() << ": arena " << bytes("arena_bytes") << ", resident beyond the baseline "
            << held << " (" << 100.0 * (held / bytes("arena_bytes") - 1.0) << " %), baseline "
            << bytes("baseline_bytes") << '\n';
  EXPECT_GT(bytes("arena_bytes"), 300e6);
  EXPECT_NEAR(held, bytes("arena_bytes"), 0.05 * bytes("arena_bytes"));
}

INSTANTIATE_TEST_SUITE_P(Precisions, ResidentMemory, testing::Values("fp32", "bf16"),
                         [](const auto& c) { return std::string(c.param); });

// Steps that are not finite

/// Saves the run's newest checkpoint again with weights of ±3e38 in the first MLP: finite, but not
/// their products.
void poison_mlp(const fs::path& run) {
  std::vector<std::string> refused;
  const Checkpoint checkpoint = open_checkpoint(run, refused);
  CheckpointContents contents{.step = checkpoint.step(), .state = checkpoint.state()};
  for (const char* key : {"step", "format_version"}) contents.state.erase(key);  // saving adds them
  for (const char* name : {"config.yaml", "tokenizer.json"}) {
    contents.files[name] = checkpoint.file(name);
  }
  const auto tensors = [](const SafetensorsFile& file) {
    std::vector<NamedTensor> out;
    for (const SafetensorsEntry& entry : file.entries()) {
      const ConstTensor tensor = file.tensor(entry.name);
      out.push_back(
          {entry.name, tensor.dtype(), tensor.shape(), {ConstTensorPiece::whole(tensor)}});
    }
    return out;
  };
  contents.model = tensors(checkpoint.model());
  contents.optimizer = tensors(*checkpoint.optimizer());
  const auto weight = std::ranges::find(contents.model, "block.0.mlp.up.weight",
                                        [](const NamedTensor& tensor) { return tensor.name; });
  ASSERT_NE(weight, contents.model.end());
  std::vector<float> values(static_cast<size_t>(weight->shape.numel()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = i % 5 == 0 ? 3e38f : -3e38f;
  weight->pieces = {
      ConstTensorPiece::whole({values.data(), DType::fp32, Device::cpu, weight->shape})};
  save_checkpoint(run, contents, 9);
}

TEST_F(RunRecords, ARunThatStaysNonFiniteIsStopped) {
  const std::vector<std::string> settings = {"optim.schedule=linear",     "optim.warmup_steps=0",
                                             "optim.clip_norm=0",         "checkpoint.every=1",
                                             "train.max_skipped_steps=4", "checkpoint.keep=9"};
  std::vector<std::string> first = settings;
  first.emplace_back("train.steps=1");
  ASSERT_EQ(gradus("train", first).exit_code, 0);
  ASSERT_NO_FATAL_FAILURE(poison_mlp(run()));
  std::vector<std::string> rest = settings;
  rest.emplace_back("train.steps=40");
  const ProcessResult result = gradus("train", rest);
  EXPECT_EQ(result.exit_code, 1) << result.text();
  EXPECT_TRUE(result.err.starts_with("gradus: numeric error: 4 steps in a row")) << result.err;
  EXPECT_THAT(result.err, HasSubstr("up to step 5"));
  EXPECT_THAT(result.err,
              HasSubstr("The weights are those of step 1, and nothing was saved since: its newest "
                        "checkpoint is run/checkpoints/step-00000001; go on from there"));
  EXPECT_THAT(result.err, HasSubstr("lower optim.lr"));
  EXPECT_THAT(result.out, HasSubstr("loss nan"));
  EXPECT_THAT(result.out, testing::Not(HasSubstr("-nan"))) << "whatever the processor makes of it";

  const auto skipped = test::metrics_of(run(), "skipped");
  ASSERT_EQ(skipped.size(), 4u);
  for (size_t i = 0; i < skipped.size(); ++i) {
    EXPECT_EQ(keys_of(skipped[i]), documented_keys("skipped"));
    EXPECT_EQ(skipped[i].at("step"), i + 2);
    EXPECT_EQ(skipped[i].at("skipped"), i + 1);
    EXPECT_TRUE(skipped[i].at("loss").is_null()) << skipped[i];
    EXPECT_THAT(skipped[i].at("first_nonfinite").get<std::string>(),
                HasSubstr("matmul_forward wrote a non-finite value to block.0.up"));
  }
  // Steps that changed nothing are attempted steps all the same. The last of them has no line of
  // its own: the run ended in it.
  OptimConfig optim;
  optim.schedule = ScheduleKind::linear;
  optim.warmup_steps = 0;
  const auto train = test::metrics_of(run(), "train");
  ASSERT_EQ(train.size(), 4u);
  for (size_t i = 1; i < train.size(); ++i) {
    EXPECT_EQ(train[i].at("step"), i + 1);
    EXPECT_EQ(train[i].at("skipped"), i);
    EXPECT_FLOAT_EQ(train[i].at("lr").get<float>(),
                    static_cast<float>(learning_rate(optim, static_cast<int64_t>(i), 40)));
  }
  EXPECT_THAT(checkpoints_of(run()), ElementsAre("step-00000001"));
}

/// A run of one good step, with weights that make every later one overflow.
class PoisonedRun : public RunRecords {
 protected:
  void SetUp() override {
    RunRecords::SetUp();
    for (const char* steps : {"1", "2", "3"}) {
      ASSERT_EQ(gradus("train", with({std::string("train.steps=") + steps})).exit_code, 0);
    }
    ASSERT_NO_FATAL_FAILURE(poison_mlp(run()));
    before_ = tree_of(run() / "checkpoints");
  }
  static std::vector<std::string> with(std::vector<std::string> settings) {
    settings.insert(settings.end(), {"optim.schedule=constant", "optim.warmup_steps=0",
                                     "checkpoint.every=1", "checkpoint.keep=2"});
    return settings;
  }

  std::map<std::string, std::string> before_;
};

TEST_F(PoisonedRun, NothingIsSavedOrRotatedAndItsEndIsAnError) {
  const ProcessResult result = gradus("train", with({"train.steps=8"}));
  EXPECT_EQ(result.exit_code, 1) << result.text();
  EXPECT_TRUE(result.err.starts_with("gradus: numeric error: step 8, the last one, is not saved"))
      << result.err;
  EXPECT_THAT(result.err, HasSubstr("the last 5 steps changed nothing, so that the weights are "
                                    "those of step 3; its newest checkpoint is "
                                    "run/checkpoints/step-00000003; go on from there"));
  EXPECT_THAT(result.err, HasSubstr("; with more train.steps another step is the last"));
  EXPECT_THAT(result.out,
              HasSubstr("step 4 is not saved: the last step changed nothing; its newest"));
  EXPECT_THAT(result.out, Not(HasSubstr("done")));
  EXPECT_THAT(checkpoints_of(run()), ElementsAre("step-00000002", "step-00000003"));
  EXPECT_TRUE(tree_of(run() / "checkpoints") == before_);
}

TEST_F(PoisonedRun, StoppedItMakesTheStepsThatMayBeSkippedAndEndsWithTheOlderCheckpoint) {
  write_config();
  std::vector<std::string> arguments =
      with({"train", "config.yaml", "train.steps=1000000", "train.max_skipped_steps=1000"});
  test::GradusProcess process(folder(), arguments);
  process.run_until([&] { return test::metrics_of(run(), "skipped").size() >= 3; });
  process.send(SIGTERM);
  const ProcessResult result = process.wait();
  EXPECT_EQ(result.exit_code, 1) << result.text();
  EXPECT_THAT(result.out, HasSubstr("changed nothing, and is not saved: stopping after the next "
                                    "that is applied"));
  EXPECT_TRUE(
      result.err.ends_with("go on from there with a lower optim.lr, or from an earlier one "
                           "in another run.dir (checkpoint.resume: PATH)\n"))
      << result.err;
  EXPECT_THAT(result.err, HasSubstr("gradus: numeric error: 1000 steps in a row changed nothing"));
  EXPECT_THAT(result.err, HasSubstr("its newest checkpoint is run/checkpoints/step-00000003"));
  EXPECT_TRUE(tree_of(run() / "checkpoints") == before_);
}

TEST_F(RunRecords, ARunThatBlowsUpKeepsTheCheckpointsFromBefore) {
  const std::vector<std::string> settings = {"optim.lr=1000",           "optim.weight_decay=1e10",
                                             "optim.schedule=constant", "optim.warmup_steps=0",
                                             "checkpoint.every=1",      "checkpoint.keep=2",
                                             "train.steps=40"};
  const ProcessResult result = gradus("train", settings);
  EXPECT_EQ(result.exit_code, 1) << result.text();
  const auto skipped = test::metrics_of(run(), "skipped");
  ASSERT_FALSE(skipped.empty());
  const auto first = skipped.front().at("step").get<int64_t>();
  const std::vector<std::string> kept = checkpoints_of(run());
  ASSERT_FALSE(kept.empty());
  EXPECT_EQ(kept.back(), fmt::format("step-{:08}", first - 1)) << "that of the last good step";
  EXPECT_FALSE(std::regex_search(result.text(), std::regex("[0-9]{12}"))) << result.text();
}

// A folder that nothing happens to

TEST_F(RunRecords, NothingOfARunChangesUnlessAStepIsMade) {
  ASSERT_EQ(gradus("train", {"checkpoint.every=2"}).exit_code, 0);
  // What a killed save leaves, and lines of steps that a resumed run would make again.
  fs::create_directories(run() / "checkpoints" / ".step-00000009.partial-1");
  test::write_file(run() / "metrics.jsonl",
                   test::read_file(run() / "metrics.jsonl") + "{\"event\":\"train\",\"step\":9}\n");
  const auto before = tree_of(run());
  const auto unchanged = [&](const char* what) { EXPECT_TRUE(tree_of(run()) == before) << what; };
  const ProcessResult again = gradus("train", {"log.every=3"});
  EXPECT_EQ(again.exit_code, 0) << again.text();
  EXPECT_THAT(again.out, HasSubstr("already trained to step 6; raise train.steps to go on"));
  EXPECT_THAT(again.out, HasSubstr("generate run\n"));
  unchanged("nothing to do");
  const std::string longer = "train.steps=9";
  EXPECT_EQ(gradus("train", {longer, "model.layers=3"}).exit_code, 1);
  unchanged("another model");
  EXPECT_EQ(gradus("train", {longer, "checkpoint.resume=never"}).exit_code, 1);
  unchanged("starting afresh");
  EXPECT_EQ(gradus("train", {longer, "train.micro_batch=100000000", "train.global_batch=100000000",
                             "model.attention=plain"})
                .exit_code,
            1);
  unchanged("no memory");
  EXPECT_EQ(gradus("plan", {longer}).exit_code, 0);
  EXPECT_EQ(test::run_gradus(folder(), {"generate", "run", "--tokens", "2"}).exit_code, 0);
  unchanged("plan and generate");
  EXPECT_EQ(gradus("train", {longer}).exit_code, 0);
  EXPECT_FALSE(tree_of(run()) == before);
  EXPECT_FALSE(fs::exists(run() / "checkpoints" / ".step-00000009.partial-1"));
}

TEST_F(RunRecords, AFirstStepThatFailsLeavesTheFolderAsItWas) {
  ASSERT_EQ(gradus("train", {}).exit_code, 0);
  const auto before = tree_of(run());
  const fs::path shard = folder() / "data" / "train.bin";
  std::string bytes = test::read_file(shard);
  std::fill(bytes.begin() + 64, bytes.end(), '\xff');  // behind the header: ids of no token
  test::write_file(shard, bytes);
  const ProcessResult result = gradus("train", {"train.steps=9", "data.changed=allow"});
  EXPECT_EQ(result.exit_code, 1) << result.text();
  EXPECT_TRUE(tree_of(run()) == before);
}

// Where a run starts

TEST_F(RunRecords, TheSameCommandAgainGoesOnAndKeepsItsMetrics) {
  ASSERT_EQ(gradus("train", {"run.dir=a", "train.steps=4"}).exit_code, 0);
  const auto branch = [&](const char* steps) {
    return gradus("train", {"run.dir=b", "checkpoint.resume=a", "log.every=1",
                            std::string("train.steps=") + steps});
  };
  const auto steps_of = [&] {
    std::vector<int64_t> steps;
    for (const json& line : test::metrics_of(folder() / "b", "train"))
      steps.push_back(line.at("step").get<int64_t>());
    return steps;
  };
  // Nothing to do yet: no folder, and what can be generated from is where it started.
  const ProcessResult none = branch("4");
  EXPECT_EQ(none.exit_code, 0) << none.text();
  EXPECT_FALSE(fs::exists(folder() / "b"));
  EXPECT_THAT(none.out, HasSubstr("generate a/checkpoints/step-00000004\n"));
  const ProcessResult first = branch("6");
  EXPECT_EQ(first.exit_code, 0) << first.text();
  EXPECT_THAT(first.out, HasSubstr("going on from a/checkpoints/step-00000004 at step 4"));
  EXPECT_THAT(first.out, HasSubstr("generate b\n"));
  EXPECT_THAT(steps_of(), ElementsAre(5, 6));
  const ProcessResult second = branch("8");
  EXPECT_EQ(second.exit_code, 0) << second.text();
  EXPECT_THAT(second.out, HasSubstr("a is where a run starts, and b has checkpoints of its own"));
  EXPECT_THAT(second.out, HasSubstr("going on from b/checkpoints/step-00000006 at step 6"));
  EXPECT_THAT(steps_of(), ElementsAre(5, 6, 7, 8));
  EXPECT_THAT(checkpoints_of(folder() / "b"), ElementsAre("step-00000006", "step-00000008"));
}

TEST_F(RunRecords, OtherDataIsRefusedUnlessItIsAllowed) {
  ASSERT_EQ(gradus("train", {}).exit_code, 0);
  test::prepare_text(folder(), test::some_text(6000, 2), "bytes");  // as long, of other text
  const ProcessResult refused = gradus("train", {"train.steps=8"});
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.err, HasSubstr("gradus: checkpoint error: run/checkpoints/step-00000006 does "
                                     "not belong to this configuration"));
  EXPECT_THAT(refused.err, HasSubstr("data.train, shard 1: "));
  EXPECT_THAT(refused.err, HasSubstr("data.changed=allow"));
  const ProcessResult allowed = gradus("train", {"train.steps=8", "data.changed=allow"});
  EXPECT_EQ(allowed.exit_code, 0) << allowed.text();
  EXPECT_THAT(allowed.out, HasSubstr("changed since step-00000006: data.train, shard 1: "));
  // What is saved from now on is of the data that was read last.
  EXPECT_EQ(gradus("train", {"train.steps=9"}).exit_code, 0);
}

TEST_F(RunRecords, TheConfigurationOfACopiedFolderIsRefused) {
  ASSERT_EQ(gradus("train", {}).exit_code, 0);
  fs::copy(run(), folder() / "copy", fs::copy_options::recursive);
  const auto before = tree_of(run());
  const auto train = [&](const std::vector<std::string>& settings) {
    std::vector<std::string> arguments = {"train", "copy/config.yaml", "train.steps=8"};
    arguments.insert(arguments.end(), settings.begin(), settings.end());
    return test::run_gradus(folder(), arguments);
  };
  const ProcessResult refused = train({});
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.err, HasSubstr("copy/config.yaml is the record of the run in copy, and says "
                                     "run.dir: run"));
  const ProcessResult named = train({"run.dir=copy"});
  EXPECT_EQ(named.exit_code, 0) << named.text();
  EXPECT_TRUE(tree_of(run()) == before);
}

}  // namespace
}  // namespace gradus
