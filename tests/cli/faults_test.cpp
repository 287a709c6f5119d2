// What goes wrong at a user's hands: every command ends with an exit code and a message that names
// the file or the key and says what to do.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <fstream>

#include "core/arena.h"
#include "gradus_process.h"
#include "metrics_lines.h"
#include "support/temp_dir.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;
using test::ProcessResult;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

constexpr const char* kConfig =
    "run: {dir: run}\n"
    "model: {layers: 1, channels: 16, heads: 2, context: 8}\n"
    "data: {train: [data], tokenizer: char}\n"
    "optim: {warmup_steps: 0}\n"
    "train: {steps: 4, micro_batch: 2, global_batch: 2, precision: fp32, threads: 1}\n"
    "checkpoint: {every: 2}\n"
    "eval: {every: 0}\n";

class Faults : public testing::Test {
 protected:
  void SetUp() override {
    test::prepare_text(folder(),
                       "To be, or not to be, that is the question.\n" + test::some_text(500));
    write("config.yaml", kConfig);
  }

  const fs::path& folder() const { return dir_.path(); }
  fs::path write(const std::string& name, const std::string& text) const {
    return test::write_file(folder() / name, text);
  }
  ProcessResult gradus(const std::vector<std::string>& arguments) const {
    return test::run_gradus(folder(), arguments);
  }
  ProcessResult train(std::vector<std::string> settings = {}) const {
    settings.insert(settings.begin(), {"train", "config.yaml"});
    return gradus(settings);
  }
  fs::path checkpoint(int64_t step) const {
    return folder() / "run/checkpoints" / fmt::format("step-{:08}", step);
  }

 private:
  test::TempDir dir_;
};

/// Ended with this code and one message of this kind, on standard error, that has all these parts.
void expect_error(const ProcessResult& result, const std::string& kind,
                  const std::vector<std::string>& parts, int exit_code = 1) {
  EXPECT_EQ(result.exit_code, exit_code) << "signal " << result.signal << "\n" << result.text();
  EXPECT_TRUE(result.err.starts_with("gradus: " + kind + ": ")) << result.err;
  for (const std::string& part : parts) EXPECT_THAT(result.err, HasSubstr(part));
  EXPECT_THAT(result.out, Not(HasSubstr("error"))) << "said once, and on standard error";
}

// Configuration

TEST_F(Faults, EveryProblemOfAConfigurationIsReportedAtOnce) {
  write("config.yaml",
        "run: {dir: run}\n"
        "model:\n"
        "  layers: 1\n"
        "  chanels: 16\n"
        "  heads: many\n"
        "  context: -8\n"
        "data: {train: [data]}\n"
        "train: {steps: 4, micro_batch: 2, global_batch: 3}\n");
  const ProcessResult result = train({"optim.warmup_steps=9"});
  expect_error(result, "config error",
               {"5 problems", "config.yaml:4: model.chanels", "model.channels",
                "config.yaml:5: model.heads", "config.yaml:6: model.context", "config.yaml:8",
                "global_batch 3 is not a multiple of micro_batch 2", "command line",
                "warmup_steps 9 exceed the run's 4 steps"});
  EXPECT_FALSE(fs::exists(folder() / "run"));
}

TEST_F(Faults, AWrongSettingOfTheCommandLineIsNamedAsSuch) {
  expect_error(train({"train.step=3"}), "config error", {"command line: train.step", "train.steps"},
               2);
  expect_error(train({"steps"}), "config error", {"command line", "steps"}, 2);
  expect_error(gradus({"train", "absent.yaml"}), "config error", {"absent.yaml", "does not exist"});
  expect_error(gradus({"plan", "absent.yaml"}), "config error", {"absent.yaml", "does not exist"});
  write("broken.yaml", "model: {layers: 1\n");
  expect_error(gradus({"train", "broken.yaml"}), "config error", {"broken.yaml:"});
}

// Text and shards

TEST_F(Faults, TextThatCannotBePreparedIsRefusedByName) {
  const auto prepare = [&](const std::string& file, const std::string& tokenizer = "char") {
    return gradus({"data", "prepare", "--tokenizer", tokenizer, "--out", "other", file});
  };
  write("empty.txt", "");
  expect_error(prepare("empty.txt"), "data error", {"empty.txt", "empty"});
  write("latin1.txt", "first line\nna\xefve\n");
  expect_error(prepare("latin1.txt"), "data error", {"latin1.txt:2", "UTF-8"});
  expect_error(prepare("latin1.txt", "bytes"), "data error", {"latin1.txt:2", "UTF-8"});
  expect_error(prepare("absent.txt"), "i/o error", {"absent.txt", "No such file"});
  EXPECT_FALSE(fs::exists(folder() / "other"));
}

