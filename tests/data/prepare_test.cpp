#include "data/prepare.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/folder_lock.h"
#include "data/dataset.h"
#include "data/inspect.h"
#include "data/loader.h"
#include "data/tokenizer.h"
#include "support/temp_dir.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;
using testing::UnorderedElementsAre;

std::string shard_text(const fs::path& folder, Split split) {
  const TokenShard shard(shard_path(folder, split));
  std::vector<int32_t> tokens(static_cast<size_t>(shard.token_count()));
  shard.copy(0, tokens);
  return load_dataset_tokenizer(folder)->decode(tokens);
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  return names;
}

class PrepareTest : public testing::Test {
 protected:
  fs::path text(std::string_view name, std::string_view bytes) const {
    return test::write_file(dir_ / name, bytes);
  }

  test::TempDir dir_;
  fs::path out_ = dir_ / "out/corpus";  // neither folder exists yet
};

TEST_F(PrepareTest, JoinsFilesAndSplitsOffTheEndByCharacters) {
  // 10 characters with 1, 2, 3 and 4 bytes, over two files; the cut at 7 lies in the second.
  const std::string first = "ab\xC3\xA9\xE2\x82\xAC";
  const std::string second =
      "c\xF0\x9F\x98\x80\xC3\xA9\n\xE2\x82\xAC"
      "d";
  for (const std::string kind : {"char", "bytes"}) {
    const PrepareResult result = prepare({.inputs = {text("1", first), text("2", second)},
                                          .out_dir = out_,
                                          .tokenizer = kind,
                                          .val_fraction = 0.3});
    EXPECT_EQ(shard_text(out_, Split::kTrain), first + "c\xF0\x9F\x98\x80\xC3\xA9") << kind;
    EXPECT_EQ(shard_text(out_, Split::kVal),
              "\n\xE2\x82\xAC"
              "d")
        << kind;
    EXPECT_EQ(result.tokenizer, kind);
    EXPECT_EQ(result.characters, 10);
    EXPECT_EQ(result.bytes, static_cast<int64_t>(first.size() + second.size()));
    EXPECT_EQ(result.train_tokens, kind == "char" ? 7 : 14);
    EXPECT_EQ(result.val_tokens, kind == "char" ? 3 : 5);
    EXPECT_EQ(result.vocab_size, kind == "char" ? 8 : 256);
    EXPECT_EQ(result.tokenizer_hash, load_dataset_tokenizer(out_)->hash());
    EXPECT_EQ(result.token_type, TokenType::kU16);
  }
}

TEST_F(PrepareTest, DefaultSplitIsNanoGptsNineTenths) {
  const PrepareResult result =
      prepare({.inputs = {text("1", std::string(1009, 'x'))}, .out_dir = out_});
  EXPECT_EQ(result.train_tokens, 908);  // int(1009 · 0.9)
  EXPECT_EQ(result.val_tokens, 101);
}

TEST_F(PrepareTest, TextLongerThanABlockKeepsItsCharacters) {
  std::string long_text = "xy";  // puts the ends of both blocks inside characters
  while (long_text.size() < (size_t{5} << 19))
    long_text +=
        "\xE2\x82\xAC"
        "a\xF0\x9F\x98\x80\n";
  for (const std::string kind : {"char", "bytes"}) {
    prepare({.inputs = {text("1", long_text)}, .out_dir = out_, .tokenizer = kind});
    EXPECT_EQ(shard_text(out_, Split::kTrain) + shard_text(out_, Split::kVal), long_text) << kind;
  }
}

TEST_F(PrepareTest, VocabularyAboveTheU16BoundaryTakesU32) {
  std::string every_character;
  for (char32_t c = 0; c < 0x10802; ++c) {
    if (c < 0xD800 || c >= 0xE000) append_utf8(every_character, c);
  }
  const auto at_most = prepare(
      {.inputs = {text("1", every_character.substr(8))}, .out_dir = out_, .val_fraction = 0.0});
  EXPECT_EQ(at_most.vocab_size, 65530);
  EXPECT_EQ(at_most.token_type, TokenType::kU16);
  const auto above =
      prepare({.inputs = {text("1", every_character)}, .out_dir = out_, .val_fraction = 0.0});
  EXPECT_EQ(above.vocab_size, 65538);
  EXPECT_EQ(above.token_type, TokenType::kU32);
  EXPECT_EQ(shard_text(out_, Split::kTrain), every_character);
}

