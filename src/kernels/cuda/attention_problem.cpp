#include "kernels/cuda/attention_problem.h"

#include <climits>

#include "kernels/cuda/check.h"

namespace gradus::cuda {

void check_attention(const char* operation, const AttentionProblem& p) {
  const auto require = [&](bool condition, const std::string& what) {
    if (!condition) throw_shape_error(std::string(operation) + ": " + what);
  };
  const auto text = [](int value) { return std::to_string(value); };
  require(p.batch >= 0 && p.queries >= 0 && p.keys >= 0 && p.heads >= 0,
          "sizes may not be negative");
  require(p.kv_heads > 0 && p.heads % p.kv_heads == 0,
          text(p.heads) + " heads are no multiple of " + text(p.kv_heads) + " kv heads");
  require(p.head_size >= 1 && p.head_size <= 256,
          "head size " + text(p.head_size) + " is not within 1 … 256");
  require(p.scale > 0, "scale " + std::to_string(p.scale) + " is not positive");
  require(p.window >= 0 && p.query_position >= 0 && p.key_position >= 0,
          "window and positions may not be negative");
  require(int64_t{p.query_position} + p.queries + p.window < INT_MAX &&
              int64_t{p.key_position} + p.keys < INT_MAX,
          "positions past 2^31 are not served");
  require(p.batch < 65536 && p.heads < 65536,
          "batch " + text(p.batch) + " or heads " + text(p.heads) + " past 65535");
}

int padded_head_size(int head_size) {
  for (const int padded : {64, 96, 128}) {
    if (head_size <= padded) return padded;
  }
  return 256;
}

}  // namespace gradus::cuda