TEST_F(Faults, TextShorterThanAContextIsRefused) {
  expect_error(train({"model.context=1000"}), "data error",
               {"train.bin", "context 1000", "model.context"});
  // Long enough to train on, and too short to evaluate on.
  expect_error(train({"model.context=100", "eval.every=2", "data.val=[data]"}), "data error",
               {"val.bin", "context 100"});
}

TEST_F(Faults, MissingDataIsNamed) {
  const std::string advice = "gradus data prepare --out elsewhere";
  expect_error(train({"data.train=[elsewhere]"}), "data error", {"data.train: elsewhere", advice});
  expect_error(gradus({"plan", "config.yaml", "data.train=[elsewhere]"}), "data error",
               {"data.train: elsewhere", advice});
  expect_error(train({"data.val=[elsewhere]", "eval.every=2"}), "data error",
               {"data.val: elsewhere", advice});
  for (const std::string command : {"train", "plan"}) {
    expect_error(gradus({command, "config.yaml", "data.train=[text.txt]"}), "data error",
                 {"data.train: text.txt is not a prepared folder",
                  "gradus data prepare --out text text.txt", "data.train=[text]"});
  }
  expect_error(train({"data.val=[config.yaml]", "eval.every=2"}), "data error",
               {"data.val: config.yaml is not a prepared folder"});
  fs::create_directory(folder() / "folder");
  expect_error(train({"data.train=[folder]"}), "data error",
               {"folder: the folder has no train.bin", "gradus data prepare --out folder FILE"});
  fs::remove(folder() / "data/tokenizer.json");
  expect_error(train(), "i/o error", {"data/tokenizer.json"});
}

TEST_F(Faults, ATokenOutsideTheVocabularyIsNamed) {
  const fs::path shard = folder() / "data/train.bin";
  std::string bytes = test::read_file(shard);
  constexpr size_t kHeaderBytes = 64;
  std::fill(bytes.begin() + kHeaderBytes, bytes.end(), '\x7f');
  test::write_file(shard, bytes);
  expect_error(train(), "data error",
               {"train.bin", "token id 32639", "position ", "is not below the vocabulary of "});
  expect_error(gradus({"data", "inspect", "data"}), "data error", {"train.bin", "32639"});
}

TEST_F(Faults, DataOfAnotherTokenizerIsRefused) {
  expect_error(train({"data.tokenizer=bytes"}), "config error",
               {"data.tokenizer is bytes", "data was prepared with char"});
  expect_error(train({"model.vocab_size=5"}), "config error", {"model.vocab_size 5", "at least"});
}

// The run's folder and memory

TEST_F(Faults, ARunFolderThatCannotBeMadeIsNamed) {
  write("file", "");
  expect_error(train({"run.dir=file/run"}), "i/o error", {"run.dir file/run"});
  expect_error(train({"run.dir=file"}), "i/o error", {"run.dir file"});
}

TEST_F(Faults, AModelThatDoesNotFitIsRefusedWithItsTableBeforeAnythingIsAllocated) {
  const ProcessResult result = train({"model.channels=262144", "model.layers=4"});
  expect_error(result, "memory error",
               {"the run needs ", " are available", "train.recompute: selective", "lifetime",
                "block.*.adam_m", "arena"});
  EXPECT_LT(result.peak_bytes, int64_t{512} << 20);
  const ProcessResult planned =
      gradus({"plan", "config.yaml", "model.channels=262144", "model.layers=4"});
  EXPECT_EQ(planned.exit_code, 0) << planned.text();
  EXPECT_THAT(planned.out, AllOf(HasSubstr("block.*.adam_m"), HasSubstr("memory available")));
}

// Checkpoints

TEST_F(Faults, AnotherModelsCheckpointIsRefusedWithEveryDifference) {
  ASSERT_EQ(train().exit_code, 0);
  const std::string before = test::read_file(folder() / "run/config.yaml");
  expect_error(train({"model.channels=32", "train.precision=bf16", "train.steps=8"}),
               "checkpoint error",
               {"step-00000004", "model.channels: 16 -> 32", "train.precision: fp32 -> bf16",
                "another run.dir"});
  EXPECT_EQ(test::read_file(folder() / "run/config.yaml"), before);

  test::write_file(folder() / "text.txt",
                   "Entirely different text, 0123456789.\n" + test::some_text(800));
  ASSERT_EQ(gradus({"data", "prepare", "--out", "data", "text.txt"}).exit_code, 0);
  expect_error(train({"train.steps=8"}), "checkpoint error",
               {"step-00000004", "another tokenizer", "another run.dir"});
}