TEST_F(PrepareTest, ReplacesAnOlderCorpusAndItsValidationText) {
  const fs::path old_text = text("1", "old text, all of it");
  prepare({.inputs = {old_text}, .out_dir = out_});
  EXPECT_TRUE(has_split(out_, Split::kVal));
  prepare({.inputs = {text("2", "new")}, .out_dir = out_, .val_fraction = 0.0});
  EXPECT_THAT(names_in(out_), UnorderedElementsAre("tokenizer.json", "train.bin"));
  EXPECT_EQ(shard_text(out_, Split::kTrain), "new");
  EXPECT_FALSE(has_split(out_, Split::kVal));
}

TEST_F(PrepareTest, SharesATokenizerBetweenCorpora) {
  const auto first = prepare({.inputs = {text("1", "abcdefghij")}, .out_dir = out_});
  const auto second = prepare({.inputs = {text("2", "jigabcabcaba")},
                               .out_dir = dir_ / "second",
                               .tokenizer_file = out_ / "tokenizer.json"});
  EXPECT_EQ(second.tokenizer_hash, first.tokenizer_hash);
  EXPECT_EQ(second.vocab_size, 10);
  const fs::path foreign = text("3", "abc\nabz");
  EXPECT_THAT(
      [&] {
        prepare({.inputs = {foreign},
                 .out_dir = dir_ / "third",
                 .tokenizer_file = out_ / "tokenizer.json"});
      },
      ThrowsMessage<DataError>(HasSubstr(foreign.string() + ":1 (byte 3): character U+000A")));
}

TEST_F(PrepareTest, EmptyAndMissingFilesAreNamed) {
  const fs::path good = text("good", "text");
  const fs::path empty = text("empty", "");
  const fs::path mark = text("mark", "\xEF\xBB\xBF");
  EXPECT_THAT([&] { prepare({.inputs = {empty}, .out_dir = out_}); },
              ThrowsMessage<DataError>(HasSubstr(empty.string() + ": the file is empty")));
  EXPECT_THAT(
      [&] {
        prepare({.inputs = {empty, mark, empty}, .out_dir = out_});
      },
      ThrowsMessage<DataError>(HasSubstr("this and 2 other files are empty")));
  EXPECT_THAT(
      [&] {
        prepare({.inputs = {good, dir_ / "absent"}, .out_dir = out_});
      },
      ThrowsMessage<IoError>(
          AllOf(HasSubstr("absent: cannot open"), HasSubstr("No such file or directory"))));
  ASSERT_EQ(::mkfifo((dir_ / "fifo").c_str(), 0600), 0);
  for (const fs::path& path : {dir_.path(), dir_ / "fifo", fs::path("/dev/zero")}) {
    EXPECT_THAT(
        [&] {
          prepare({.inputs = {good, path}, .out_dir = out_});
        },
        ThrowsMessage<IoError>(HasSubstr(path.string() + ": not a regular file")));
  }
  EXPECT_FALSE(fs::exists(out_));
}

TEST_F(PrepareTest, InvalidUtf8IsNamedWithFileLineAndByte) {
  const fs::path good = text("good", "line\nline\n");
  const std::string before(3'000'000, '\n');
  for (const std::string kind : {"char", "bytes"}) {
    for (const std::string_view fault :
         {"\xC0\xAF", "\xED\xA0\x80", "\xE2\x82", "\xFF", "\xF4\x90\x80\x80"}) {
      const fs::path bad = text("bad", before + "ab" + std::string(fault));
      EXPECT_THAT(
          [&] {
            prepare({.inputs = {good, bad}, .out_dir = out_, .tokenizer = kind});
          },
          ThrowsMessage<DataError>(
              HasSubstr(bad.string() + ":3000001 (byte 3000002): invalid UTF-8")));
    }
  }
  EXPECT_FALSE(fs::exists(out_));
}

