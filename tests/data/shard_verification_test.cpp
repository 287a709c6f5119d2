#include "data/shard_verification.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <vector>

#include "core/error.h"
#include "support/temp_dir.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

class ShardVerificationTest : public testing::Test {
 protected:
  fs::path shard(std::string_view name, size_t tokens) const {
    TokenShardWriter writer(dir_ / name, 100, 1);
    writer.append(std::vector<int32_t>(tokens, 7));
    writer.publish();
    return dir_ / name;
  }

  /// Another token of the vocabulary in place of the last.
  static void damage(const fs::path& path) {
    std::string bytes = test::read_file(path);
    bytes[bytes.size() - 2] = 8;
    test::write_file(path, bytes);
  }

  test::TempDir dir_;
};

TEST_F(ShardVerificationTest, SmallShardsAreVerifiedAtOnce) {
  const TokenShard whole(shard("whole", 1000));
  damage(shard("bad", 500));
  const TokenShard bad(dir_ / "bad");
  EXPECT_THAT(
      [&] {
        ShardVerification({&whole, &bad});
      },
      ThrowsMessage<DataError>(
          AllOf(HasSubstr(bad.path().string()), HasSubstr("do not match their checksum"))));
  ShardVerification good({&whole, &whole});
  EXPECT_TRUE(good.finished());
  good.finish();
  ShardVerification({}).finish();
}

TEST_F(ShardVerificationTest, OthersAreVerifiedInTheBackgroundAndFinishTells) {
  const TokenShard small(shard("small", 10));
  const TokenShard large(shard("large", 3'000'000));
  damage(shard("bad", 4'000'000));
  const TokenShard bad(dir_ / "bad");
  ShardVerification verification({&large, &bad, &small}, 100);
  EXPECT_FALSE(verification.finished());
  const auto message = ThrowsMessage<DataError>(
      AllOf(HasSubstr(bad.path().string()), HasSubstr("do not match their checksum")));
  EXPECT_THAT([&] { verification.finish(); }, message);
  EXPECT_TRUE(verification.finished());
  EXPECT_FALSE(verification.reading());
  EXPECT_THAT([&] { verification.check(); }, message);
  EXPECT_THAT([&] { verification.finish(); }, message) << "and it stays so";

  ShardVerification whole({&large, &small}, 100);
  whole.finish();
  whole.check();
}

TEST_F(ShardVerificationTest, TheSmallestGoFirstAsFarAsTheBoundReaches) {
  damage(shard("bad", 500));
  const TokenShard bad(dir_ / "bad");
  const TokenShard large(shard("large", 1000));
  EXPECT_THROW(ShardVerification({&large, &bad}, 1064), DataError);
  ShardVerification later({&large, &bad}, 1063);
  EXPECT_THROW(later.finish(), DataError);
}

TEST_F(ShardVerificationTest, AnEarlyEndDoesNotWaitForTheRest) {
  // Together 4 TB, more than is read within the test's time limit.
  const TokenShard large(shard("large", 20'000'000));
  const std::vector<const TokenShard*> many(100'000, &large);
  const ShardVerification verification(many, 0);
}

}  // namespace
}  // namespace gradus
