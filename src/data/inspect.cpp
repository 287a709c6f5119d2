#include "data/inspect.h"

#include <algorithm>
#include <memory>

#include "data/dataset.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;

ShardInfo inspect_shard(const fs::path& path, const Tokenizer* tokenizer, int64_t first_tokens) {
  const TokenShard shard(path);
  if (tokenizer != nullptr) check_tokenizer(shard, *tokenizer, tokenizer_path(path));
  shard.verify();
  ShardInfo info = {.path = path,
                    .token_type = shard.token_type(),
                    .token_count = shard.token_count(),
                    .vocab_size = shard.vocab_size(),
                    .tokenizer_hash = shard.tokenizer_hash(),
                    .file_size = shard.file_size()};
  info.first_tokens.resize(
      static_cast<size_t>(std::clamp(first_tokens, int64_t{0}, shard.token_count())));
  shard.copy(0, info.first_tokens);
  if (tokenizer != nullptr) info.first_text = tokenizer->decode(info.first_tokens);
  return info;
}

}  // namespace

DatasetInfo inspect(const fs::path& path, int64_t first_tokens) {
  DatasetInfo info;
  std::vector<fs::path> shards = {shard_path(path, Split::kTrain)};
  const bool folder = fs::is_directory(path);
  if (folder && has_split(path, Split::kVal)) shards.push_back(shard_path(path, Split::kVal));
  if (folder) check_prepared_together(path);
  std::unique_ptr<Tokenizer> tokenizer;
  if (folder || fs::exists(tokenizer_path(path))) tokenizer = load_dataset_tokenizer(path);
  if (tokenizer) info.tokenizer = tokenizer->kind();
  for (const fs::path& shard : shards) {
    info.shards.push_back(inspect_shard(shard, tokenizer.get(), first_tokens));
  }
  return info;
}

}  // namespace gradus
