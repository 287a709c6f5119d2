// Files that are no configurations, or are made to harm: each gets a message with its place.

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <random>
#include <string>

#include "config_files.h"
#include "train/config_problems.h"
#include "train/config_text.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;

std::string repeated(const std::string& text, int count) {
  std::string out;
  for (int i = 0; i < count; ++i) out += text;
  return out;
}

class HostileConfig : public ConfigTest {};

TEST_F(HostileConfig, OnlyRegularFilesAreRead) {
  const std::string pipe = (dir_ / "pipe").string();
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  fs::create_directory(dir_ / "folder");
  fs::create_symlink("/dev/zero", dir_ / "zeros");
  fs::create_symlink("nowhere", dir_ / "dangling");
  fs::create_symlink("loop", dir_ / "loop");
  write("below.yaml", "seed: 1\n");
  for (const auto& [name, reason] : std::vector<std::pair<std::string, std::string>>{
           {"pipe", "it is a pipe, expected a regular file"},
           {"folder", "it is a folder, expected a regular file"},
           {"zeros", "it is a device, expected a regular file"},
           {"dangling", "it does not exist"},
           {"loop", "Too many levels of symbolic links"},
           {"below.yaml/file", "Not a directory"},
           {std::string(5000, 'x'), "File name too long"}}) {
    EXPECT_THAT(problems("seed: 1\nbase: " + name + "\n"),
                ElementsAre(testing::AllOf(testing::StartsWith("DIR/c.yaml:2: base: cannot read"),
                                           HasSubstr(reason.substr(0, 40)))))
        << name;
    if (name.size() > 100) continue;
    EXPECT_THAT(problems_of(dir_ / name),
                ElementsAre("DIR/" + name + ": cannot read the file DIR/" + name + ": " + reason));
  }
  EXPECT_THAT(problems("base: /dev/zero\n"), ElementsAre(HasSubstr("it is a device")));
  EXPECT_THAT(problems("base: /dev/tty\n"), SizeIs(1));
}

TEST_F(HostileConfig, AFileLargerThanAnyConfigurationIsNotRead) {
  std::string comment = "seed: 7\n#";
  comment.resize(kMostConfigBytes, '#');
  EXPECT_EQ(load(comment).seed, 7);
  const std::string larger =
      "DIR/c.yaml: cannot read the file DIR/c.yaml: it is larger than 1048576 bytes, which no "
      "configuration is";
  EXPECT_THAT(problems(comment + "#"), ElementsAre(larger));
  fs::resize_file(dir_ / "c.yaml", uintmax_t{1} << 40);
  EXPECT_THAT(problems_of(dir_ / "c.yaml"), ElementsAre(larger));
}

TEST_F(HostileConfig, BasesEndSomewhere) {
  for (int i = 0; i < 40; ++i) {
    write(fmt::format("{}.yaml", i), fmt::format("base: {}.yaml\n", i + 1));
  }
  write("40.yaml", "seed: 3\n");
  EXPECT_EQ(load("base: 26.yaml\n").seed, 3);
  EXPECT_THAT(problems("base: 0.yaml\n"),
              ElementsAre("DIR/14.yaml:1: base: more than 16 files inherit from each other"));
  // The same file by another name each time.
  fs::create_directory(dir_ / "d");
  EXPECT_THAT(problems("base: d/../c.yaml\n"),
              ElementsAre("DIR/c.yaml:1: base: files inherit in a circle: c.yaml -> c.yaml"));
}

TEST_F(HostileConfig, CharactersThatAreNoTextAreNamedByLine) {
  using namespace std::string_literals;
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"seed: 1\nrun: {dir: \"a\0b\"}\n"s, "2: control character 0x00: remove it"},
      {"seed: 1\n\n# na\xefve\n", "3: byte 0xef is not UTF-8: save the text as UTF-8"},
      {"\xff\xfes\0e\0"s, "1: the text is UTF-16: save it as UTF-8"},
      {"seed: 1 # \x1b[31m\n", "1: control character 0x1b: remove it"},
      {"run: {dir: \"\xed\xa0\x80\"}\n", "1: byte 0xed is not UTF-8: save the text as UTF-8"},
      {"run:\n  dir: x\xc3", "2: byte 0xc3 is not UTF-8: save the text as UTF-8"},
      // What YAML writes as an escape reaches the value alone.
      {"run: {dir: \"a\\0b\"}\n",
       "1: run.dir: found 'a\\x00b', expected text, not empty; it has a NUL, at which a path would "
       "end"},
  };
  for (const auto& [text, problem] : cases) {
    EXPECT_THAT(problems(text), ElementsAre("DIR/c.yaml:" + problem));
  }
}