TEST_F(PrepareTest, ACharacterCutByTheEndOfAFileIsNotMendedByTheNextFile) {
  const fs::path first = text("1", "a\xE2\x82");
  const fs::path second = text("2", "\xAC");
  EXPECT_THAT(
      [&] {
        prepare({.inputs = {first, second}, .out_dir = out_});
      },
      ThrowsMessage<DataError>(HasSubstr("truncated after 2 of 3 bytes")));
}

TEST_F(PrepareTest, UnusualTextIsSaidAndWhatBecameOfIt) {
  std::vector<std::string> notes;
  const fs::path first = text("first", "\xEF\xBB\xBFline\r\nanother\r\nopen");
  fs::create_symlink(first, dir_ / "link");
  const std::string zero(1, '\0');
  prepare({.inputs = {first, text("empty", ""), text("nul", "a" + zero + "b" + zero + "\n"),
                      dir_ / "link", text("copy", "a" + zero + "b" + zero + "\n")},
           .out_dir = out_,
           .val_fraction = 0.0,
           .note = [&](const std::string& note) { notes.push_back(note); }});
  EXPECT_EQ(shard_text(out_, Split::kTrain), "line\r\nanother\r\nopena" + zero + "b" + zero +
                                                 "\nline\r\nanother\r\nopena" + zero + "b" + zero +
                                                 "\n");
  const std::string at = dir_.path().string() + "/";
  EXPECT_THAT(notes,
              testing::ElementsAre(
                  "skipped, since it is empty: " + at + "empty",
                  "a byte order mark at the beginning is dropped: " + at + "first, " + at + "link",
                  "carriage returns are kept, as characters (tr -d '\\r' removes them): " + at +
                      "first (2), " + at + "link (2)",
                  "NUL characters are kept, which text seldom has (tr -d '\\0' removes them): " +
                      at + "nul (2), " + at + "copy (2)",
                  "no newline at the end: the last line and the next file's first are one: " + at +
                      "first, " + at + "link",
                  "the same text more than once: " + at + "link (the same file as " + at +
                      "first), " + at + "copy (the same text as " + at + "nul)"));

  notes.clear();
  std::vector<fs::path> many;
  for (int i = 0; i < 5; ++i) many.push_back(text(std::to_string(i), std::to_string(i)));
  prepare({.inputs = many, .out_dir = dir_ / "many", .note = [&](const std::string& note) {
             notes.push_back(note);
           }});
  EXPECT_THAT(notes, testing::ElementsAre(AllOf(HasSubstr("no newline"), HasSubstr("/0, "),
                                                HasSubstr("/2 and 1 more"))))
      << "that of the last file joins nothing";
}

TEST_F(PrepareTest, PlainTextIsWorthNoNote) {
  prepare({.inputs = {text("1", "one\n"), text("2", "two\nthree")},
           .out_dir = out_,
           .note = [](const std::string& note) { ADD_FAILURE() << note; }});
}

TEST_F(PrepareTest, WhatIsReplacedIsSaidBefore) {
  prepare({.inputs = {text("1", "old text, all of it")}, .out_dir = out_});
  std::vector<std::string> notes;
  const fs::path next = text("2", "new text");
  prepare({.inputs = {next}, .out_dir = out_, .note = [&](const std::string& note) {
             notes.push_back(note);
             EXPECT_EQ(shard_text(out_, Split::kTrain), "old text, all of ");
           }});
  EXPECT_THAT(notes, testing::ElementsAre(AllOf(
                         HasSubstr(out_.string() + " holds 17 training tokens and 2 validation "
                                                   "tokens of a vocabulary of 11"),
                         HasSubstr("will be replaced"))));
  notes.clear();
  test::write_file(out_ / "train.bin", "damaged");
  prepare({.inputs = {next}, .out_dir = out_, .note = [&](const std::string& note) {
             notes.push_back(note);
           }});
  EXPECT_THAT(notes, testing::ElementsAre(HasSubstr("a corpus that cannot be used")));
}