TEST_F(Faults, ADamagedNewestCheckpointIsPassedOverWithAWarning) {
  const ProcessResult whole = train();
  ASSERT_EQ(whole.exit_code, 0) << whole.text();
  const std::string expected = test::read_file(checkpoint(4) / "model.safetensors");
  std::string torn = expected;
  torn[torn.size() / 2] = static_cast<char>(torn[torn.size() / 2] ^ 1);
  test::write_file(checkpoint(4) / "model.safetensors", torn);

  const ProcessResult generated = gradus({"generate", "run", "--tokens", "3"});
  EXPECT_EQ(generated.exit_code, 0) << generated.text();
  EXPECT_THAT(generated.err, AllOf(HasSubstr("warning: not used: "), HasSubstr("step-00000004"),
                                   HasSubstr("model.safetensors")));

  const ProcessResult result = train();
  EXPECT_EQ(result.exit_code, 0) << result.text();
  EXPECT_THAT(result.out, AllOf(HasSubstr("not used: "), HasSubstr("model.safetensors"),
                                HasSubstr("going on from run/checkpoints/step-00000002")));
  EXPECT_TRUE(test::read_file(checkpoint(4) / "model.safetensors") == expected);

  for (const int64_t step : {2, 4}) {
    test::write_file(checkpoint(step) / "manifest.json", "{}");
  }
  expect_error(train(), "checkpoint error",
               {"run/checkpoints", "none of its 2 checkpoints is whole", "step-00000002",
                "step-00000004", "start afresh in another folder"});
}

TEST_F(Faults, StartingAfreshBesideCheckpointsIsRefused) {
  ASSERT_EQ(train().exit_code, 0);
  expect_error(train({"checkpoint.resume=never"}), "config error",
               {"checkpoint.resume is never", "run already holds checkpoints", "another run.dir"});
}

TEST_F(Faults, ACheckpointToResumeThatIsNotThereIsNamed) {
  expect_error(train({"checkpoint.resume=elsewhere/checkpoints"}), "checkpoint error",
               {"elsewhere/checkpoints: there is no such folder"});
  fs::create_directories(folder() / "hollow");
  expect_error(train({"checkpoint.resume=hollow"}), "checkpoint error",
               {"hollow: holds no checkpoint"});
  EXPECT_FALSE(fs::exists(folder() / "run"));
}

TEST_F(Faults, ARunGoesOnFromAnotherRunsCheckpointByPath) {
  ASSERT_EQ(train().exit_code, 0);
  const ProcessResult branch =
      train({"run.dir=branch", "checkpoint.resume=run/checkpoints/step-00000002"});
  EXPECT_EQ(branch.exit_code, 0) << branch.text();
  EXPECT_THAT(branch.out, HasSubstr("going on from run/checkpoints/step-00000002 at step 2"));
  EXPECT_TRUE(test::read_file(checkpoint(4) / "model.safetensors") ==
              test::read_file(folder() / "branch/checkpoints/step-00000004/model.safetensors"));
  EXPECT_EQ(test::metrics_of(folder() / "branch", "train").size(), 1u);
}

TEST_F(Faults, GenerateSaysWhatItCannotUse) {
  expect_error(gradus({"generate", "run"}), "checkpoint error",
               {"run: there is no such folder", "give a run's folder"});
  fs::create_directories(folder() / "run");
  expect_error(gradus({"generate", "run"}), "checkpoint error", {"run: holds no checkpoint"});
  expect_error(gradus({"generate", "config.yaml"}), "checkpoint error", {"config.yaml", "folder"});
  ASSERT_EQ(train().exit_code, 0);
  expect_error(gradus({"generate", "run", "--prompt", "to be \xe2\x82\xac"}), "data error",
               {"prompt", "\xe2\x82\xac"});
  expect_error(gradus({"generate", "run", "--prompt", "to \xff"}), "data error",
               {"prompt", "UTF-8"});
  EXPECT_EQ(gradus({"generate", "run", "--prompt", "to be \xe2\x82\xac"}).out, "")
      << "nothing is printed before";
}

TEST_F(Faults, GenerateDrawsTheSameTextForTheSameSeed) {
  ASSERT_EQ(train().exit_code, 0);
  const auto text = [&](const std::string& seed) {
    const ProcessResult result =
        gradus({"generate", "run", "--prompt", "To be", "--tokens", "40", "--seed", seed});
    EXPECT_EQ(result.exit_code, 0) << result.text();
    return result.out;
  };
  const std::string first = text("1");
  EXPECT_TRUE(first.starts_with("To be"));
  EXPECT_EQ(first.size(), std::string("To be").size() + 40 + 1);  // ASCII, and a line's end
  EXPECT_EQ(first, text("1"));
  EXPECT_NE(first, text("2"));
}

