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

/// A path that is not there is the most common mistake of all, and loading would name a file in it.
void require_present(const char* key, const std::vector<std::string>& paths) {
  for (const std::string& path : paths) {
    std::error_code error;
    if (std::filesystem::exists(path, error)) continue;
    throw DataError("{}: {} does not exist; gradus data prepare --out {} FILE makes it", key, path,
                    path);
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
  require_present("data.train", config.data.train);
  if (config.eval.every > 0) require_present("data.val", config.data.val);
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
  std::vector<const TokenShard*> shards = data.train.shards();
  if (data.val) std::ranges::copy(data.val->shards(), std::back_inserter(shards));
  data.verification = std::make_unique<ShardVerification>(std::move(shards));
  data.large_vocabulary = vocabulary_warning(config, *data.tokenizer);
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
  require_present("data.train", config.data.train);
  return load_dataset_tokenizer(config.data.train.front())->vocab_size();
}

}  // namespace gradus