TEST_F(PrepareTest, TheSameTextGivesTheSameFiles) {
  const fs::path file = text("1", "some text to train on");
  prepare({.inputs = {file}, .out_dir = out_});
  prepare({.inputs = {file}, .out_dir = dir_ / "again"});
  for (const std::string& name : names_in(out_)) {
    EXPECT_EQ(test::read_file(out_ / name), test::read_file(dir_ / "again" / name)) << name;
  }
}

TEST_F(PrepareTest, TextsThatWereNotPreparedTogetherAreRefused) {
  // Of one vocabulary, as long as each other: only their corpus tells them apart.
  prepare({.inputs = {text("1", "abcdefghijabcdefghij")}, .out_dir = out_});
  prepare({.inputs = {text("2", "jihgfedcbajihgfedcba")}, .out_dir = dir_ / "new"});
  ASSERT_EQ(test::read_file(out_ / "tokenizer.json"), test::read_file(dir_ / "new/tokenizer.json"));
  // What a preparation leaves that is killed after each of its renames.
  const auto load = [&](Split split) { Loader({.paths = {out_}, .split = split, .context = 1}); };
  fs::copy_file(dir_ / "new/val.bin", out_ / "val.bin", fs::copy_options::overwrite_existing);
  const auto message = ThrowsMessage<DataError>(AllOf(HasSubstr("out/corpus/train.bin and "),
                                                      HasSubstr("were not prepared together"),
                                                      HasSubstr("prepare the folder again")));
  EXPECT_THAT([&] { load(Split::kTrain); }, message);
  EXPECT_THAT([&] { load(Split::kVal); }, message);
  EXPECT_THAT([&] { inspect(out_); }, message);
  fs::copy_file(dir_ / "new/train.bin", out_ / "train.bin", fs::copy_options::overwrite_existing);
  load(Split::kTrain);
  load(Split::kVal);

  // A training text without validation text in the place of one with.
  prepare({.inputs = {text("1", "abcdefghijabcdefgh")},
           .out_dir = dir_ / "alone",
           .val_fraction = 0.0});
  fs::copy_file(dir_ / "alone/train.bin", out_ / "train.bin", fs::copy_options::overwrite_existing);
  EXPECT_THAT([&] { load(Split::kTrain); }, message);
}

TEST_F(PrepareTest, WhatKilledPreparationsLeftIsRemoved) {
  const fs::path file = text("1", "some text to train on");
  fs::create_directories(out_);
  for (const char* name : {"train.bin.123-0.tmp", "val.bin.99999-12.tmp", "tokenizer.json.1-0.tmp",
                           "train.bin.mine.tmp", "train.bin.-0.tmp", "train.bin.1-0.tmp.txt"}) {
    test::write_file(out_ / name, "x");
  }
  prepare({.inputs = {file}, .out_dir = out_});
  EXPECT_THAT(names_in(out_),
              UnorderedElementsAre("tokenizer.json", "train.bin", "val.bin", "train.bin.mine.tmp",
                                   "train.bin.-0.tmp", "train.bin.1-0.tmp.txt"));
}

TEST_F(PrepareTest, TwoPreparationsDoNotMixInOneFolder) {
  const fs::path file = text("1", "some text to train on");
  {
    const FolderLock lock(out_, "--out");
    EXPECT_THAT([&] { prepare({.inputs = {file}, .out_dir = out_}); },
                ThrowsMessage<IoError>(AllOf(HasSubstr("--out " + out_.string()),
                                             HasSubstr("is in use by process "))));
  }
  prepare({.inputs = {file}, .out_dir = out_});
}

