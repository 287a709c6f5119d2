#include "data/loader.h"

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "core/rng.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;

TokenShard open_shard(const fs::path& path, Split split) {
  TokenShard shard(shard_path(path, split));
  if (fs::is_directory(path)) {
    check_prepared_together(path);
    check_tokenizer(shard, *load_dataset_tokenizer(path), tokenizer_path(path));
  }
  return shard;
}

/// How many windows an epoch takes from a shard.
int64_t windows_in(const TokenShard& shard, int64_t context, SampleOrder order) {
  // Without context + 1, which a context near 2^63 would overflow.
  if (shard.token_count() <= context) {
    throw DataError(
        "{}: {} tokens are too few: one sample of context {} takes the context and one more; use "
        "more text or a shorter model.context",
        shard.path().string(), shard.token_count(), context);
  }
  const int64_t fitting = (shard.token_count() - 1) / context;
  return order == SampleOrder::kSequential ? fitting : std::max(fitting - 1, int64_t{1});
}

}  // namespace

std::vector<Loader::Shard> Loader::open(const LoaderOptions& options) {
  if (options.paths.empty()) throw ConfigError("no token shard or prepared folder to load");
  if (options.context < 1) {
    throw ConfigError("a context of {} tokens; expected at least 1", options.context);
  }
  std::vector<Shard> shards;
  int64_t first_window = 0;
  for (const fs::path& path : options.paths) {
    TokenShard shard = open_shard(path, options.split);
    const TokenShard& first = shards.empty() ? shard : shards.front().shard;
    if (shard.tokenizer_hash() != first.tokenizer_hash() ||
        shard.vocab_size() != first.vocab_size()) {
      throw DataError(
          "{} (tokenizer hash {:016x}, vocabulary {}) and {} (tokenizer hash {:016x}, vocabulary "
          "{}) were written with different tokenizers; prepare them with the same tokenizer.json",
          first.path().string(), first.tokenizer_hash(), first.vocab_size(), shard.path().string(),
          shard.tokenizer_hash(), shard.vocab_size());
    }
    const int64_t windows = windows_in(shard, options.context, options.order);
    shards.push_back({std::move(shard), first_window, windows});
    first_window += windows;
  }
  return shards;
}

Loader::Loader(const LoaderOptions& options)
    : context_(options.context),
      order_(options.order),
      shards_(open(options)),
      permutation_(rng_key(options.seed, rng_site("data.order")),
                   shards_.back().first_window + shards_.back().windows),
      shift_key_(rng_key(options.seed, rng_site("data.shift"))) {}

uint64_t Loader::checksum() const {
  uint64_t checksum = 0;
  for (const Shard& shard : shards_) {
    checksum = rng_key(checksum ^ shard.shard.tokens_checksum(), rng_site("data.checksum"));
  }
  return checksum;
}

std::vector<ShardIdentity> Loader::identities() const {
  std::vector<ShardIdentity> identities;
  for (const Shard& shard : shards_) {
    identities.push_back({.path = shard.shard.path(),
                          .token_count = shard.shard.token_count(),
                          .tokens_checksum = shard.shard.tokens_checksum()});
  }
  return identities;
}

int64_t Loader::token_count() const {
  int64_t count = 0;
  for (const Shard& shard : shards_) count += shard.shard.token_count();
  return count;
}

Loader::Place Loader::place_of(int64_t sample) const {
  const int64_t epoch = sample / samples_per_epoch();
  const int64_t index = sample % samples_per_epoch();
  const bool shuffled = order_ == SampleOrder::kShuffled;
  const int64_t window = shuffled ? permutation_(epoch, index) : index;
  const auto behind =
      std::upper_bound(shards_.begin(), shards_.end(), window,
                       [](int64_t w, const Shard& shard) { return w < shard.first_window; });
  const Shard& shard = *std::prev(behind);
  int64_t shift = 0;
  if (shuffled) {
    const int64_t starts = shard.shard.token_count() - shard.windows * context_;
    const auto number = static_cast<uint64_t>(&shard - shards_.data());
    const auto words = philox4x32(shift_key_, static_cast<uint64_t>(epoch), number);
    // 64 random bits: the bias of the remainder is below starts / 2^64.
    const uint64_t bits = uint64_t{words[1]} << 32 | words[0];
    shift = static_cast<int64_t>(bits % static_cast<uint64_t>(starts));
  }
  return {&shard, shift + (window - shard.first_window) * context_};
}

void Loader::read(int64_t first_sample, std::span<int32_t> inputs,
                  std::span<int32_t> targets) const {
  const auto context = static_cast<size_t>(context_);
  if (first_sample < 0 || inputs.size() % context != 0 || inputs.size() != targets.size()) {
    throw ShapeError(
        "samples from {} into {} inputs and {} targets: expected a first sample >= 0 and the same "
        "multiple of the context {} twice",
        first_sample, inputs.size(), targets.size(), context_);
  }
  for (size_t row = 0; row < inputs.size(); row += context, ++first_sample) {
    const Place place = place_of(first_sample);
    const auto in = inputs.subspan(row, context);
    const auto target = targets.subspan(row, context);
    place.shard->shard.copy(place.first_token, in);
    std::copy(in.begin() + 1, in.end(), target.begin());
    place.shard->shard.copy(place.first_token + context_, target.last(1));
  }
}

std::vector<const TokenShard*> Loader::shards() const {
  std::vector<const TokenShard*> shards;
  for (const Shard& shard : shards_) shards.push_back(&shard.shard);
  return shards;
}

}  // namespace gradus