TEST_F(HostileConfig, ByteOrderMarksAndForeignLineEndsAreRead) {
  EXPECT_EQ(load("\xef\xbb\xbfseed: 3\n").seed, 3);
  EXPECT_EQ(load("seed: 3\r\nmodel:\r\n  layers: 2\r\n").model.layers, 2);
  EXPECT_THAT(
      problems("seed: 3\r\nmodel:\r\n  layers: x\r\n"),
      ElementsAre("DIR/c.yaml:3: model.layers: found 'x', expected an integer >= 1 and <= 100000"));
  EXPECT_EQ(load("seed: 3").seed, 3);
}

TEST_F(HostileConfig, TabsThatIndentAreNamed) {
  EXPECT_THAT(problems("model:\n\tlayers: 2\n"),
              ElementsAre(HasSubstr("YAML is indented by spaces, not by tabs")));
  EXPECT_EQ(load("seed:\t3\t# a tab\n").seed, 3);
}

TEST_F(HostileConfig, NestingIsBounded) {
  constexpr int kMany = 200000;
  const std::string deep = "lists and sections are nested more than 32 deep";
  for (const std::string& text :
       {repeated("[", kMany), repeated("{a: ", kMany), repeated("- ", kMany), repeated("? ", kMany),
        "data: {train: " + repeated("[", kMany) + repeated("]", kMany) + "}",
        repeated("[", 33) + repeated("]", 33)}) {
    EXPECT_THAT(problems(text), ElementsAre(HasSubstr(deep))) << text.substr(0, 20);
  }
  const std::string setting = "data.train=" + repeated("[", 60000);
  EXPECT_THAT(problems("", {setting}), ElementsAre(HasSubstr(deep)));
  EXPECT_THAT(problems("", {repeated("a.", 60000) + "a=1"}), ElementsAre(HasSubstr("unknown key")));
}

TEST_F(HostileConfig, AliasesDoNotMultiply) {
  std::string laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 30; ++i) {
    const std::string alias = fmt::format("*a{}", i - 1);
    laughs += fmt::format("a{}: &a{} [{}{}]\n", i, i, alias, repeated(", " + alias, 9));
  }
  EXPECT_THAT(problems(laughs), SizeIs(30));
  EXPECT_THAT(problems(laughs + "data: {train: *a29}\n"), SizeIs(31));
  EXPECT_THAT(problems("data: &d {train: [*d]}\n"), SizeIs(1));
  EXPECT_THAT(problems("model: &m {layers: *m}\n"), SizeIs(1));
  EXPECT_THAT(problems("seed: *nothing\n"), ElementsAre(HasSubstr("DIR/c.yaml:1: not valid YAML")));
  EXPECT_EQ(load("seed: &s 5\ntrain: {steps: *s}\noptim: {warmup_steps: 0}\n").train.steps, 5);
}

TEST_F(HostileConfig, LongTextIsCutInMessages) {
  const std::string key(500000, 'k');
  const Lines unknown = problems("? " + key + "\n: 1\n");
  ASSERT_THAT(unknown, SizeIs(1));
  EXPECT_LT(unknown[0].size(), 400u) << "the key is not shown whole";
  EXPECT_THAT(unknown[0], HasSubstr("kkk…: unknown key; expected one of"));
  for (const Lines& lines :
       {problems("seed: " + key + "\n"), problems("", {"seed=" + key}), problems("", {key}),
        problems("", {"seed=[" + key}), problems("seed: *" + key + "\n")}) {
    ASSERT_THAT(lines, SizeIs(1));
    EXPECT_LT(lines[0].size(), 2200u);
  }
}

TEST_F(HostileConfig, OnlyTheFirstProblemsAreListed) {
  std::string text;
  for (int i = 0; i < 20000; ++i) text += fmt::format("k{}: 1\n", i);
  write("c.yaml", text);
  try {
    load_config(dir_ / "c.yaml");
    FAIL() << "unknown keys were taken";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), testing::StartsWith("20000 problems in the configuration\n"));
    EXPECT_THAT(error.what(), testing::EndsWith("\n  and 19950 more"));
    EXPECT_LT(std::string(error.what()).size(), 20000u);
  }
}

