#include "checkpoint/checkpoint_state.h"

#include <limits>

#include "checkpoint/checkpoint_writer.h"

namespace gradus {

std::string state_name(const Checkpoint& checkpoint) {
  return (checkpoint.path() / kStateFile).string();
}

int64_t vocabulary_of(const Checkpoint& checkpoint) {
  const std::string name = state_name(checkpoint);
  return JsonFields<CheckpointError>(checkpoint.state(), name)
      .integer("vocabulary", 1, std::numeric_limits<int32_t>::max());
}

void check_tokenizer_hash(const Checkpoint& checkpoint, uint64_t hash) {
  const std::string name = state_name(checkpoint);
  const JsonFields<CheckpointError> fields(checkpoint.state(), name);
  const std::string expected = fmt::format("{:016x}", hash);
  if (fields.text("tokenizer_hash") != expected) {
    fields.refuse("tokenizer_hash", fmt::format("\"{}\", which is that of the checkpoint's {}",
                                                expected, kTokenizerFile));
  }
}

}  // namespace gradus
