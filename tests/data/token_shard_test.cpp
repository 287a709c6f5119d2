#include "data/token_shard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "core/error.h"
#include "support/temp_dir.h"

namespace gradus {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

constexpr uint64_t kHash = 0x0123456789abcdef;

std::vector<int32_t> read_all(const TokenShard& shard) {
  std::vector<int32_t> tokens(static_cast<size_t>(shard.token_count()));
  shard.copy(0, tokens);
  return tokens;
}

class TokenShardTest : public testing::Test {
 protected:
  void write(const std::vector<int32_t>& tokens, int64_t vocab_size) const {
    TokenShardWriter writer(path_, vocab_size, kHash);
    writer.append(tokens);
    writer.publish();
  }

  /// Replaces bytes of the file on disk, and the header's checksum too when asked, as another
  /// program that writes the format would.
  void patch(size_t offset, std::string_view bytes, bool fix_checksum) const {
    std::string file = test::read_file(path_);
    file.replace(offset, bytes.size(), bytes);
    if (fix_checksum) {
      const uint64_t checksum = XXH3_64bits(file.data(), 56);
      std::memcpy(file.data() + 56, &checksum, sizeof checksum);
    }
    test::write_file(path_, file);
  }

  void expect_refused(const std::string& message) const {
    EXPECT_THAT([&] { TokenShard shard(path_); },
                ThrowsMessage<DataError>(AllOf(HasSubstr(path_.string()), HasSubstr(message))));
  }

