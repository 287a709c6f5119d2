#include "data/utf8.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/error.h"

namespace gradus {
namespace {

using testing::HasSubstr;

std::string error_of(std::string_view text, size_t offset) {
  try {
    decode_utf8({"f.txt", text}, offset);
  } catch (const DataError& error) {
    return error.what();
  }
  return "no error";
}

TEST(Utf8, EveryScalarValueRoundTrips) {
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;  // surrogates are not scalar values
    std::string text;
    append_utf8(text, c);
    size_t offset = 0;
    ASSERT_EQ(decode_utf8({"t", text}, offset), c);
    ASSERT_EQ(offset, text.size());
  }
}

TEST(Utf8, EncodesAsTheStandardSays) {
  const std::vector<std::pair<char32_t, std::string>> cases = {
      {U'A', "A"},
      {0x7F, "\x7F"},
      {0x80, "\xC2\x80"},
      {0x7FF, "\xDF\xBF"},
      {0x800, "\xE0\xA0\x80"},
      {0x20AC, "\xE2\x82\xAC"},
      {0xFFFF, "\xEF\xBF\xBF"},
      {0x10000, "\xF0\x90\x80\x80"},
      {0x10FFFF, "\xF4\x8F\xBF\xBF"},
  };
  for (const auto& [code_point, bytes] : cases) {
    std::string text;
    append_utf8(text, code_point);
    EXPECT_EQ(text, bytes);
  }
}

TEST(Utf8, FaultsAreNamed) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"\x80", "stray continuation byte 0x80"},
      {"\xBF"
       "a",
       "stray continuation byte 0xBF"},
      {"\xC0\xAF", "overlong sequence that begins with 0xC0"},
      {"\xC1\xBF", "overlong sequence that begins with 0xC1"},
      {"\xE0\x9F\xBF", "overlong sequence that begins with 0xE0 0x9F"},
      {"\xF0\x8F\xBF\xBF", "overlong sequence that begins with 0xF0 0x8F"},
      {"\xED\xA0\x80", "surrogate half that begins with 0xED 0xA0"},
      {"\xED\xBF\xBF", "surrogate half that begins with 0xED 0xBF"},
      {"\xF4\x90\x80\x80", "value above U+10FFFF that begins with 0xF4 0x90"},
      {"\xF5\x80\x80\x80", "byte 0xF5, which UTF-8 never uses"},
      {"\xFF", "byte 0xFF, which UTF-8 never uses"},
      {"\xC3", "sequence that begins with 0xC3 is truncated after 1 of 2 bytes"},
      {"\xC3"
       "a",
       "sequence that begins with 0xC3 is truncated after 1 of 2 bytes"},
      {"\xE2\x82", "sequence that begins with 0xE2 is truncated after 2 of 3 bytes"},
      {"\xE2\x82\xC3\xA9", "sequence that begins with 0xE2 is truncated after 2 of 3 bytes"},
      {"\xF0\x9F\x98", "sequence that begins with 0xF0 is truncated after 3 of 4 bytes"},
      {"\xF0\x9F\x98 ", "sequence that begins with 0xF0 is truncated after 3 of 4 bytes"},
  };
  for (const auto& [bytes, fault] : cases) {
    const std::string text = "ab\nc\n" + bytes;
    EXPECT_THAT(error_of(text, 5), HasSubstr("f.txt:3 (byte 5): invalid UTF-8: " + fault));
  }
}

TEST(Utf8, AcceptsExactlyTheWellFormedPairsAndTriples) {
  // By exhaustion against the arithmetic definition: a sequence is well-formed when encoding what
  // it stands for gives it back.
  int accepted = 0;
  for (int first = 0x80; first < 0x100; ++first) {
    for (int second = 0; second < 0x100; ++second) {
      for (const int third : {0x00, 0x7F, 0x80, 0xA5, 0xBF, 0xC0, 0xFF}) {
        const std::string text = {static_cast<char>(first), static_cast<char>(second),
                                  static_cast<char>(third)};
        size_t end = 0;
        try {
          const char32_t c = decode_utf8({"t", text}, end);
          std::string again;
          append_utf8(again, c);
          ASSERT_EQ(again, text.substr(0, end));
          ASSERT_FALSE(c >= 0xD800 && c < 0xE000);
          ++accepted;
        } catch (const DataError&) {
        }
      }
    }
  }
  // 30 lead bytes of pairs with 64 seconds, whatever follows; triples with 3 of the third bytes:
  // 16 lead bytes with 64 seconds, less the 32 overlong and the 32 surrogate ones.
  EXPECT_EQ(accepted, 30 * 64 * 7 + (16 * 64 - 32 - 32) * 3);
}

TEST(Utf8, OffsetsCountCodePoints) {
  const std::string text = "a\xC3\xA9\xF0\x9F\x98\x80z";  // 1 + 2 + 4 + 1 bytes
  EXPECT_EQ(count_code_points(text), 4u);
  EXPECT_EQ(count_code_points(""), 0u);
  EXPECT_EQ(code_point_offset(text, 0), 0u);
  EXPECT_EQ(code_point_offset(text, 1), 1u);
  EXPECT_EQ(code_point_offset(text, 2), 3u);
  EXPECT_EQ(code_point_offset(text, 3), 7u);
  EXPECT_EQ(code_point_offset(text, 4), 8u);
}

TEST(Utf8, APieceGivesPlacesInTheWholeText) {
  const TextSource piece = {
      .name = "f.txt", .text = "b\nc\xFF", .first_line = 8, .first_byte = 100};
  size_t offset = 3;
  EXPECT_THAT([&] { decode_utf8(piece, offset); },
              testing::ThrowsMessage<DataError>(HasSubstr("f.txt:9 (byte 103): invalid UTF-8")));
}

TEST(Utf8, DescribesCodePoints) {
  EXPECT_EQ(describe_code_point(0xE9), "U+00E9 '\xC3\xA9'");
  EXPECT_EQ(describe_code_point(0x1F600), "U+1F600 '\xF0\x9F\x98\x80'");
  EXPECT_EQ(describe_code_point(0x0A), "U+000A");
  EXPECT_EQ(describe_code_point(0x9B), "U+009B");  // a terminal would take it as a command
}

}  // namespace
}  // namespace gradus
