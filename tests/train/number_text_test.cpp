// Numbers as text: what is read, and what is said of what is not.

#include "train/number_text.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <string>

namespace gradus {
namespace {

TEST(NumberText, IntegersAreReadWhole) {
  struct Case {
    const char* text;
    int64_t value;
  };
  for (const auto& [text, expected] :
       {Case{"0", 0}, Case{"-0", 0}, Case{"7", 7}, Case{"+7", 7}, Case{"-12", -12},
        Case{"9223372036854775807", std::numeric_limits<int64_t>::max()},
        Case{"-9223372036854775808", std::numeric_limits<int64_t>::min()}}) {
    int64_t value = 99;
    EXPECT_EQ(read_integer(text, value), std::nullopt) << text;
    EXPECT_EQ(value, expected) << text;
  }
}

TEST(NumberText, WhatIsNoIntegerSaysHowToWriteIt) {
  struct Case {
    const char* text;
    const char* hint;
  };
  for (const auto& [text, hint] : {Case{"", ""},
                                   Case{" 1", ""},
                                   Case{"1 ", ""},
                                   Case{"1x", ""},
                                   Case{"0x10", ""},
                                   Case{"nan", ""},
                                   Case{"inf", ""},
                                   Case{"--1", ""},
                                   Case{"+-1", ""},
                                   Case{"++1", ""},
                                   Case{"1.5", ""},
                                   Case{"1e400", ""},
                                   Case{"1_000", "write 1000, without underscores"},
                                   Case{"1,000", "write 1000, without commas"},
                                   Case{"010", "write it without leading zeros"},
                                   Case{"1e3", "write 1000, without fraction or exponent"},
                                   Case{"1.0", "write 1, without fraction or exponent"},
                                   Case{"9223372036854775808", "it does not fit in 64 bits"},
                                   Case{"99999999999999999999", "it does not fit in 64 bits"},
                                   Case{"99999999999999999999x", ""}}) {
    int64_t value = 0;
    EXPECT_EQ(read_integer(text, value), std::optional<std::string>(hint)) << text;
  }
}

TEST(NumberText, NumbersAreFinite) {
  struct Case {
    const char* text;
    const char* hint;
  };
  for (const auto& [text, hint] :
       {Case{"", ""}, Case{"x", ""}, Case{"1e-3x", ""}, Case{" 1", ""}, Case{"1 ", ""},
        Case{"0x10", ""}, Case{"1,5", ""}, Case{"nan", "it must be finite"},
        Case{"-inf", "it must be finite"}, Case{"infinity", "it must be finite"},
        Case{".inf", "it must be finite"}, Case{"1e400", "it does not fit in a double"},
        Case{"00", "write it without leading zeros"}}) {
    double value = 0;
    EXPECT_EQ(read_number(text, value), std::optional<std::string>(hint)) << text;
  }
  for (const char* text : {"1e-3", "+.5", "-0.25", "3", "1E3", "1."}) {
    double value = 0;
    EXPECT_EQ(read_number(text, value), std::nullopt) << text;
    EXPECT_EQ(value, std::stod(text)) << text;
  }
}

}  // namespace
}  // namespace gradus
