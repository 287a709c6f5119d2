// The command line as people mistype it: what is wrong is named, with what to write, and wrong
// usage ends with code 2.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "gradus_process.h"
#include "support/temp_dir.h"

namespace gradus {
namespace {

using test::ProcessResult;
using testing::HasSubstr;
using testing::MatchesRegex;
using Arguments = std::vector<std::string>;

class Usage : public testing::Test {
 protected:
  void SetUp() override {
    test::write_file(folder() / "config.yaml",
                     "run: {dir: run}\n"
                     "model: {layers: 1, channels: 16, heads: 2, context: 8}\n"
                     "data: {train: [data], tokenizer: char}\n"
                     "optim: {warmup_steps: 0}\n"
                     "train: {steps: 2, micro_batch: 2, global_batch: 2, precision: fp32}\n");
  }

  const std::filesystem::path& folder() const { return dir_.path(); }
  ProcessResult gradus(const Arguments& arguments) const {
    return test::run_gradus(folder(), arguments);
  }
  /// Refused with code 2 and, on standard error alone, each of the parts.
  void expect_wrong(const Arguments& arguments, const std::vector<std::string>& parts) const {
    const ProcessResult result = gradus(arguments);
    SCOPED_TRACE(fmt::format("gradus {}", fmt::join(arguments, " ")));
    EXPECT_EQ(result.exit_code, 2) << result.text();
    EXPECT_EQ(result.out, "");
    for (const std::string& part : parts) EXPECT_THAT(result.err, HasSubstr(part));
  }

