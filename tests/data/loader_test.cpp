#include "data/loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "core/error.h"
#include "data/prepare.h"
#include "support/allocation_count.h"
#include "support/temp_dir.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

struct Batch {
  std::vector<int32_t> inputs, targets;  // (B, T)
  bool operator==(const Batch&) const = default;
};

Batch read(const Loader& loader, int64_t first_sample, int64_t count) {
  const auto size = static_cast<size_t>(count * loader.context());
  Batch batch = {std::vector<int32_t>(size, -77), std::vector<int32_t>(size, -77)};
  loader.read(first_sample, batch.inputs, batch.targets);
  return batch;
}

class LoaderTest : public testing::Test {
 protected:
  static constexpr int64_t kVocab = 100'000;

  /// A shard of the tokens first, first + 1, …: a token's value is its place.
  fs::path shard(std::string_view name, int32_t count, int32_t first = 0, int64_t vocab = kVocab,
                 uint64_t hash = 1) const {
    std::vector<int32_t> tokens(static_cast<size_t>(count));
    std::iota(tokens.begin(), tokens.end(), first);
    TokenShardWriter writer(dir_ / name, vocab, hash);
    writer.append(tokens);
    writer.publish();
    return dir_ / name;
  }

  test::TempDir dir_;
};

/// Places of the samples of an epoch, from the first token of each, after checking that every
/// sample is a window of consecutive tokens with targets one ahead.
std::vector<int32_t> window_starts(const Loader& loader, int64_t epoch) {
  const int64_t count = loader.samples_per_epoch();
  const auto context = static_cast<size_t>(loader.context());
  const Batch batch = read(loader, epoch * count, count);
  std::vector<int32_t> starts;
  for (size_t row = 0; row < batch.inputs.size(); row += context) {
    starts.push_back(batch.inputs[row]);
    for (size_t t = 0; t < context; ++t) {
      EXPECT_EQ(batch.inputs[row + t], starts.back() + static_cast<int32_t>(t));
      EXPECT_EQ(batch.targets[row + t], starts.back() + static_cast<int32_t>(t) + 1);
    }
  }
  return starts;
}

TEST_F(LoaderTest, SequentialWindowsCoverTheTextInOrder) {
  struct Case {
    int32_t tokens;
    int64_t context;
    std::vector<int32_t> starts;
  };
  const std::vector<Case> cases = {
      {2, 1, {0}},     {3, 1, {0, 1}},  {9, 8, {0}},         {16, 8, {0}},
      {17, 8, {0, 8}}, {18, 8, {0, 8}}, {25, 8, {0, 8, 16}}, {23, 7, {0, 7, 14}},
  };
  for (const Case& c : cases) {
    const Loader loader(
        {.paths = {shard("a", c.tokens)}, .context = c.context, .order = SampleOrder::kSequential});
    EXPECT_EQ(window_starts(loader, 0), c.starts) << c.tokens << " tokens, context " << c.context;
    EXPECT_EQ(window_starts(loader, 1), c.starts);
  }
}

TEST_F(LoaderTest, EveryEpochTakesEveryWindowOnceFromARandomStart) {
  for (const int64_t context : {1, 2, 7, 64}) {
    for (const int32_t tokens : {193, 194, 1000, 1009}) {
      const Loader loader({.paths = {shard("a", tokens)}, .context = context, .seed = 3});
      const int64_t fitting = (tokens - 1) / context;
      EXPECT_EQ(loader.samples_per_epoch(), fitting - 1);
      std::set<int32_t> shifts;
      for (int64_t epoch = 0; epoch < 40; ++epoch) {
        auto starts = window_starts(loader, epoch);
        std::sort(starts.begin(), starts.end());
        for (size_t i = 1; i < starts.size(); ++i) {
          ASSERT_EQ(starts[i] - starts[i - 1], context);
        }
        ASSERT_GE(starts.front(), 0);
        ASSERT_LT(starts.back() + context, tokens);
        shifts.insert(starts.front());
      }
      EXPECT_GE(shifts.size(), context == 1 ? 2u : 3u);
    }
  }
}

TEST_F(LoaderTest, OverTheEpochsEveryTokenIsATarget) {
  const Loader loader({.paths = {shard("a", 50)}, .context = 8, .seed = 3});
  std::set<int32_t> targets;
  for (int64_t epoch = 0; epoch < 200; ++epoch) {
    const Batch batch = read(loader, epoch * loader.samples_per_epoch(), 5);
    targets.insert(batch.targets.begin(), batch.targets.end());
  }
  EXPECT_EQ(targets.size(), 49u);  // nothing comes before the first token
}

TEST_F(LoaderTest, TheOnlyWindowIsNeverLost) {
  for (const int32_t tokens : {9, 10, 16}) {
    const Loader loader({.paths = {shard("a", tokens)}, .context = 8});
    EXPECT_EQ(loader.samples_per_epoch(), 1);
    for (int64_t epoch = 0; epoch < 20; ++epoch) {
      const int32_t start = window_starts(loader, epoch).at(0);
      EXPECT_GE(start, 0);
      EXPECT_LE(start, tokens - 9);
    }
  }
}

