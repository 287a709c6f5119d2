#include "core/printable_text.h"

#include <gtest/gtest.h>

namespace gradus {
namespace {

TEST(PrintableText, ControlCharactersAreEscaped) {
  EXPECT_EQ(one_line("a\nb\x1b[2J\x7f"), "a\\x0ab\\x1b[2J\\x7f");
  EXPECT_EQ(one_line("é …"), "é …");
  EXPECT_EQ(printable("a\nb"), "a\\x0ab");
}

TEST(PrintableText, CutsBetweenCharacters) {
  EXPECT_EQ(shortened("abc", 3), "abc");
  EXPECT_EQ(shortened("abcd", 3), "abc…");
  EXPECT_EQ(shortened("aéé", 2), "a…");  // é is two bytes
  EXPECT_EQ(shortened("aéé", 3), "aé…");
  EXPECT_EQ(shortened("\x80\x80\x80", 2), "…") << "no character begins there";
}

TEST(PrintableText, LongTextIsCut) {
  EXPECT_EQ(printable(std::string(120, 'x')), std::string(120, 'x'));
  EXPECT_EQ(printable(std::string(121, 'x')), std::string(120, 'x') + "…");
}

}  // namespace
}  // namespace gradus
