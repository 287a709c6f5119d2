#include "checkpoint/safetensors.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "checkpoint/random_bytes.h"
#include "core/error.h"
#include "support/temp_dir.h"
#include "support/tensors.h"

namespace gradus {
namespace {

using test::safetensors_bytes;
using testing::HasSubstr;

/// What open() says of a file with these bytes; "" when it takes it.
std::string refusal(const test::TempDir& dir, const std::string& bytes) {
  const auto path = test::rewrite_file(dir / "file.safetensors", bytes);
  try {
    SafetensorsFile::open(path);
  } catch (const CheckpointError& error) {
    EXPECT_THAT(error.what(), HasSubstr(path.string()));
    return error.what();
  }
  return "";
}

TEST(Safetensors, ReadsAFileWrittenByHand) {
  const test::TempDir dir;
  const std::string header = R"({"__metadata__":{"format":"pt"},)"
                             R"("b":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]},)"
                             R"("empty":{"dtype":"F64","shape":[0,7],"data_offsets":[14,14]},)"
                             R"("scalar":{"dtype":"U8","shape":[],"data_offsets":[14,15]},)"
                             R"("w":{"shape":[2,1],"data_offsets":[0,8],"dtype":"F32"}})";
  const std::string data("\x00\x00\x80\x3f\x00\x00\x00\xc0\x80\x3f\x00\x40\x40\x40\x2a", 15);
  const SafetensorsFile file =
      SafetensorsFile::open(test::write_file(dir / "f", safetensors_bytes(header, data)));

  EXPECT_EQ(file.metadata(), (std::map<std::string, std::string>{{"format", "pt"}}));
  std::vector<std::string> names;
  for (const SafetensorsEntry& entry : file.entries()) names.push_back(entry.name);
  EXPECT_THAT(names, testing::ElementsAre("w", "b", "empty", "scalar"));
  EXPECT_EQ(test::values(file.tensor("w")), (std::vector<double>{1.0, -2.0}));
  EXPECT_EQ(file.tensor("w").shape(), (Shape{2, 1}));
  EXPECT_EQ(test::values(file.tensor("b")), (std::vector<double>{1.0, 2.0, 3.0}));
  EXPECT_EQ(file.tensor("scalar").shape(), (Shape{1}));
  EXPECT_EQ(*file.tensor("scalar").as<uint8_t>(), 42);
  EXPECT_EQ(file.find("empty")->numel(), 0);
  EXPECT_EQ(file.find("missing"), nullptr);
  EXPECT_THROW(file.tensor("missing"), CheckpointError);
}

TEST(Safetensors, ReadsWhatThePythonLibraryWrote) {
  const SafetensorsFile file = SafetensorsFile::open("tests/golden/adamw_curve.safetensors");
  ASSERT_NE(file.find("loss_fp64"), nullptr);
  const std::vector<double> loss = test::values(file.tensor("loss_fp64"));
  ASSERT_EQ(loss.size(), 20u);
  for (const double value : loss) EXPECT_TRUE(value > 0.0 && value < 10.0) << value;
}

TEST(Safetensors, AFileWithoutTensorsIsWhole) {
  const test::TempDir dir;
  EXPECT_EQ(refusal(dir, safetensors_bytes("{}", "")), "");
}

TEST(Safetensors, TypesAndRanksThatTensorsLackAreListedButNotViewed) {
  const test::TempDir dir;
  const std::string header = R"({"mask":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]},)"
                             R"("odd":{"dtype":"F32","shape":[1],"data_offsets":[2,6]},)"
                             R"("deep":{"dtype":"U8","shape":[1,1,1,1,1,1],"data_offsets":[6,7]},)"
                             R"("four":{"dtype":"F4","shape":[2],"data_offsets":[7,8]}})";
  const SafetensorsFile file = SafetensorsFile::open(
      test::write_file(dir / "f", safetensors_bytes(header, std::string(8, '\1'))));
  EXPECT_EQ(file.entries().size(), 4u);
  for (const auto& [name, reason] :
       {std::pair{"mask", "BOOL"}, {"four", "F4"}, {"odd", "aligned"}, {"deep", "6 axes"}}) {
    try {
      file.tensor(name);
      FAIL() << name;
    } catch (const CheckpointError& error) {
      EXPECT_THAT(error.what(), HasSubstr(reason));
      EXPECT_EQ(file.bytes(*file.find(name)).size() > 0, true);
    }
  }
}

struct BadHeader {
  const char* header;
  const char* message;
};

TEST(Safetensors, RefusesEveryBreachOfTheFormatByName) {
  const test::TempDir dir;
  const std::string data(16, '\0');
  const BadHeader cases[] = {
      {R"([])", "does not start with '{'"},
      {R"( {})", "does not start with '{'"},
      {R"({"a")", "not valid JSON"},
      {R"({"a":1}})", "not valid JSON"},
      {R"({"a":1e999})", "not valid JSON"},
      {"{\"\xff\":1}", "not valid JSON"},
      {R"({"a":1})", "'a': its entry is not a JSON object"},
      {R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},)"
       R"("a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})",
       "names 'a' twice"},
      {R"({"a":{"dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[0,16]}})",
       "names 'dtype' twice"},
      {R"({"a":{"shape":[4],"data_offsets":[0,16]}})", "'a': expected the keys dtype"},
      {R"({"a":{"dtype":"F32","shape":[4],"offsets":[0,16]}})", "'a': unknown key 'offsets'"},
      {R"({"a":{"dtype":"F33","shape":[4],"data_offsets":[0,16]}})", "'a': unknown dtype \"F33\""},
      {R"({"a":{"dtype":32,"shape":[4],"data_offsets":[0,16]}})", "'a': unknown dtype 32"},
      {R"({"a":{"dtype":"F32","shape":4,"data_offsets":[0,16]}})", "'a': shape is not an array"},
      {R"({"a":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}})", "'a': -4 is not a size"},
      {R"({"a":{"dtype":"F32","shape":[4.0],"data_offsets":[0,16]}})", "'a': 4.0 is not a size"},
      {R"({"a":{"dtype":"F32","shape":["4"],"data_offsets":[0,16]}})", "is not a size"},
      {R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,16]}})",
       "is not a size"},
      {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]}})",
       "whole number of bytes"},
      {R"({"a":{"dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}})",
       "whole number of bytes"},
      {R"({"a":{"dtype":"F4","shape":[31],"data_offsets":[0,16]}})", "whole number of bytes"},
      {R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0]}})", "not two sizes"},
      {R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16,16]}})", "not two sizes"},
      {R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[-1,15]}})", "not two sizes"},
      {R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}})", "do not span the 16 bytes"},
      {R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,16]}})", "do not span the 12 bytes"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
       R"("b":{"dtype":"F32","shape":[3],"data_offsets":[4,16]}})",
       "'b' starts at byte 4 of the data, expected 8: it overlaps"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
       R"("b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]}})",
       "'b' starts at byte 12 of the data, expected 8: there is a hole"},
      {R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[4,16]}})", "expected 0: there is a hole"},
      {R"({"a":{"dtype":"F32","shape":[5],"data_offsets":[0,20]}})", "it was cut short"},
      {R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}})", "4 bytes behind the last"},
      {R"({})", "16 bytes behind the last"},
      {R"({"__metadata__":[],"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})",
       "__metadata__ is not a JSON object"},
      {R"({"__metadata__":{"n":1},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})",
       "__metadata__: 'n' is not text"},
      {R"({"a":{"dtype":"F32","shape":[[[4]]],"data_offsets":[0,16]}})", "nested too deeply"},
      {R"({"a":{"dtype":"F32","shape":[{"b":{}}],"data_offsets":[0,16]}})", "nested too deeply"},
  };
  for (const BadHeader& bad : cases) {
    EXPECT_THAT(refusal(dir, safetensors_bytes(bad.header, data)), HasSubstr(bad.message))
        << bad.header;
  }
  const std::string with_zero = std::string("{}") + '\0' + "garbage";
  EXPECT_THAT(refusal(dir, safetensors_bytes(with_zero, "")), HasSubstr("zero byte"));
}

