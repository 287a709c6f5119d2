#include "core/json_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "core/json_fields.h"

namespace gradus {
namespace {

using nlohmann::json;
using testing::HasSubstr;

std::string problem_of(const std::string& text, const JsonLimits& limits = {}) {
  std::string problem;
  const bool read = parse_json(text, problem, limits).has_value();
  EXPECT_EQ(read, problem.empty());
  return problem;
}

std::string nested(const char* open, const char* close, int depth) {
  std::string text;
  for (int i = 0; i < depth; ++i) text += open;
  for (int i = 0; i < depth; ++i) text += close;
  return text;
}

TEST(JsonText, IsReadAsItStands) {
  std::string problem;
  const std::string text = R"( {"a": [1, -2, 3.5, true, null, "é\n"], "b": {"a": {}}} )";
  EXPECT_EQ(parse_json(text, problem), json::parse(text));
  EXPECT_EQ(parse_json("7", problem), json(7));
}

TEST(JsonText, WhatIsNotJsonIsRefusedWithItsPlace) {
  for (const char* text : {"", "{", "{}}", "[1,]", "{\"a\":1e999}", "\"\xff\"", "nan", "[1] x"}) {
    EXPECT_THAT(problem_of(text), HasSubstr("not valid JSON near byte ")) << text;
  }
  EXPECT_THAT(problem_of(std::string("{}\0{", 4)), HasSubstr("a zero byte, byte 3"));
}

TEST(JsonText, MembersNamedTwiceAreRefusedAtEveryDepth) {
  EXPECT_EQ(problem_of(R"({"a":{"b":1},"b":[{"b":2}]})"), "");
  EXPECT_EQ(problem_of(R"({"a":1,"b":2,"a":3})"), "names 'a' twice");
  EXPECT_EQ(problem_of(R"([{"x":[{"a\n":1,"a\n":1}]}])"), "names 'a\\x0a' twice");
}

TEST(JsonText, DepthIsBounded) {
  EXPECT_EQ(problem_of(nested("[", "]", 16)), "");
  EXPECT_EQ(problem_of(nested("[", "]", 17)), "nested too deeply, more than 16 levels");
  EXPECT_EQ(problem_of(nested("{\"a\":[", "", 200'000)), "nested too deeply, more than 16 levels");
  EXPECT_EQ(problem_of(nested("[", "]", 200'000)), "nested too deeply, more than 16 levels");
}

TEST(JsonText, LengthAndNumberOfValuesAreBounded) {
  EXPECT_EQ(problem_of("[1,2,3]", {.bytes = 7, .values = 4}), "");
  EXPECT_EQ(problem_of("[1,2,3]", {.bytes = 6}), "7 bytes, expected at most 6");
  EXPECT_EQ(problem_of("[1,2,3]", {.values = 3}), "more than 3 values");
  EXPECT_EQ(problem_of("[{},{},{}]", {.values = 3}), "more than 3 values");
}

TEST(JsonFields, AreOfTheirTypeAndRangeOrRefusedByName) {
  const std::string name = "file.json";
  const auto fields_of = [&](const json& object, const auto& read) -> std::string {
    try {
      read(JsonFields<DataError>(object, name));
    } catch (const DataError& error) {
      return error.what();
    }
    return "";
  };
  const json object = json::parse(
      R"({"n": 5, "minus": -1, "real": 5.0, "huge": 18446744073709551615, "t": "x", "b": true,
          "o": {}, "a": []})");
  const auto integer = [&](const char* field) {
    return fields_of(object, [&](const auto& fields) { fields.integer(field, 0, 9); });
  };
  EXPECT_EQ(integer("n"), "");
  EXPECT_EQ(integer("minus"), "file.json: field 'minus': found -1, expected an integer of 0 … 9");
  EXPECT_EQ(integer("real"), "file.json: field 'real': found 5.0, expected an integer of 0 … 9");
  EXPECT_THAT(integer("huge"), HasSubstr("found 18446744073709551615"));
  EXPECT_THAT(integer("t"), HasSubstr("found \"x\""));
  EXPECT_EQ(integer("absent"), "file.json: field 'absent' is missing");
  EXPECT_EQ(fields_of(object, [](const auto& fields) { fields.boolean("n"); }),
            "file.json: field 'n': found 5, expected true or false");
  EXPECT_EQ(fields_of(object, [](const auto& fields) { fields.text("b"); }),
            "file.json: field 'b': found true, expected text");
  EXPECT_EQ(fields_of(object, [](const auto& fields) { fields.object("a"); }),
            "file.json: field 'a': found [], expected an object");
  EXPECT_EQ(fields_of(object, [](const auto& fields) { fields.array("o"); }),
            "file.json: field 'o': found {}, expected an array");
  EXPECT_EQ(fields_of(json::array(), [](const auto&) {}),
            "file.json: found [], expected an object");
}

}  // namespace
}  // namespace gradus