TEST_F(HostileConfig, WhateverTheBytesItLoadsOrSaysWhyNot) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  const std::string model = to_yaml(Config{});
  const std::string pieces = "{}[]:,-?&*!|>'\"%@`#\n\t \\0x.e~<=";
  for (int round = 0; round < 400; ++round) {
    std::string text = model;
    for (int edits = 1 + static_cast<int>(random() % 8); edits > 0; --edits) {
      const size_t at = random() % text.size();
      switch (random() % 3) {
        case 0:
          text[at] = pieces[random() % pieces.size()];
          break;
        case 1:
          text.insert(at, 1, pieces[random() % pieces.size()]);
          break;
        default:
          text.erase(at, 1 + random() % 20);
          if (text.empty()) text = "x";
      }
    }
    try {
      load(text);
    } catch (const ConfigError& error) {
      EXPECT_THAT(error.what(), HasSubstr("c.yaml")) << text;
    }
  }
}

TEST_F(HostileConfig, WhatAShellWouldReplaceIsRefused) {
  const std::string why = ": ~ and variables are not replaced here; write the path out";
  for (const char* path : {"~/runs", "/scratch/$USER/run", "${HOME}/run", "$(pwd)/run"}) {
    const std::string text = fmt::format("run: {{dir: '{}'}}\n", path);
    EXPECT_THAT(problems(text),
                ElementsAre(fmt::format("DIR/c.yaml:1: run.dir: found '{}'{}", path, why)));
    EXPECT_EQ(load_saved_config(text, "saved").run.dir, path);
    EXPECT_THAT(problems("", {fmt::format("data.val=[a, '{}']", path)}),
                ElementsAre(fmt::format("command line: data.val: found '{}'{}", path, why)));
  }
  for (const char* path : {"a~b", "~", "5$", "a$1"}) {
    EXPECT_EQ(load(fmt::format("run: {{dir: '{}'}}\n", path)).run.dir, path);
  }
}

// Settings of the command line

TEST_F(HostileConfig, SettingsThatAreWrittenAsElsewhereGetAHint) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"optim.lr", "expected section.key=VALUE; write optim.lr=VALUE, without spaces around the ="},
      {"=", "expected section.key=VALUE; write no spaces around the ="},
      {"=3e-4", "expected section.key=VALUE; write no spaces around the ="},
      {"optim.lr:3e-4", "expected section.key=VALUE; write optim.lr=3e-4"},
      {"optim.lr: 3e-4", "expected section.key=VALUE; write optim.lr=3e-4"},
      {"optim.lr:", "expected section.key=VALUE; write optim.lr=VALUE"},
      {"other.yaml",
       "expected section.key=VALUE; one configuration inherits another by its key base"},
      {"b]", "expected section.key=VALUE; a list with spaces needs quotes in a shell"},
      {"3e-4", "found '3e-4', expected section.key=VALUE"},
  };
  for (const auto& [setting, hint] : cases) {
    EXPECT_THAT(problems("", {setting}), ElementsAre(testing::EndsWith(hint))) << setting;
  }
  EXPECT_THAT(problems("", {"data.train=[a,"}),
              ElementsAre(testing::EndsWith("a list with spaces needs quotes in a shell")));
  EXPECT_THAT(problems("", {"optim.lr="}),
              ElementsAre("command line: optim.lr: found nothing, expected a number > 0 and <= "
                          "1000; is a variable of the shell empty?"));
}

TEST_F(HostileConfig, ProblemsOfTheCommandLineAloneAreWrongUsage) {
  const fs::path file = write("c.yaml", "seed: 1\n");
  const fs::path wrong = write("wrong.yaml", "sead: 1\n");
  EXPECT_THROW(load_config(file, Lines{"seed=x"}), UsageError);
  EXPECT_THROW(load_config(file, Lines{"seed"}), UsageError);
  try {
    load_config(wrong, Lines{"seed=x"});
    FAIL();
  } catch (const UsageError&) {
    FAIL() << "the file is wrong, too";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), testing::StartsWith("2 problems in the configuration"));
  }
}

}  // namespace
}  // namespace gradus
