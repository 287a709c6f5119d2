#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "data/token_shard.h"

namespace gradus {

struct PrepareOptions {
  /// UTF-8 text files, whose texts are joined in this order, with nothing between them.
  std::vector<std::filesystem::path> inputs;
  std::filesystem::path out_dir;
  std::string tokenizer = "char";  ///< one of tokenizer_kinds()
  /// When set, the tokenizer is this tokenizer.json and `tokenizer` is not looked at. Corpora that
  /// are to be trained on together need one vocabulary.
  std::filesystem::path tokenizer_file = {};
  /// The share of characters, at the end of the joined text, that becomes validation text; in [0,
  /// 1).
  double val_fraction = 0.1;
  /// Told, before anything is written, what is unusual about the text and what will be replaced.
  std::function<void(const std::string&)> note = [](const std::string&) {};
  /// Asked now and then: whether to give up.
  std::function<bool()> interrupted = [] { return false; };
};

struct PrepareResult {
  std::string tokenizer;  ///< its kind
  int64_t vocab_size = 0;
  uint64_t tokenizer_hash = 0;
  TokenType token_type = TokenType::kU16;
  int64_t bytes = 0;       ///< of text read
  int64_t characters = 0;  ///< Unicode code points read
  int64_t train_tokens = 0;
  int64_t val_tokens = 0;
};

/// Writes out_dir/tokenizer.json, val.bin, only for val_fraction > 0, and train.bin, last. All of
/// them are completed under temporary names before the first takes its place, so that a failure,
/// the disk filling up included, leaves an older corpus in the folder as it was. A process that is
/// killed between the renames leaves a folder that check_prepared_together or check_tokenizer
/// refuses; what it left is removed by the next preparation. Runs that have the older files open
/// keep them. Holds the folder's lock meanwhile.
///
/// Empty files are skipped. Memory use does not grow with the text, which is read twice, by the
/// piece. Throws ConfigError for no input, an unknown tokenizer or a fraction outside [0, 1);
/// IoError for files that cannot be read or written, a folder in use, and an interruption;
/// DataError for no text at all, invalid UTF-8 (whichever the tokenizer), a character that
/// tokenizer_file lacks, a text too short to be split, and one that changes while it is read.
PrepareResult prepare(const PrepareOptions& options);

}  // namespace gradus
