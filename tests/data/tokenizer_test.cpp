#include "data/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "core/error.h"
#include "support/temp_dir.h"

namespace gradus {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;

const std::string kText = "na\xC3\xAFve \xE2\x82\xAC\xF0\x9F\x98\x80\n";  // naïve €😀
const std::vector<char32_t> kVocab = {U'\n', U' ', U'a', U'e', U'n', U'v', 0xEF, 0x20AC, 0x1F600};

std::string joined(const Tokenizer& tokenizer, const std::vector<int32_t>& tokens) {
  std::string text;
  for (const int32_t token : tokens) text += tokenizer.decode(std::span(&token, 1));
  return text;
}

TEST(CharTokenizer, IdsFollowTheOrderOfCodePoints) {
  const auto tokenizer = build_tokenizer("char", kVocab);
  EXPECT_EQ(tokenizer->kind(), "char");
  EXPECT_EQ(tokenizer->vocab_size(), 9);
  EXPECT_THAT(tokenizer->encode(kText), ElementsAre(4, 2, 6, 5, 3, 1, 7, 8, 0));
}

TEST(Tokenizer, RoundTripsTextAtOnceAndTokenByToken) {
  for (const std::string_view kind : tokenizer_kinds()) {
    const auto tokenizer = build_tokenizer(kind, kVocab);
    const auto tokens = tokenizer->encode(kText);
    EXPECT_EQ(tokenizer->decode(tokens), kText) << kind;
    EXPECT_EQ(joined(*tokenizer, tokens), kText) << kind;
    EXPECT_TRUE(tokenizer->encode("").empty());
    EXPECT_EQ(tokenizer->decode({}), "");
  }
}

TEST(ByteTokenizer, EveryByteIsItsOwnToken) {
  const auto tokenizer = build_tokenizer("bytes", {});
  std::string text(256, '\0');
  std::iota(text.begin(), text.end(), '\0');
  const auto tokens = tokenizer->encode(text);
  ASSERT_EQ(tokens.size(), 256u);
  for (int32_t i = 0; i < 256; ++i) EXPECT_EQ(tokens[static_cast<size_t>(i)], i);
  EXPECT_EQ(tokenizer->decode(tokens), text);
  EXPECT_EQ(tokenizer->vocab_size(), 256);
}

TEST(Tokenizer, EncodesAPartOfAText) {
  const auto tokenizer = build_tokenizer("char", kVocab);
  std::vector<int32_t> tokens = {99};
  tokenizer->encode({"t", kText}, 1, 4, tokens);  // "aï", behind what is there
  EXPECT_THAT(tokens, ElementsAre(99, 2, 6));
}

TEST(CharTokenizer, UnknownCharacterIsNamedWithItsPlace) {
  const auto tokenizer = build_tokenizer("char", kVocab);
  EXPECT_THAT([&] { tokenizer->encode("na\nv\xC3\xA9", "the prompt"); },
              ThrowsMessage<DataError>(
                  AllOf(HasSubstr("the prompt:2 (byte 4): character U+00E9 '\xC3\xA9' is not in "
                                  "the vocabulary of 9 characters"),
                        HasSubstr("bytes tokenizer"))));
  // Beyond the largest known code point as well.
  EXPECT_THAT([&] { tokenizer->encode("\xF4\x8F\xBF\xBF"); },
              ThrowsMessage<DataError>(HasSubstr("U+10FFFF")));
}

TEST(CharTokenizer, InvalidUtf8IsRefused) {
  const auto tokenizer = build_tokenizer("char", kVocab);
  EXPECT_THAT([&] { tokenizer->encode("na\xFF"); },
              ThrowsMessage<DataError>(HasSubstr("text:1 (byte 2): invalid UTF-8")));
}

TEST(Tokenizer, DecodeRefusesIdsOutsideTheVocabulary) {
  const auto tokenizer = build_tokenizer("char", kVocab);
  for (const int32_t bad : {-1, 9, 1 << 30}) {
    EXPECT_THAT(
        [&] {
          tokenizer->decode(std::vector<int32_t>{0, bad});
        },
        ThrowsMessage<DataError>(AllOf(HasSubstr("token id " + std::to_string(bad)),
                                       HasSubstr("position 1"), HasSubstr("vocabulary of 9"))));
  }
}

TEST(Tokenizer, FileRoundTripKeepsIdentity) {
  const test::TempDir dir;
  for (const std::string_view kind : tokenizer_kinds()) {
    const auto tokenizer = build_tokenizer(kind, kVocab);
    tokenizer->save(dir / "tokenizer.json");
    const auto loaded = load_tokenizer(dir / "tokenizer.json");
    EXPECT_EQ(loaded->kind(), kind);
    EXPECT_EQ(loaded->to_json(), tokenizer->to_json());
    EXPECT_EQ(loaded->hash(), tokenizer->hash());
    EXPECT_EQ(loaded->encode(kText), tokenizer->encode(kText));
  }
}

TEST(Tokenizer, HashIsTheDefinitionsNotTheFilesLayout) {
  const auto tokenizer = build_tokenizer("char", kVocab);
  const auto reordered = parse_tokenizer(
      R"({"vocab": ["\n"," ","a","e","n","v","\u00ef","\u20ac","\ud83d\ude00"],
          "version":1, "kind" :"char", "format": "gradus-tokenizer"})",
      "t.json");
  EXPECT_EQ(reordered->hash(), tokenizer->hash());
  EXPECT_NE(build_tokenizer("char", std::vector<char32_t>{U'a'})->hash(), tokenizer->hash());
  EXPECT_NE(build_tokenizer("bytes", {})->hash(), tokenizer->hash());
}