  test::TempDir dir_;
  std::filesystem::path path_ = dir_ / "train.bin";
};

TEST_F(TokenShardTest, LayoutIsAsDocumented) {
  write({1, 2, 258}, 300);
  const std::string file = test::read_file(path_);
  ASSERT_EQ(file.size(), 64u + 3 * 2);
  EXPECT_EQ(file.substr(0, 8), "GRADTOKS");
  EXPECT_EQ(file.substr(8, 8), std::string("\1\0\0\0\2\0\0\0", 8));
  EXPECT_EQ(file.substr(16, 8), std::string("\3\0\0\0\0\0\0\0", 8));
  EXPECT_EQ(file.substr(24, 8), std::string("\x2C\1\0\0\0\0\0\0", 8));
  EXPECT_EQ(file.substr(32, 8), "\xEF\xCD\xAB\x89\x67\x45\x23\x01");
  EXPECT_EQ(file.substr(64), std::string("\1\0\2\0\2\1", 6));
}

TEST_F(TokenShardTest, RoundTripsOnBothSidesOfTheU16Boundary) {
  struct Case {
    int64_t vocab_size;
    TokenType type;
  };
  const std::vector<Case> cases = {{1, TokenType::kU16},
                                   {65535, TokenType::kU16},
                                   {65536, TokenType::kU16},
                                   {65537, TokenType::kU32},
                                   {2147483647, TokenType::kU32}};
  for (const auto& [vocab_size, type] : cases) {
    const auto largest = static_cast<int32_t>(vocab_size - 1);
    const std::vector<int32_t> tokens = {largest, 0, largest / 2, largest};
    write(tokens, vocab_size);
    const TokenShard shard(path_);
    EXPECT_EQ(shard.token_type(), type) << vocab_size;
    EXPECT_EQ(shard.vocab_size(), vocab_size);
    EXPECT_EQ(shard.tokenizer_hash(), kHash);
    EXPECT_EQ(shard.file_size(), 64 + 4 * static_cast<int64_t>(type));
    EXPECT_EQ(read_all(shard), tokens);
    shard.verify();
  }
}

TEST_F(TokenShardTest, StreamsInPiecesOfAnySize) {
  std::vector<int32_t> tokens(200'003);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 7919 % 70'001);
  TokenShardWriter writer(path_, 70'001, kHash);
  size_t piece = 1;
  for (std::span<const int32_t> rest = tokens; !rest.empty(); piece = piece * 3 + 1) {
    const auto part = rest.first(std::min(piece, rest.size()));
    writer.append(part);
    rest = rest.subspan(part.size());
  }
  writer.append({});
  EXPECT_EQ(writer.token_count(), 200'003);
  writer.finish();
  writer.publish();
  const TokenShard shard(path_);
  EXPECT_EQ(read_all(shard), tokens);
  shard.verify();

  std::vector<int32_t> part(1001);
  shard.copy(123'457, part);
  EXPECT_TRUE(std::equal(part.begin(), part.end(), tokens.begin() + 123'457));
}

TEST_F(TokenShardTest, EmptyShardIsWhole) {
  write({}, 10);
  const TokenShard shard(path_);
  EXPECT_EQ(shard.token_count(), 0);
  shard.verify();
}

TEST_F(TokenShardTest, NothingAppearsBeforePublish) {
  write({1, 2, 3}, 10);
  const std::string before = test::read_file(path_);
  {
    TokenShardWriter writer(path_, 10, kHash);
    writer.append(std::vector<int32_t>{4, 5});
    writer.finish();
    EXPECT_EQ(test::read_file(path_), before);
  }
  EXPECT_EQ(test::read_file(path_), before);
  const std::filesystem::directory_iterator entries(dir_.path());
  EXPECT_EQ(std::distance(begin(entries), end(entries)), 1) << "a temporary file was left behind";
}

TEST_F(TokenShardTest, WriterRefusesIdsOutsideTheVocabulary) {
  TokenShardWriter writer(path_, 10, kHash);
  writer.append(std::vector<int32_t>{9, 9, 9});
  for (const int32_t bad : {-1, 10, 65536}) {
    EXPECT_THAT(
        [&] {
          writer.append(std::vector<int32_t>{0, bad});
        },
        ThrowsMessage<DataError>(AllOf(HasSubstr("token id " + std::to_string(bad) + " at"),
                                       HasSubstr("position 4"), HasSubstr("vocabulary of 10"))));
  }
}

TEST_F(TokenShardTest, WriterRefusesImpossibleVocabularies) {
  for (const int64_t bad : {int64_t{-1}, int64_t{0}, int64_t{1} << 31}) {
    EXPECT_THROW(TokenShardWriter(path_, bad, kHash), DataError) << bad;
  }
}

TEST_F(TokenShardTest, TokenNotBelowTheVocabularyIsFoundWhereverItIs) {
  for (const int64_t vocab_size : {int64_t{1000}, int64_t{100'000}}) {
    std::vector<int32_t> tokens(777);
    std::iota(tokens.begin(), tokens.end(), 0);
    const size_t width = vocab_size > 65536 ? 4 : 2;
    for (const size_t position : {size_t{0}, size_t{391}, size_t{776}}) {
      write(tokens, vocab_size);
      const uint32_t bad = width == 2 ? 1000 : 0xFFFFFFFF;
      patch(64 + position * width, {reinterpret_cast<const char*>(&bad), width}, false);
      const TokenShard shard(path_);
      const auto message = ThrowsMessage<DataError>(
          AllOf(HasSubstr(path_.string()),
                HasSubstr("token id " + std::to_string(bad) + " at position " +
                          std::to_string(position) + " "),
                HasSubstr("vocabulary of " + std::to_string(vocab_size))));
      EXPECT_THAT([&] { read_all(shard); }, message);
      EXPECT_THAT([&] { shard.verify(); }, message);
      std::vector<int32_t> one(1);
      EXPECT_THAT([&] { shard.copy(static_cast<int64_t>(position), one); }, message);
      shard.copy(100, one);  // what is whole can be read
      EXPECT_EQ(one[0], 100);
    }
  }
}

TEST_F(TokenShardTest, VerifyFindsAChangedTokenThatIsStillInTheVocabulary) {
  write({1, 2, 3}, 10);
  patch(66, "\7", false);
  const TokenShard shard(path_);
  EXPECT_THAT([&] { shard.verify(); }, ThrowsMessage<DataError>(HasSubstr("checksum")));
}

TEST_F(TokenShardTest, AFileThatShrinksWhileItIsInUseIsAnError) {
  write({1, 2, 3, 4, 5}, 10);
  const TokenShard shard(path_);
  std::vector<int32_t> two(2);
  shard.copy(3, two);
  std::filesystem::resize_file(path_, 64 + 2 * 3);
  EXPECT_THAT([&] { shard.copy(3, two); },
              ThrowsMessage<IoError>(AllOf(HasSubstr(path_.string()), HasSubstr("byte 70"),
                                           HasSubstr("74 bytes when it was opened"))));
  EXPECT_THAT([&] { shard.copy(0, two); },
              ThrowsMessage<IoError>(HasSubstr("70 bytes, and 74 when it was opened")));
  EXPECT_THROW(shard.verify(), IoError);
}

TEST_F(TokenShardTest, OtherTokensWrittenIntoTheFileWhileItIsInUseAreFound) {
  write({1, 2, 3, 4, 5}, 10);
  const std::string whole = test::read_file(path_);
  const TokenShard shard(path_);
  const auto before = std::filesystem::last_write_time(path_);
  std::vector<int32_t> two(2);
  // The same length, and ids that the vocabulary has; not among the tokens that are read.
  patch(72, "\7", false);
  std::filesystem::last_write_time(path_, before + std::chrono::seconds(1));
  EXPECT_THAT([&] { shard.copy(0, two); },
              ThrowsMessage<DataError>(
                  AllOf(HasSubstr("checksum"), HasSubstr("written to while it was in use"))));
  EXPECT_THROW(shard.copy(0, two), DataError) << "and it stays so";
  // What was only touched is the same.
  test::write_file(path_, whole);
  std::filesystem::last_write_time(path_, before + std::chrono::seconds(2));
  shard.copy(0, two);
  EXPECT_EQ(two, (std::vector<int32_t>{1, 2}));
}

TEST_F(TokenShardTest, AShardThatIsReplacedStaysReadableAsItWas) {
  write({1, 2, 3}, 10);
  const TokenShard shard(path_);
  write({4, 5, 6, 7}, 10);
  EXPECT_EQ(read_all(shard), (std::vector<int32_t>{1, 2, 3}));
  shard.verify();
  EXPECT_EQ(read_all(TokenShard(path_)), (std::vector<int32_t>{4, 5, 6, 7}));
}

TEST_F(TokenShardTest, ReadsBehindTheEndAreRefused) {
  write({1, 2, 3}, 10);
  const TokenShard shard(path_);
  std::vector<int32_t> two(2);
  EXPECT_THROW(shard.copy(2, two), DataError);
  EXPECT_THROW(shard.copy(-1, two), DataError);
  EXPECT_THROW(shard.copy(INT64_MAX, two), DataError);
  std::vector<int32_t> four(4);
  EXPECT_THROW(shard.copy(0, four), DataError);
}

TEST_F(TokenShardTest, TruncatedAtAnyLengthIsRefused) {
  write({1, 2, 3, 4, 5}, 10);
  const std::string whole = test::read_file(path_);
  for (size_t size = 0; size < whole.size(); ++size) {
    test::write_file(path_, whole.substr(0, size));
    expect_refused("truncated");
  }
  test::write_file(path_, whole + "xx");
  expect_refused("12 bytes of tokens, but the header promises 5 tokens of 2 bytes");
  test::write_file(path_, whole + "x");
  expect_refused("11 bytes of tokens, but the header promises 5 tokens of 2 bytes");
}

TEST_F(TokenShardTest, EveryDamagedHeaderBitIsFound) {
  write({1, 2, 3}, 10);
  const std::string whole = test::read_file(path_);
  for (size_t bit = 0; bit < 64 * 8; ++bit) {
    std::string damaged = whole;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
    test::write_file(path_, damaged);
    EXPECT_THROW(TokenShard{path_}, DataError) << "bit " << bit;
  }
}

TEST_F(TokenShardTest, ForeignFilesAndVersionsAreRefusedByName) {
  write({1, 2, 3}, 10);
  patch(8, "\2", true);
  expect_refused("token shard version 2, but this program reads version 1");
  patch(0, "PK\3\4", true);
  expect_refused("not a token shard");
}

TEST_F(TokenShardTest, ImpossibleHeadersWithAValidChecksumAreRefused) {
  struct Case {
    size_t offset;
    std::string bytes;
    std::string message;
  };
  const std::vector<Case> cases = {
      {12, std::string("\3\0\0\0", 4), "token type 3"},
      {12, std::string("\0\0\0\0", 4), "token type 0"},
      {16, std::string("\4\0\0\0\0\0\0\0", 8), "promises 4 tokens"},
      // 2 · count overflows to the size of the file.
      {16, std::string("\3\0\0\0\0\0\0\x80", 8), "promises 9223372036854775811 tokens"},
      {24, std::string("\0\0\0\0\0\0\0\0", 8), "vocabulary size 0"},
      {24, std::string("\0\0\0\x80\0\0\0\0", 8), "vocabulary size 2147483648"},
  };
  for (const Case& c : cases) {
    write({1, 2, 3}, 10);
    patch(c.offset, c.bytes, true);
    expect_refused(c.message);
  }
}

TEST_F(TokenShardTest, MissingFilesAndFoldersAreIoErrors) {
  EXPECT_THAT([&] { TokenShard shard(dir_ / "absent.bin"); },
              ThrowsMessage<IoError>(HasSubstr("No such file")));
  EXPECT_THAT([&] { TokenShard shard(dir_.path()); },
              ThrowsMessage<IoError>(HasSubstr("not a regular file")));
  EXPECT_THAT([&] { TokenShardWriter writer(dir_ / "absent/train.bin", 10, kHash); },
              ThrowsMessage<IoError>(AllOf(HasSubstr("absent/train.bin"), HasSubstr("create"))));
}

}  // namespace
}  // namespace gradus