TEST_F(PrepareTest, AnInterruptionLeavesTheOlderCorpusAsItWas) {
  const fs::path file = text("1", "old text, all of it");
  for (int asked = 0; asked < 3; ++asked) {
    int left = asked;
    EXPECT_THAT(
        [&] {
          prepare({.inputs = {file}, .out_dir = out_, .interrupted = [&] { return left-- == 0; }});
        },
        ThrowsMessage<IoError>(HasSubstr("interrupted")));
    EXPECT_FALSE(fs::exists(out_)) << asked;
  }
  prepare({.inputs = {file}, .out_dir = out_});
  int left = 2;
  EXPECT_THROW(prepare({.inputs = {text("2", "other text")},
                        .out_dir = out_,
                        .interrupted = [&] { return left-- == 0; }}),
               IoError);
  EXPECT_THAT(names_in(out_), UnorderedElementsAre("tokenizer.json", "train.bin", "val.bin"));
  EXPECT_EQ(shard_text(out_, Split::kTrain), "old text, all of ");
}

TEST_F(PrepareTest, ATextThatChangesWhileItIsReadIsRefused) {
  const fs::path file = text("1", "text\rof some length\n");  // the note comes between the passes
  const auto prepare_after = [&](const std::function<void()>& change) {
    prepare({.inputs = {file}, .out_dir = out_, .note = [&](const std::string&) { change(); }});
  };
  EXPECT_THAT([&] { prepare_after([&] { test::write_file(file, "text\rof emos length\n"); }); },
              ThrowsMessage<DataError>(HasSubstr(file.string() + ": the file changed")));
  test::write_file(file, "text\rof some length\n");
  EXPECT_THAT([&] { prepare_after([&] { fs::resize_file(file, 3); }); },
              ThrowsMessage<IoError>(AllOf(HasSubstr(file.string()), HasSubstr("byte 3"))));
  EXPECT_FALSE(fs::exists(out_));
}

TEST_F(PrepareTest, WhatIsInTheWayIsFoundBeforeAnythingIsReplaced) {
  const fs::path file = text("1", "some text to train on");
  prepare({.inputs = {file}, .out_dir = out_});
  const std::string val = test::read_file(out_ / "val.bin");
  fs::remove(out_ / "train.bin");
  fs::create_directory(out_ / "train.bin");
  const fs::path other = text("2", "other text");
  EXPECT_THAT([&] { prepare({.inputs = {other}, .out_dir = out_}); },
              ThrowsMessage<IoError>(HasSubstr("train.bin: in the way")));
  EXPECT_EQ(test::read_file(out_ / "val.bin"), val);
  fs::remove(out_ / "train.bin");
  test::write_file(out_ / "train.bin", "a text of that name");
  EXPECT_THAT([&] { prepare({.inputs = {out_ / "train.bin"}, .out_dir = out_}); },
              ThrowsMessage<ConfigError>(HasSubstr("would be replaced")));
  EXPECT_EQ(test::read_file(out_ / "train.bin"), "a text of that name");
}

TEST_F(PrepareTest, UnwritableFolderIsNamed) {
  const fs::path file = text("1", "text of a corpus");
  // Permissions do not bind root, a path below a regular file binds everybody.
  EXPECT_THAT([&] { prepare({.inputs = {file}, .out_dir = file / "out"}); },
              ThrowsMessage<IoError>(
                  AllOf(HasSubstr((file / "out").string()), HasSubstr("Not a directory"))));
  EXPECT_THAT([&] { prepare({.inputs = {file}, .out_dir = file}); },
              ThrowsMessage<IoError>(HasSubstr(file.string())));
  EXPECT_EQ(test::read_file(file), "text of a corpus");
}

TEST_F(PrepareTest, BadSettingsAreRefused) {
  const fs::path file = text("1", "text");
  EXPECT_THAT([&] { prepare({.inputs = {}, .out_dir = out_}); },
              ThrowsMessage<ConfigError>(HasSubstr("no text file")));
  EXPECT_THAT([&] { prepare({.inputs = {file}, .out_dir = out_, .tokenizer = "bpe"}); },
              ThrowsMessage<ConfigError>(AllOf(HasSubstr("'bpe'"), HasSubstr("char, bytes"))));
  for (const double fraction : {-0.1, 1.0, 1.5, std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_THAT([&] { prepare({.inputs = {file}, .out_dir = out_, .val_fraction = fraction}); },
                ThrowsMessage<ConfigError>(HasSubstr("validation fraction of")));
  }
}

TEST_F(PrepareTest, TextTooShortToSplitIsRefused) {
  EXPECT_THAT([&] { prepare({.inputs = {text("1", "x")}, .out_dir = out_}); },
              ThrowsMessage<DataError>(HasSubstr("a text of 1 characters cannot be split")));
}

/// Writes past `bytes` fail, as on a full disk, until the end of the scope.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &saved_);
    const rlimit limit = {bytes, saved_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &saved_);
    ::signal(SIGXFSZ, handler_);
  }

 private:
  sighandler_t handler_;
  rlimit saved_ = {};
};

