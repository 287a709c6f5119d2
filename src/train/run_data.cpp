#include "train/run_data.h"

#include <algorithm>
#include <iterator>
#include <vector>

#include "core/counted.h"
#include "core/error.h"
#include "data/dataset.h"

namespace gradus {
namespace {

std::vector<std::filesystem::path> paths_of(const std::vector<std::string>& names) {
  return {names.begin(), names.end()};
}

/// Where the tokens of a text may go: beside it, under its name.
std::string folder_for(const std::filesystem::path& text) {
  return text.has_extension() ? std::filesystem::path(text).replace_extension().string()
                              : text.string() + ".data";
}

/// A path that is not there, and a text in the place of its tokens, are the most common mistakes of
/// all, and loading would name a file beside it.
void require_prepared(const char* key, const std::vector<std::string>& paths, Split split) {
  for (const std::string& path : paths) {
    std::error_code error;
    if (!std::filesystem::exists(path, error)) {
      throw DataError("{}: {} does not exist; gradus data prepare --out {} FILE makes it", key,
                      path, path);
    }
    const std::filesystem::path shard = shard_path(path, split);
    if (shard != path || is_token_shard(shard)) continue;  // what is in a folder, its loader checks
    throw DataError(
        "{0}: {1} is not a prepared folder, but a file that is no token shard; if it is text, "
        "prepare it with gradus data prepare --out {2} {1} and set {0}=[{2}]",
        key, path, folder_for(path));
  }
}

/// The first of `shards` that holds the tokens of `shard`, if not itself.
const TokenShard* same_tokens(const std::vector<const TokenShard*>& shards,
                              const TokenShard& shard) {
  const auto same = std::ranges::find_if(shards, [&](const TokenShard* other) {
    return other->tokens_checksum() == shard.tokens_checksum() &&
           other->token_count() == shard.token_count();
  });
  return same == shards.end() || *same == &shard ? nullptr : *same;
}

/// The same text twice is seldom meant.
void note_repeated_text(RunData& data) {
  const std::vector<const TokenShard*> train = data.train.shards();
  for (const TokenShard* shard : train) {
    if (const TokenShard* const same = same_tokens(train, *shard); same != nullptr) {
      data.warnings.push_back(
          fmt::format("data.train: {} holds the same tokens as {}: an epoch has them twice",
                      shard->path().string(), same->path().string()));
    }
  }
  if (!data.val) return;
  for (const TokenShard* shard : data.val->shards()) {
    if (const TokenShard* const same = same_tokens(train, *shard); same != nullptr) {
      data.warnings.push_back(fmt::format(
          "data.val: {} holds the same tokens as {}, which is trained on: its loss is no "
          "validation loss",
          shard->path().string(), same->path().string()));
    }
  }
}

/// Opens what is evaluated on: data.val, or the validation shards beside the training ones that are
/// long enough for a sequence. Leaves none, and the reason, where there are none.
void open_validation(const Config& config, RunData& data) {
  if (config.eval.every == 0) return;
  std::vector<std::filesystem::path> paths = paths_of(config.data.val);
  if (paths.empty()) {
    for (const std::filesystem::path& path : paths_of(config.data.train)) {
      if (!std::filesystem::is_directory(path) || !has_split(path, Split::kVal)) continue;
      const int64_t tokens = TokenShard(shard_path(path, Split::kVal)).token_count();
      if (tokens > config.model.context) {
        paths.push_back(path);
      } else {
        data.no_val =
            fmt::format("the validation text of {} has {}, fewer than a sequence of {}",
                        path.string(), counted(tokens, "token"), config.model.context + 1);
      }
    }
    if (paths.empty() && data.no_val.empty()) {
      data.no_val = "data.val is empty and data.train has no validation text";
    }
  }
  if (paths.empty()) return;
  data.val.emplace(LoaderOptions{.paths = paths,
                                 .split = Split::kVal,
                                 .context = config.model.context,
                                 .order = SampleOrder::kSequential});
}

}  // namespace

RunData RunData::open(const Config& config) {
  require_prepared("data.train", config.data.train, Split::kTrain);
  if (config.eval.every > 0) require_prepared("data.val", config.data.val, Split::kVal);
  RunData data{
      .tokenizer = load_dataset_tokenizer(config.data.train.front()),
      .train = Loader({.paths = paths_of(config.data.train),
                       .split = Split::kTrain,
                       .context = config.model.context,
                       .seed = static_cast<uint64_t>(config.seed)}),
  };
  open_validation(config, data);
  const std::string_view asked = to_string(config.data.tokenizer);
  if (config.data.tokenizer != TokenizerChoice::automatic && data.tokenizer->kind() != asked) {
    throw ConfigError(
        "data.tokenizer is {}, and {} was prepared with {}: prepare it again or change the key",
        asked, config.data.train.front(), data.tokenizer->kind());
  }
  if (data.val && data.val->tokenizer_hash() != data.train.tokenizer_hash()) {
    throw DataError(
        "data.val was prepared with another tokenizer than data.train ({}): prepare both "
        "with one tokenizer.json",
        config.data.train.front());
  }
  const int64_t V = data.tokenizer->vocab_size();
  if (config.model.vocab_size && *config.model.vocab_size < V) {
    throw ConfigError("model.vocab_size {} is below the {} of {}: use auto or at least {}",
                      *config.model.vocab_size, counted(V, "token"), config.data.train.front(), V);
  }
  if (std::string large = vocabulary_warning(config, *data.tokenizer); !large.empty()) {
    data.warnings.push_back(std::move(large));
  }
  note_repeated_text(data);
  std::vector<const TokenShard*> shards = data.train.shards();
  if (data.val) std::ranges::copy(data.val->shards(), std::back_inserter(shards));
  data.verification = std::make_unique<ShardVerification>(std::move(shards));
  return data;
}

std::string vocabulary_warning(const Config& config, const Tokenizer& tokenizer) {
  constexpr int64_t kPadding = 128;
  const int64_t V = tokenizer.vocab_size();
  const int64_t asked = config.model.vocab_size.value_or(V);
  const int64_t spare = std::max(kPadding * config.parallel.tp, V / 4);
  if (asked - V <= spare) return {};
  return fmt::format(
      "model.vocab_size {} is far above the {} of {}: the other {} are trained for nothing; "
      "write auto, or {} to {} with room or padding",
      asked, counted(V, "token"), config.data.train.front(), asked - V, V, V + spare);
}

std::string vocabulary_warning(const Config& config) {
  const std::filesystem::path folder = config.data.train.front();
  std::error_code error;
  if (!config.model.vocab_size || !std::filesystem::exists(tokenizer_path(folder), error))
    return {};
  return vocabulary_warning(config, *load_dataset_tokenizer(folder));
}

int64_t run_vocabulary(const Config& config) {
  if (config.model.vocab_size) return *config.model.vocab_size;
  require_prepared("data.train", config.data.train, Split::kTrain);
  return load_dataset_tokenizer(config.data.train.front())->vocab_size();
}

}  // namespace gradus
