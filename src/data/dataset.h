#pragma once

#include <filesystem>
#include <memory>
#include <string_view>

#include "data/token_shard.h"
#include "data/tokenizer.h"

namespace gradus {

// A prepared corpus is a folder with a tokenizer.json, a train.bin and, unless the corpus was
// prepared without validation text, a val.bin.

enum class Split { kTrain, kVal };

/// "train.bin" or "val.bin".
std::string_view split_file_name(Split split);

/// The shard that `path` stands for: `path` itself when it is a file, the split's file when it is
/// the folder of a prepared corpus. Throws IoError when there is nothing at `path` and DataError
/// when the folder lacks the split.
std::filesystem::path shard_path(const std::filesystem::path& path, Split split);

/// Whether the file begins as a token shard does. Throws IoError when it cannot be read.
bool is_token_shard(const std::filesystem::path& path);

/// Whether shard_path would find a shard.
bool has_split(const std::filesystem::path& path, Split split);

/// Throws DataError when the folder holds the training text of one corpus and the validation text
/// of another, as a preparation leaves them that was killed between the two; IoError and DataError
/// for shards that cannot be read.
void check_prepared_together(const std::filesystem::path& folder);

/// Throws DataError, naming both files, unless the shard was written with this tokenizer.
void check_tokenizer(const TokenShard& shard, const Tokenizer& tokenizer,
                     const std::filesystem::path& tokenizer_path);

/// The tokenizer of a prepared corpus, from its folder or from one of the shards in it. Throws
/// IoError when tokenizer.json is missing and DataError when it is damaged.
std::unique_ptr<Tokenizer> load_dataset_tokenizer(const std::filesystem::path& path);

/// Where load_dataset_tokenizer looks.
std::filesystem::path tokenizer_path(const std::filesystem::path& path);

}  // namespace gradus