TEST(CharTokenizer, VocabularyIsReadableInTheFile) {
  const test::TempDir dir;
  build_tokenizer("char", kVocab)->save(dir / "tokenizer.json");
  const std::string text = test::read_file(dir / "tokenizer.json");
  EXPECT_THAT(text, AllOf(HasSubstr("\"\\n\",\n"), HasSubstr("\"\xE2\x82\xAC\",\n")));
}

TEST(Tokenizer, UnknownKindListsTheKnownOnes) {
  EXPECT_THAT([] { build_tokenizer("words", kVocab); },
              ThrowsMessage<ConfigError>(AllOf(HasSubstr("'words'"), HasSubstr("char, bytes"))));
}

TEST(Tokenizer, DamagedDefinitionsAreRefusedByName) {
  const std::string head = R"({"format":"gradus-tokenizer","version":1,"kind":"char")";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "t.json: not valid JSON"},
      {head, "t.json: not valid JSON"},
      {"[]", "t.json: not a tokenizer"},
      {"{}", "t.json: not a tokenizer"},
      {R"({"format":7})", "t.json: not a tokenizer"},
      {R"({"format":"gradus-tokenizer"})", "t.json: tokenizer version null"},
      {R"({"format":"gradus-tokenizer","version":2,"kind":"char"})", "t.json: tokenizer version 2"},
      {R"({"format":"gradus-tokenizer","version":1})", "t.json: unknown tokenizer kind null"},
      {R"({"format":"gradus-tokenizer","version":1,"kind":"x"})", "unknown tokenizer kind \"x\""},
      {head + "}", "t.json: expected \"vocab\""},
      {head + R"(,"vocab":"ab"})", "t.json: expected \"vocab\""},
      {head + R"(,"vocab":[]})", "t.json: expected \"vocab\""},
      {head + R"(,"vocab":["a",1]})", "t.json: \"vocab\"[1]: expected a string of exactly one"},
      {head + R"(,"vocab":["ab"]})", "t.json: \"vocab\"[0]: expected a string of exactly one"},
      {head + R"(,"vocab":[""]})", "t.json: \"vocab\"[0]: expected a string of exactly one"},
      {head + R"(,"vocab":["b","a"]})", "t.json: \"vocab\"[1]: U+0061 'a' does not come after"},
      {head + R"(,"vocab":["a","a"]})", "t.json: \"vocab\"[1]: U+0061 'a' does not come after"},
      {head + ",\"vocab\":[\"\xED\xA0\x80\"]}", "t.json: not valid JSON"},
  };
  for (const auto& [json, message] : cases) {
    EXPECT_THAT([&] { parse_tokenizer(json, "t.json"); },
                ThrowsMessage<DataError>(HasSubstr(message)))
        << json;
  }
}

TEST(Tokenizer, MissingFileIsAnIoError) {
  const test::TempDir dir;
  EXPECT_THAT([&] { load_tokenizer(dir / "tokenizer.json"); },
              ThrowsMessage<IoError>(
                  AllOf(HasSubstr("tokenizer.json"), HasSubstr("No such file or directory"))));
}

}  // namespace
}  // namespace gradus
