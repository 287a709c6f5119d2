// What a run writes down: its metrics, what it says of its memory, and the steps it left out.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
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
using testing::HasSubstr;

class RunRecords : public testing::Test {
 protected:
  void SetUp() override { test::prepare_text(folder(), test::some_text(6000), "bytes"); }

  const fs::path& folder() const { return dir_.path(); }
  fs::path run() const { return folder() / "run"; }
  ProcessResult gradus(const std::string& command, const std::vector<std::string>& settings) const {
    test::write_file(folder() / "config.yaml",
                     "run: {dir: run}\n"
                     "model: {layers: 2, channels: 24, heads: 3, context: 16}\n"
                     "data: {train: [data], tokenizer: bytes}\n"
                     "optim: {warmup_steps: 2}\n"
                     "train: {steps: 6, micro_batch: 3, global_batch: 6, precision: fp32}\n"
                     "eval: {every: 4, tokens: 90}\n"
                     "log: {every: 1}\n");
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
  EXPECT_THAT(order, testing::ElementsAre("train 1", "train 2", "train 3", "train 4", "eval 4",
                                          "train 5", "train 6", "eval 6"));
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
  EXPECT_THAT(result.err, HasSubstr("The weights are those of step 1"));
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
  // And no byte of weights or moments moved.
  const fs::path checkpoints = run() / "checkpoints";
  for (const char* name : {"model.safetensors", "optimizer.safetensors"}) {
    const std::string after_first = test::read_file(checkpoints / "step-00000001" / name);
    for (const char* step : {"step-00000002", "step-00000003", "step-00000004"}) {
      EXPECT_TRUE(test::read_file(checkpoints / step / name) == after_first) << step << name;
    }
  }
}

}  // namespace
}  // namespace gradus