TEST_F(PrepareTest, FailedWriteLeavesTheOlderCorpusAsItWas) {
  prepare({.inputs = {text("1", "old text, all of it")}, .out_dir = out_});
  const fs::path long_text = text("2", std::string(100'000, 'x'));
  {
    const FileSizeLimit limit(50'000);
    EXPECT_THAT([&] { prepare({.inputs = {long_text}, .out_dir = out_}); },
                ThrowsMessage<IoError>(
                    AllOf(HasSubstr("train.bin: cannot write"), HasSubstr("File too large"))));
  }
  EXPECT_THAT(names_in(out_), UnorderedElementsAre("tokenizer.json", "train.bin", "val.bin"));
  EXPECT_EQ(shard_text(out_, Split::kTrain) + shard_text(out_, Split::kVal), "old text, all of it");
}

TEST_F(PrepareTest, InspectDescribesFolderAndShard) {
  const auto result =
      prepare({.inputs = {text("1", "h\xC3\xA9llo world, h\xC3\xA9llo")}, .out_dir = out_});
  const DatasetInfo folder = inspect(out_, 5);
  EXPECT_EQ(folder.tokenizer, "char");
  ASSERT_EQ(folder.shards.size(), 2u);
  const ShardInfo& train = folder.shards[0];
  EXPECT_EQ(train.path, out_ / "train.bin");
  EXPECT_EQ(train.token_count, result.train_tokens);
  EXPECT_EQ(train.vocab_size, result.vocab_size);
  EXPECT_EQ(train.tokenizer_hash, result.tokenizer_hash);
  EXPECT_EQ(train.token_type, TokenType::kU16);
  EXPECT_EQ(train.file_size, 64 + 2 * result.train_tokens);
  EXPECT_EQ(train.first_tokens.size(), 5u);
  EXPECT_EQ(train.first_text, "h\xC3\xA9llo");
  EXPECT_EQ(folder.shards[1].first_text, "lo");  // shorter than what was asked for

  const DatasetInfo file = inspect(out_ / "val.bin");
  ASSERT_EQ(file.shards.size(), 1u);
  EXPECT_EQ(file.shards[0].first_text, "lo");

  fs::remove(out_ / "tokenizer.json");
  EXPECT_EQ(inspect(out_ / "val.bin").tokenizer, std::nullopt);
  EXPECT_EQ(inspect(out_ / "val.bin").shards[0].first_text, std::nullopt);
  EXPECT_THROW(inspect(out_), IoError);
}

TEST_F(PrepareTest, InspectFindsWhatDoesNotBelongTogether) {
  prepare({.inputs = {text("1", "some text to train on")}, .out_dir = out_});
  std::string shard = test::read_file(out_ / "train.bin");
  shard[70] ^= 1;
  test::write_file(out_ / "train.bin", shard);
  EXPECT_THAT([&] { inspect(out_); }, ThrowsMessage<DataError>(HasSubstr("checksum")));
  build_tokenizer("bytes", {})->save(out_ / "tokenizer.json");
  EXPECT_THAT([&] { inspect(out_); }, ThrowsMessage<DataError>(AllOf(
                                          HasSubstr("train.bin was written with another tokenizer"),
                                          HasSubstr("tokenizer.json"))));
  EXPECT_THAT([&] { inspect(dir_ / "absent"); },
              ThrowsMessage<IoError>(HasSubstr("No such file or directory")));
  EXPECT_THAT([&] { inspect(dir_.path()); }, ThrowsMessage<DataError>(HasSubstr("no train.bin")));
}

}  // namespace
}  // namespace gradus
