#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/loader.h"
#include "data/shard_verification.h"
#include "data/tokenizer.h"
#include "train/config.h"
#include "train/data_identity.h"

namespace gradus {

/// A run's data: what it trains and evaluates on.
struct RunData {
  std::unique_ptr<Tokenizer> tokenizer;
  Loader train;
  std::optional<Loader> val;
  std::string no_val;                      ///< why there is no val, when the user may not expect it
  std::vector<std::string> warnings = {};  ///< what is allowed and hardly meant
  /// Of the shards of train and val. What is kept of a run comes after its finish().
  std::unique_ptr<ShardVerification> verification;

  /// Verifies small shards, and begins to verify the others. Throws DataError, IoError or
  /// ConfigError.
  static RunData open(const Config& config);

  DataIdentity identity() const { return data_identity(train, val ? &*val : nullptr); }
};

/// What to say where model.vocab_size leaves many more ids unused than padding does: more than 128
/// for each tensor-parallel rank, to which vocabularies are commonly padded, and more than a
/// quarter of the tokenizer's. Empty otherwise, and where the key is auto.
std::string vocabulary_warning(const Config& config, const Tokenizer& tokenizer);

/// The same before a run, of a tokenizer that is loaded at need; empty where there is no data yet.
std::string vocabulary_warning(const Config& config);

/// V of a run: the tokenizer's, or model.vocab_size when that is set. Opens the data only when it
/// is auto.
int64_t run_vocabulary(const Config& config);

}  // namespace gradus