TEST_F(LoaderTest, ASampleDependsOnItsNumberAlone) {
  const LoaderOptions options = {
      .paths = {shard("a", 500), shard("b", 333, 1000)}, .context = 7, .seed = 11};
  const Loader loader(options);
  const int64_t count = 2 * loader.samples_per_epoch() + 13;  // over two ends of epochs
  const Batch all = read(loader, 0, count);
  const Loader other(options);
  for (const int64_t batch_size : {1, 2, 5, 17, 64}) {
    // From the last batch to the first, each by another reader than the whole.
    for (int64_t first = (count - 1) / batch_size * batch_size; first >= 0; first -= batch_size) {
      const int64_t size = std::min(batch_size, count - first);
      const Batch batch = read(other, first, size);
      ASSERT_TRUE(std::equal(batch.inputs.begin(), batch.inputs.end(),
                             all.inputs.begin() + first * options.context));
      ASSERT_TRUE(std::equal(batch.targets.begin(), batch.targets.end(),
                             all.targets.begin() + first * options.context));
    }
  }
}

TEST_F(LoaderTest, SeedsAndEpochsDiffer) {
  const fs::path path = shard("a", 2000);
  const Loader loader({.paths = {path}, .context = 16, .seed = 1});
  const Loader other({.paths = {path}, .context = 16, .seed = 2});
  const int64_t count = loader.samples_per_epoch();
  const Batch epoch0 = read(loader, 0, count);
  EXPECT_NE(epoch0, read(loader, count, count));
  EXPECT_NE(epoch0, read(other, 0, count));
  EXPECT_FALSE(std::is_sorted(epoch0.inputs.begin(), epoch0.inputs.end()));
}