/// A header of tensors of four bytes.
std::string header_of(int tensors) {
  std::string header = "{";
  for (int i = 0; i < tensors; ++i) {
    header += fmt::format(R"({}"t{}":{{"dtype":"U8","shape":[2,2],"data_offsets":[{},{}]}})",
                          i == 0 ? "" : ",", i, 4 * i, 4 * i + 4);
  }
  return header + "}";
}

// In time that grows with their number alone: with its square this test would not come to its end.
TEST(Safetensors, ReadsManyTensorsAndBoundsThem) {
  const test::TempDir dir;
  constexpr int kTensors = 300'000;
  const auto path = test::write_file(
      dir / "f", safetensors_bytes(header_of(kTensors), std::string(4 * kTensors, 'x')));
  const SafetensorsFile file = SafetensorsFile::open(path);
  EXPECT_EQ(file.entries().size(), static_cast<size_t>(kTensors));
  EXPECT_EQ(file.tensor("t299999").shape(), (Shape{2, 2}));
  EXPECT_THAT(refusal(dir, safetensors_bytes(header_of(500'001), "")),
              HasSubstr("the header: more than 4000000 values"));
  std::string nested(200'000, '[');
  EXPECT_THAT(refusal(dir, safetensors_bytes("{\"a\":" + nested, "")),
              HasSubstr("the header: nested too deeply"));
}

TEST(Safetensors, RefusesImpossibleLengths) {
  const test::TempDir dir;
  EXPECT_THAT(refusal(dir, ""), HasSubstr("too few"));
  EXPECT_THAT(refusal(dir, std::string(7, '\0')), HasSubstr("too few"));
  EXPECT_THAT(refusal(dir, std::string(8, '\0')), HasSubstr("does not start with"));
  EXPECT_THAT(refusal(dir, std::string("\x09\0\0\0\0\0\0\0{}      ", 16)),
              HasSubstr("a header of 9 bytes does not fit in a file of 16"));
  EXPECT_THAT(refusal(dir, std::string("\xff\xff\xff\xff\xff\xff\xff\xff{}      ", 16)),
              HasSubstr("larger than the format's limit"));
}

TEST(Safetensors, MessagesShowControlCharactersEscapedAndLongNamesCut) {
  const test::TempDir dir;
  const std::string name(100'000, 'x');
  const std::string message = refusal(dir, safetensors_bytes("{\"\\u001b[2J" + name + "\":1}", ""));
  EXPECT_THAT(message, HasSubstr("\\x1b[2J"));
  EXPECT_LT(message.size(), 1000u);
}

TEST(Safetensors, MissingFileIsAnIoError) {
  const test::TempDir dir;
  EXPECT_THROW(SafetensorsFile::open(dir / "missing"), IoError);
  EXPECT_THROW(SafetensorsFile::open(dir.path()), IoError);
}

TEST(Safetensors, BytesAreReadWholeAndInPart) {
  const test::TempDir dir;
  std::mt19937_64 rng(test::test_seed());
  std::string data(100'000, '\0');
  for (char& c : data) c = static_cast<char>(rng());
  const std::string header = R"({"a":{"dtype":"U8","shape":[50000],"data_offsets":[0,50000]},)"
                             R"("b":{"dtype":"U8","shape":[50000],"data_offsets":[50000,100000]}})";
  const SafetensorsFile file =
      SafetensorsFile::open(test::write_file(dir / "f", safetensors_bytes(header, data)));
  for (const SafetensorsEntry& entry : file.entries()) {
    const size_t offset = entry.name == "a" ? 0 : 50'000;
    const auto bytes = file.bytes(entry);
    ASSERT_EQ(bytes.size(), 50'000u);
    EXPECT_EQ(std::memcmp(bytes.data(), data.data() + offset, bytes.size()), 0);
    std::vector<std::byte> part(17);
    file.read(entry, 49'983, part);
    EXPECT_EQ(std::memcmp(part.data(), data.data() + offset + 49'983, part.size()), 0);
  }
  // One that is cut short under its reader is an error, not a signal.
  std::filesystem::resize_file(dir / "f", 60'000);
  EXPECT_NO_THROW(file.bytes(*file.find("a")));
  EXPECT_THROW(file.bytes(*file.find("b")), IoError);
}

/// Random damage of a valid file: whatever it is, open() throws CheckpointError or returns a file
/// every byte of which can be read.
TEST(SafetensorsFuzz, MutatedFilesNeverDoMoreThanThrow) {
  const test::TempDir dir;
  std::mt19937_64 rng(test::test_seed());
  const std::string valid =
      safetensors_bytes(R"({"__metadata__":{"format":"pt"},)"
                        R"("block.0.w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                        R"("block.0.b":{"dtype":"BF16","shape":[2],"data_offsets":[24,28]},)"
                        R"("e":{"dtype":"I64","shape":[0],"data_offsets":[28,28]}})",
                        std::string(28, '\x5a'));
  const std::vector<std::string> tokens = {"{",
                                           "}",
                                           "[",
                                           "]",
                                           ":",
                                           ",",
                                           "\"",
                                           "-1",
                                           "0",
                                           "1e300",
                                           "18446744073709551615",
                                           "9223372036854775807",
                                           "4294967296",
                                           "null",
                                           "true",
                                           "\"F64\"",
                                           "\"BOOL\"",
                                           "\"F6_E2M3\"",
                                           "\"shape\"",
                                           "\"__metadata__\"",
                                           "\\u0000",
                                           "\xef\xbb\xbf",
                                           std::string(1, '\0'),
                                           std::string(200, '['),
                                           R"({"a":)"};
  const auto below = [&](size_t limit) { return static_cast<size_t>(rng() % limit); };

  int taken = 0;
  int refused = 0;
  for (int round = 0; round < 4000; ++round) {
    std::string bytes = valid;
    const size_t mutations = 1 + below(4);
    for (size_t m = 0; m < mutations && !bytes.empty(); ++m) {
      const size_t at = below(bytes.size());
      switch (below(6)) {
        case 0:
          bytes[at] = static_cast<char>(rng());
          break;
        case 1:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
          break;
        case 2:
          bytes.erase(at, 1 + below(8));
          break;
        case 3:
          bytes.insert(at, bytes.substr(below(bytes.size()), below(40)));
          break;
        case 4:
          bytes.replace(at, std::min(below(6), bytes.size() - at), tokens[below(tokens.size())]);
          break;
        default:
          bytes.resize(below(bytes.size() + 1));
      }
    }
    // Half of the time the length is made right again, so that what lies behind it is reached.
    if (below(2) == 0 && bytes.size() >= 8) {
      const uint64_t length = bytes.size() - 8 - std::min<size_t>(28, bytes.size() - 8);
      std::memcpy(bytes.data(), &length, sizeof length);
    }
    const auto path = test::rewrite_file(dir / "fuzzed", bytes);
    try {
      const SafetensorsFile file = SafetensorsFile::open(path);
      unsigned sum = 0;
      for (const SafetensorsEntry& entry : file.entries()) {
        for (const std::byte byte : file.bytes(entry)) sum += static_cast<unsigned>(byte);
        try {
          file.tensor(entry.name);
        } catch (const CheckpointError&) {
        }
      }
      EXPECT_LE(sum, 255 * bytes.size());
      ++taken;
    } catch (const CheckpointError&) {
      ++refused;
    }
  }
  EXPECT_GT(taken, 50);  // changes of names, data and metadata break no rule
  EXPECT_GT(refused, 2000);
}

}  // namespace
}  // namespace gradus