// Usage

TEST_F(Faults, WrongUsageExitsWithTwoAndSaysWhatIsExpected) {
  const std::vector<std::vector<std::string>> wrong = {
      {},
      {"trian"},
      {"train"},
      {"train", "config.yaml", "--steps", "3"},
      {"plan"},
      {"verify"},
      {"data"},
      {"data", "prepare", "text.txt"},
      {"data", "inspect"},
      {"generate"},
      {"generate", "run", "--tokens", "many"},
      {"bench"},
      {"info", "everything"},
  };
  for (const auto& arguments : wrong) {
    const ProcessResult result = gradus(arguments);
    EXPECT_EQ(result.exit_code, 2) << fmt::format("{}", fmt::join(arguments, " ")) << "\n"
                                   << result.text();
    EXPECT_THAT(result.err, HasSubstr("--help")) << fmt::format("{}", fmt::join(arguments, " "));
    EXPECT_EQ(result.out, "");
  }
}

TEST_F(Faults, EveryCommandHasHelp) {
  const std::vector<std::vector<std::string>> commands = {
      {},
      {"train"},
      {"plan"},
      {"verify"},
      {"generate"},
      {"data"},
      {"data", "prepare"},
      {"data", "inspect"},
      {"bench"},
      {"bench", "step"},
      {"bench", "batches"},
      {"info"},
  };
  for (std::vector<std::string> arguments : commands) {
    arguments.emplace_back("--help");
    const ProcessResult result = gradus(arguments);
    EXPECT_EQ(result.exit_code, 0) << result.text();
    EXPECT_THAT(result.out, HasSubstr("Usage: gradus"));
    // Newer releases of CLI11 than the one that is here may refuse names with '='.
    EXPECT_THAT(result.out, testing::Not(testing::ContainsRegex("Usage: [^\n]*=")));
    EXPECT_EQ(result.err, "");
  }
  // Nothing that help lists is missing above.
  const std::string top = gradus({"--help"}).out;
  std::vector<std::string> listed;
  for (size_t at = top.find("Subcommands:"); at != std::string::npos;) {
    at = top.find("\n  ", at);
    if (at == std::string::npos) break;
    at += 3;
    if (std::isalpha(static_cast<unsigned char>(top[at])) != 0) {
      listed.push_back(top.substr(at, top.find(' ', at) - at));
    }
  }
  EXPECT_THAT(listed, testing::UnorderedElementsAre("train", "plan", "verify", "generate", "data",
                                                    "bench", "info", "help", "version"));
}

TEST_F(Faults, TheHelpOfEveryCommandOnAConfigurationNamesItsSettings) {
  const std::vector<std::vector<std::string>> commands = {
      {"train"}, {"plan"}, {"verify"}, {"bench", "step"}, {"bench", "batches"}};
  for (std::vector<std::string> arguments : commands) {
    arguments.emplace_back("--help");
    EXPECT_THAT(gradus(arguments).out, testing::ContainsRegex("SETTINGS key=value"));
  }
}

TEST_F(Faults, ACommandThatDoesNotExistGetsTheNearestOne) {
  const ProcessResult near = gradus({"trian", "config.yaml"});
  EXPECT_EQ(near.exit_code, 2);
  EXPECT_THAT(near.err, HasSubstr("gradus has no command trian: did you mean train?"));
  const ProcessResult far = gradus({"config.yaml"});
  EXPECT_EQ(far.exit_code, 2);
  EXPECT_THAT(far.err, HasSubstr("gradus has no command config.yaml\n"));
  EXPECT_THAT(far.err, HasSubstr("commands: train, plan, verify, generate, data, bench, info"));
}

TEST_F(Faults, InfoNamesTheMachine) {
  const ProcessResult result = gradus({"info"});
  EXPECT_EQ(result.exit_code, 0) << result.text();
  for (const char* line : {"processor", "vectors", "matmul fp32", "matmul bf16", "memory"}) {
    EXPECT_THAT(result.out, HasSubstr(line));
  }
#ifndef __SANITIZE_ADDRESS__  // whose shadow memory alone is beyond any such limit
  const ProcessResult limited =
      test::GradusProcess::shell(
          folder(),
          fmt::format("/bin/sh -c 'ulimit -v 1000000; exec {} info'", test::gradus_binary()))
          .wait();
  EXPECT_THAT(limited.out, HasSubstr(" available, by the limit of address space (ulimit -v)\n"));
#endif
}

}  // namespace
}  // namespace gradus