TEST_F(LoaderTest, WindowsNeverCrossFromShardToShard) {
  // Values jump by 10'000 from shard to shard, so window_starts would see a crossing.
  const Loader loader({.paths = {shard("a", 100), shard("b", 9, 10'000), shard("c", 57, 20'000)},
                       .context = 8,
                       .seed = 5});
  EXPECT_EQ(loader.samples_per_epoch(), 11 + 1 + 6);
  EXPECT_EQ(loader.token_count(), 166);
  for (int64_t epoch = 0; epoch < 30; ++epoch) {
    std::vector<int> per_shard(3);
    for (const int32_t start : window_starts(loader, epoch)) {
      ++per_shard[static_cast<size_t>(start / 10'000)];
    }
    EXPECT_EQ(per_shard, (std::vector<int>{11, 1, 6}));
  }
}

TEST_F(LoaderTest, ReadingAllocatesNothing) {
  const Loader loader({.paths = {shard("a", 5000), shard("b", 999, 0)}, .context = 16});
  std::vector<int32_t> inputs(16 * 12), targets(16 * 12);
  const int64_t before = test::allocation_count();
  for (int64_t sample = 0; sample < 1200; sample += 12) loader.read(sample, inputs, targets);
  EXPECT_EQ(test::allocation_count(), before);
  EXPECT_GT(before, 0) << "allocations are not counted";
}

TEST_F(LoaderTest, FarSampleNumbersAreReached) {
  const Loader loader({.paths = {shard("a", 1000)}, .context = 8});
  EXPECT_EQ(read(loader, INT64_MAX - 4, 4), read(loader, INT64_MAX - 4, 4));
  EXPECT_NE(read(loader, INT64_MAX - 4, 4), read(loader, 0, 4));
}

TEST_F(LoaderTest, ReadsFoldersOfPreparedCorpora) {
  const fs::path text = test::write_file(dir_ / "text", "0123456789abcdefghij");
  prepare({.inputs = {text}, .out_dir = dir_ / "corpus"});
  const auto tokenizer = load_dataset_tokenizer(dir_ / "corpus");
  const auto first_window = [&](Split split) {
    const Loader loader({.paths = {dir_ / "corpus"},
                         .split = split,
                         .context = 1,
                         .order = SampleOrder::kSequential});
    EXPECT_EQ(loader.tokenizer_hash(), tokenizer->hash());
    EXPECT_EQ(loader.vocab_size(), 20);
    for (const TokenShard* shard : loader.shards()) shard->verify();
    const Batch batch = read(loader, 0, 1);
    return tokenizer->decode(batch.inputs) + tokenizer->decode(batch.targets);
  };
  EXPECT_EQ(first_window(Split::kTrain), "01");
  EXPECT_EQ(first_window(Split::kVal), "ij");
}

TEST_F(LoaderTest, IdentitiesAreThoseOfTheTokensNotOfTheFiles) {
  const fs::path a = shard("a", 100);
  const fs::path b = shard("b", 57, 20'000);
  const fs::path copy = shard("copy", 100);
  const auto identities = Loader({.paths = {a, b, copy}, .context = 8}).identities();
  ASSERT_EQ(identities.size(), 3u);
  EXPECT_EQ(identities[0].path, a);
  EXPECT_EQ(identities[1].path, b);
  EXPECT_EQ(identities[1].token_count, 57);
  EXPECT_EQ(identities[0].tokens_checksum, TokenShard(a).tokens_checksum());
  EXPECT_EQ(identities[0].tokens_checksum, identities[2].tokens_checksum);
  EXPECT_NE(identities[0].tokens_checksum, identities[1].tokens_checksum);
}

TEST_F(LoaderTest, AFolderWithoutTheSplitIsNamed) {
  const fs::path text = test::write_file(dir_ / "text", "0123456789");
  prepare({.inputs = {text}, .out_dir = dir_ / "corpus", .val_fraction = 0});
  EXPECT_THAT([&] { Loader({.paths = {dir_ / "corpus"}, .split = Split::kVal, .context = 1}); },
              ThrowsMessage<DataError>(AllOf(HasSubstr("corpus: the folder has no val.bin"),
                                             HasSubstr("gradus data prepare"))));
  EXPECT_THAT([&] { Loader({.paths = {dir_ / "absent"}, .context = 1}); },
              ThrowsMessage<IoError>(HasSubstr("absent: No such file or directory")));
}

TEST_F(LoaderTest, ATokenizerOfAnotherCorpusInTheFolderIsFound) {
  const fs::path text = test::write_file(dir_ / "text", "0123456789");
  prepare({.inputs = {text}, .out_dir = dir_ / "corpus"});
  build_tokenizer("bytes", {})->save(dir_ / "corpus/tokenizer.json");
  EXPECT_THAT([&] { Loader({.paths = {dir_ / "corpus"}, .context = 1}); },
              ThrowsMessage<DataError>(HasSubstr("another tokenizer")));
}

TEST_F(LoaderTest, ShardsOfDifferentTokenizersDoNotMix) {
  const fs::path a = shard("a", 100);
  for (const fs::path& b : {shard("b", 100, 0, kVocab, 2), shard("c", 100, 0, kVocab + 1, 1)}) {
    EXPECT_THAT(
        [&] {
          Loader({.paths = {a, b}, .context = 8});
        },
        ThrowsMessage<DataError>(AllOf(HasSubstr(a.string()), HasSubstr(b.string()),
                                       HasSubstr("different tokenizers"))));
  }
}

TEST_F(LoaderTest, TextShorterThanAContextIsRefusedWithTheNumbers) {
  for (const SampleOrder order : {SampleOrder::kShuffled, SampleOrder::kSequential}) {
    const fs::path a = shard("a", 100);
    for (const int32_t tokens : {0, 1, 63, 64}) {
      const fs::path b = shard("b", tokens);
      EXPECT_THAT(
          [&] {
            Loader({.paths = {a, b}, .context = 64, .order = order});
          },
          ThrowsMessage<DataError>(HasSubstr(b.string() + ": " + std::to_string(tokens) +
                                             " tokens are too few: one sample of context 64")));
    }
    EXPECT_THROW(Loader({.paths = {a}, .context = INT64_MAX, .order = order}), DataError);
  }
}

TEST_F(LoaderTest, ATokenNotBelowTheVocabularyIsFoundWhenItIsReached) {
  const fs::path path = shard("a", 33, 0, 33);
  std::string bytes = test::read_file(path);
  bytes[64 + 2 * 32] = 33;  // the last token, which is only a target
  test::write_file(path, bytes);
  const Loader loader({.paths = {path}, .context = 8, .order = SampleOrder::kSequential});
  const auto message = ThrowsMessage<DataError>(
      HasSubstr(path.string() + ": token id 33 at position 32 is not below the vocabulary of 33"));
  read(loader, 0, 3);
  EXPECT_THAT([&] { read(loader, 0, 4); }, message);
  EXPECT_THAT([&] { loader.shards().front()->verify(); }, message);
}

TEST_F(LoaderTest, MisuseIsRefused) {
  EXPECT_THROW(Loader({.paths = {}, .context = 8}), ConfigError);
  const fs::path path = shard("a", 100);
  EXPECT_THROW(Loader({.paths = {path}, .context = 0}), ConfigError);
  const Loader loader({.paths = {path}, .context = 8});
  std::vector<int32_t> inputs(16), targets(16);
  EXPECT_THROW(loader.read(-1, inputs, targets), ShapeError);
  EXPECT_THROW(loader.read(0, std::span(inputs).first(12), std::span(targets).first(12)),
               ShapeError);
  EXPECT_THROW(loader.read(0, inputs, std::span(targets).first(8)), ShapeError);
  loader.read(0, {}, {});  // B = 0
}

}  // namespace
}  // namespace gradus
