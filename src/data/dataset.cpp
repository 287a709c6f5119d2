#include "data/dataset.h"

#include <array>
#include <system_error>

#include "core/error.h"
#include "core/input_file.h"

namespace gradus {

namespace fs = std::filesystem;

std::string_view split_file_name(Split split) {
  return split == Split::kTrain ? "train.bin" : "val.bin";
}

bool has_split(const fs::path& path, Split split) {
  std::error_code ignored;  // whatever keeps a path from being looked at, there is no shard to use
  const bool folder = fs::is_directory(path, ignored);
  return fs::exists(folder ? path / split_file_name(split) : path, ignored);
}

bool is_token_shard(const fs::path& path) {
  const InputFile file(path);
  std::array<char, TokenShardHeader::kMagic.size()> begin{};
  if (file.size() < static_cast<int64_t>(begin.size())) return false;
  file.read(0, begin);
  return begin == TokenShardHeader::kMagic;
}

fs::path shard_path(const fs::path& path, Split split) {
  std::error_code reason;
  const fs::file_status status = fs::status(path, reason);
  if (!fs::exists(status)) {
    throw IoError("{}: {}; expected a token shard or a folder written by gradus data prepare",
                  path.string(), reason ? reason.message() : "not found");
  }
  if (!fs::is_directory(status)) return path;
  if (!has_split(path, split)) {
    throw DataError("{}: the folder has no {}; write it with gradus data prepare --out {} FILE…{}",
                    path.string(), split_file_name(split), path.string(),
                    split == Split::kVal ? " and a validation fraction above 0" : "");
  }
  return path / split_file_name(split);
}

void check_prepared_together(const fs::path& folder) {
  if (!has_split(folder, Split::kTrain) || !has_split(folder, Split::kVal)) return;
  const TokenShard train(shard_path(folder, Split::kTrain));
  const TokenShard val(shard_path(folder, Split::kVal));
  if (train.corpus() == val.corpus()) return;
  throw DataError(
      "{} and {} were not prepared together: gradus data prepare was interrupted, or one of them "
      "was replaced; prepare the folder again, or name the files themselves in data.train and "
      "data.val",
      train.path().string(), val.path().string());
}

void check_tokenizer(const TokenShard& shard, const Tokenizer& tokenizer,
                     const fs::path& tokenizer_path) {
  if (shard.tokenizer_hash() != tokenizer.hash() || shard.vocab_size() != tokenizer.vocab_size()) {
    throw DataError(
        "{} was written with another tokenizer (hash {:016x}, vocabulary {}) than {} (hash "
        "{:016x}, vocabulary {}); prepare the folder again",
        shard.path().string(), shard.tokenizer_hash(), shard.vocab_size(), tokenizer_path.string(),
        tokenizer.hash(), tokenizer.vocab_size());
  }
}

fs::path tokenizer_path(const fs::path& path) {
  std::error_code ignored;  // opening the file will say what is wrong with the path
  return (fs::is_directory(path, ignored) ? path : path.parent_path()) / kTokenizerFileName;
}

std::unique_ptr<Tokenizer> load_dataset_tokenizer(const fs::path& path) {
  return load_tokenizer(tokenizer_path(path));
}

}  // namespace gradus
