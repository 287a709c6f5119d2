#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "data/dataset.h"
#include "data/permutation.h"
#include "data/token_shard.h"

namespace gradus {

enum class SampleOrder {
  kShuffled,    ///< training: random window boundaries and order, fresh in every epoch
  kSequential,  ///< evaluation: windows from the first token on, in the order of the text
};

struct LoaderOptions {
  /// Shards, or folders of prepared corpora, of one tokenizer. At least one.
  std::vector<std::filesystem::path> paths;
  Split split = Split::kTrain;  ///< which shard of a folder
  int64_t context = 0;          ///< T, tokens of input per sample
  uint64_t seed = 0;            ///< of the shuffled order
  SampleOrder order = SampleOrder::kShuffled;
};

/// What tells the tokens of one shard from those of another.
struct ShardIdentity {
  std::filesystem::path path;    ///< of the shard's file
  int64_t token_count = 0;       ///< in the shard
  uint64_t tokens_checksum = 0;  ///< XXH3-64 of the tokens as they are stored
};

/// The stream of training samples as a pure function of (seed, epoch, index). It has no position:
/// sample g, counted over the whole run, is sample g mod N of epoch g div N, with N =
/// samples_per_epoch(), whoever asks and in whichever order. Ranks and micro-batches take any
/// ranges they like, and a resumed run only has to know how many samples were used.
///
/// A sample is a window of T + 1 consecutive tokens of one shard: inputs are its first T tokens and
/// targets its last T. Windows of an epoch follow each other at distance T, so that no token is a
/// target twice. With n tokens, W = floor((n - 1) / T) windows fit a shard:
///  - sequential: these W, and the less than T tokens behind them are left out;
///  - shuffled: max(W - 1, 1), which for W > 1 leaves more than T positions to start from; the
///  start
///    is drawn uniformly from them, for every epoch and shard, so that window boundaries fall
///    everywhere over the epochs. The windows of all shards are visited in one random order.
class Loader {
 public:
  /// Opens and checks every shard. Throws ConfigError for no path or T < 1; IoError; DataError
  /// when a shard is damaged, shorter than T + 1 tokens, or of another tokenizer than its folder's
  /// tokenizer.json or the first shard.
  explicit Loader(const LoaderOptions& options);

  int64_t context() const { return context_; }
  int64_t samples_per_epoch() const { return permutation_.size(); }
  /// Tokens in all shards.
  int64_t token_count() const;
  /// The unpadded V: ids are below it.
  int64_t vocab_size() const { return shards_.front().shard.vocab_size(); }
  /// Tokenizer::hash() of the tokenizer that wrote the shards.
  uint64_t tokenizer_hash() const { return shards_.front().shard.tokenizer_hash(); }

  /// Fills inputs and targets, both (B, T), with samples first_sample … first_sample + B - 1, where
  /// first_sample >= 0 and B follows from the size. Targets are token ids; consumers treat a
  /// negative target as one without loss (kIgnoredTarget), which this loader never writes. Throws
  /// DataError for an id not below the vocabulary and ShapeError for spans that are not (B, T).
  /// Allocates only to throw. Safe from several threads at once.
  void read(int64_t first_sample, std::span<int32_t> inputs, std::span<int32_t> targets) const;

  /// The same for shards of the same tokens in the same order; from their headers.
  uint64_t checksum() const;
  /// Of each shard, in the order of the paths; from their headers.
  std::vector<ShardIdentity> identities() const;

  /// In the order of the paths; valid as long as this, also when it is moved.
  std::vector<const TokenShard*> shards() const;

 private:
  struct Shard {
    TokenShard shard;
    int64_t first_window;  ///< windows of the shards before
    int64_t windows;
  };
  struct Place {
    const Shard* shard;
    int64_t first_token;
  };

  static std::vector<Shard> open(const LoaderOptions& options);
  Place place_of(int64_t sample) const;

  int64_t context_;
  SampleOrder order_;
  std::vector<Shard> shards_;
  RandomPermutation permutation_;
  uint64_t shift_key_;
};

}  // namespace gradus