 private:
  test::TempDir dir_;
};

TEST_F(Usage, WithoutACommandThereIsHelp) {
  expect_wrong({}, {"Usage: gradus", "train", "generate", "Exit codes: 0 done, 1 an error, 2"});
  expect_wrong({"data"}, {"Usage: gradus data", "prepare", "inspect"});
  expect_wrong({"bench"}, {"Usage: gradus bench", "step", "batches"});
}

TEST_F(Usage, HelpAndVersionAreCommandsToo) {
  const std::vector<Arguments> commands = {
      {}, {"train"}, {"data"}, {"data", "prepare"}, {"bench", "step"}};
  for (const Arguments& command : commands) {
    Arguments help = {"help"};
    help.insert(help.end(), command.begin(), command.end());
    Arguments option = command;
    option.emplace_back("--help");
    const ProcessResult result = gradus(help);
    EXPECT_EQ(result.exit_code, 0) << result.text();
    EXPECT_EQ(result.out, gradus(option).out);
    EXPECT_THAT(result.out, HasSubstr("Usage: gradus"));
  }
  expect_wrong({"help", "trian"}, {"gradus has no command trian: did you mean train?"});
  expect_wrong({"help", "data", "prepar"},
               {"gradus data has no command prepar: did you mean prepare?"});
  const ProcessResult version = gradus({"version"});
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_THAT(version.out,
              MatchesRegex("gradus [0-9]+\\.[0-9]+\\.[0-9]+( \\(commit [0-9a-f]+\\))?\n"));
  EXPECT_EQ(gradus({"--version"}).out, version.out);
}

TEST_F(Usage, UnknownCommandsAreNamedAtEveryLevel) {
  expect_wrong({"data", "inspeckt", "x"}, {"gradus data has no command inspeckt: did you mean "
                                           "inspect?",
                                           "commands: prepare, inspect"});
  expect_wrong({"bench", "setp"}, {"gradus bench has no command setp: did you mean step?"});
  expect_wrong({""}, {"gradus has no command"});
  expect_wrong({std::string(100000, 'x')}, {"gradus has no command xxx"});
}

TEST_F(Usage, NumbersOfOptionsAreReadStrictly) {
  const auto generate = [&](const std::string& option, const std::string& value,
                            const std::string& message) {
    expect_wrong({"generate", "run", option, value}, {message, "--help"});
  };
  generate("--seed", "-1", "--seed: found '-1', expected an integer >= 0");
  generate("--seed", "99999999999999999999",
           "--seed: found '99999999999999999999', expected an integer >= 0; it does not fit in 64");
  generate("--tokens", "-5", "--tokens: found '-5', expected an integer >= 0\n");
  generate("--tokens", "99999999999999999999", "it does not fit in 64 bits");
  generate("--tokens", "1e3", "write 1000, without fraction or exponent");
  generate("--tokens", "1_000", "write 1000, without underscores");
  generate("--top-k", "-1", "--top-k: found '-1', expected an integer >= 0");
  generate("--threads", "1025", "expected an integer >= 0 and <= 1024");
  generate("--top-p", "0", "--top-p: found '0', expected a number > 0 and <= 1");
  generate("--top-p", "1.5", "expected a number > 0 and <= 1");
  for (const char* value : {"nan", "inf", "-inf", "1e400", "", " 1", "1 ", "0x10", "1,5", "x"}) {
    generate("--temperature", value,
             fmt::format("--temperature: found '{}', expected a number >= 0", value));
    for (const char* option : {"--tokens", "--seed", "--top-k", "--threads"}) {
      generate(option, value,
               fmt::format("{}: found '{}', expected an integer >= 0", option, value));
    }
  }
  generate("--tokens", std::string(5000, '9'), "9…', expected");
  expect_wrong({"plan", "config.yaml", "--ranks", "0"},
               {"--ranks: found '0', expected an integer >= 1 and <= 2147483647"});
  expect_wrong({"plan", "config.yaml", "--ranks", "4294967297"}, {"<= 2147483647"});
  for (const char* option : {"--steps", "--warmup"}) {
    expect_wrong({"bench", "step", "config.yaml", option, "-1"},
                 {"found '-1', expected an integer"});
    expect_wrong({"bench", "step", "config.yaml", option, "9999999999999"}, {"<= 1000000000"});
  }
  expect_wrong({"data", "prepare", "x.txt", "--out", "o", "--val-fraction", "1"},
               {"--val-fraction: found '1', expected a number >= 0 and < 1"});
}

TEST_F(Usage, WordsOfOptionsNameTheNearest) {
  expect_wrong({"data", "prepare", "x.txt", "--out", "o", "--tokenizer", "byts"},
               {"--tokenizer: found 'byts', expected char or bytes; did you mean bytes?"});
  expect_wrong({"data", "prepare", "x.txt", "--out", "o", "--tokenizer", "bpe"},
               {"--tokenizer: found 'bpe', expected char or bytes"});
}

TEST_F(Usage, ATokenizerFileOfAnotherKindContradictsTheKind) {
  test::prepare_text(folder(), test::some_text(500), "bytes");
  const auto prepare = [&](const Arguments& options) {
    Arguments all = {"data",  "prepare",          "text.txt",           "--out",
                     "other", "--tokenizer-file", "data/tokenizer.json"};
    all.insert(all.end(), options.begin(), options.end());
    return all;
  };
  expect_wrong(prepare({"--tokenizer", "char"}),
               {"--tokenizer char contradicts --tokenizer-file data/tokenizer.json, which is of "
                "kind bytes: leave one out"});
  EXPECT_EQ(gradus(prepare({"--tokenizer", "bytes"})).exit_code, 0);
  EXPECT_EQ(gradus(prepare({})).exit_code, 0);
}

TEST_F(Usage, SettingsThatAreMistypedAreWrongUsage) {
  expect_wrong({"train", "config.yaml", "optim.lr", "=", "3e-4"},
               {"config error: 3 problems", "write optim.lr=VALUE, without spaces around the ="});
  expect_wrong({"train", "config.yaml", "optim.lr:3e-4"}, {"write optim.lr=3e-4"});
  expect_wrong({"train", "config.yaml", "--optim.lr=3e-4"},
               {"settings are written without dashes: optim.lr=3e-4"});
  expect_wrong({"plan", "config.yaml", "--optim.lr", "3e-4"},
               {"settings are written without dashes: optim.lr=VALUE"});
  expect_wrong({"train", "config.yaml", "eval.batches=4"},
               {"eval.batches: 4 is now eval.tokens: 64"});
}

TEST_F(Usage, ErrorsThatShowAfterLoadingSayWhereTheKeysWereSet) {
  test::prepare_text(folder(), test::some_text(500));
  const ProcessResult small = gradus({"train", "config.yaml", "model.vocab_size=3"});
  EXPECT_EQ(small.exit_code, 1);
  EXPECT_THAT(small.err, HasSubstr("model.vocab_size 3 is below the"));
  EXPECT_THAT(small.err, HasSubstr("\n  model.vocab_size: command line\n"));
  const ProcessResult kind = gradus({"train", "config.yaml", "data.tokenizer=bytes"});
  EXPECT_THAT(kind.err, HasSubstr("\n  data.tokenizer: command line\n"));
  const ProcessResult mesh =
      gradus({"plan", "config.yaml", "--ranks", "4", "parallel.tp=2", "parallel.dp=1"});
  EXPECT_EQ(mesh.exit_code, 1);
  EXPECT_THAT(mesh.err, HasSubstr("\n  parallel.tp: command line"));
  const ProcessResult batch = gradus({"plan", "config.yaml", "--ranks", "4"});
  EXPECT_EQ(batch.exit_code, 1);
  EXPECT_THAT(batch.err, HasSubstr("\n  train.global_batch: config.yaml:5\n"));
}

TEST_F(Usage, AVocabularyFarAboveTheTokenizersIsSaid) {
  test::prepare_text(folder(), test::some_text(500));
  const ProcessResult fitting = gradus({"train", "config.yaml", "model.vocab_size=128"});
  ASSERT_EQ(fitting.exit_code, 0) << fitting.text();
  EXPECT_THAT(fitting.text(), testing::Not(HasSubstr("vocab_size")));
  const std::string warning = "model.vocab_size 50257 is far above the ";
  EXPECT_THAT(gradus({"plan", "config.yaml", "model.vocab_size=50257"}).err, HasSubstr(warning));
  const ProcessResult large =
      gradus({"train", "config.yaml", "run.dir=large", "model.vocab_size=50257"});
  ASSERT_EQ(large.exit_code, 0) << large.text();
  EXPECT_THAT(large.text(), HasSubstr(warning));
  EXPECT_THAT(large.text(), HasSubstr("are trained for nothing; write auto, or "));
}

TEST_F(Usage, PlanAnswersForManyLayersAndRefusesSizesBeyond64Bits) {
  const ProcessResult deep =
      gradus({"plan", "config.yaml", "model.layers=10000", "model.vocab_size=100"});
  ASSERT_EQ(deep.exit_code, 0) << deep.text();
  EXPECT_THAT(deep.out, HasSubstr("parameters"));
  for (const char* key :
       {"model.layers", "model.channels", "model.context", "model.mlp_width", "model.vocab_size",
        "train.global_batch", "train.micro_batch", "parallel.dp", "parallel.tp", "parallel.pp"}) {
    const ProcessResult result =
        gradus({"plan", "config.yaml", key + std::string("=9223372036854775807"), "model.heads=1"});
    EXPECT_THAT(result.exit_code, testing::AnyOf(1, 2)) << result.text();
    EXPECT_THAT(result.err, HasSubstr("gradus: config error: "));
    EXPECT_THAT(result.err, HasSubstr(key));
  }
  const ProcessResult step =
      gradus({"plan", "config.yaml", "train.global_batch=1000000000000000000"});
  EXPECT_EQ(step.exit_code, 1);
  EXPECT_THAT(step.err, HasSubstr("train.global_batch: a step has about 8.0e+18 tokens: sizes "
                                  "above 1e+15 are not supported"));
}

}  // namespace
}  // namespace gradus
