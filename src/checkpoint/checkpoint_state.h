#pragma once

#include <cstdint>
#include <string>

#include "checkpoint/checkpoint.h"
#include "core/json_fields.h"

namespace gradus {

/// What errors call state.json.
std::string state_name(const Checkpoint& checkpoint);

/// V, from state.json. Throws CheckpointError where that is no vocabulary's size.
int64_t vocabulary_of(const Checkpoint& checkpoint);

/// Throws CheckpointError where state.json does not say that the run's tokenizer has this hash
/// (Tokenizer::hash()).
void check_tokenizer_hash(const Checkpoint& checkpoint, uint64_t hash);

}  // namespace gradus
