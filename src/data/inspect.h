#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "data/token_shard.h"

namespace gradus {

struct ShardInfo {
  std::filesystem::path path;
  TokenType token_type = TokenType::kU16;
  int64_t token_count = 0;
  int64_t vocab_size = 0;
  uint64_t tokenizer_hash = 0;
  int64_t file_size = 0;                   ///< bytes, header included
  std::vector<int32_t> first_tokens = {};  ///< at most the number asked for
  /// first_tokens as text, where a tokenizer.json lies beside the shard. A byte-level tokenizer may
  /// end it inside a code point.
  std::optional<std::string> first_text = {};
};

struct DatasetInfo {
  std::optional<std::string> tokenizer;  ///< kind; empty for a shard without a tokenizer.json
  std::vector<ShardInfo> shards;         ///< train, then val, of a folder; one for a single file
};

/// Describes a shard, or the folder of a prepared corpus, after reading it whole: header, every id
/// and the checksum. Throws IoError, and DataError when anything in it is damaged or does not
/// belong together.
DatasetInfo inspect(const std::filesystem::path& path, int64_t first_tokens = 64);

}  // namespace gradus
