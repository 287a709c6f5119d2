#pragma once

#include <cstdint>
#include <vector>

#include "core/tensor.h"

namespace gradus {

/// How the next token is drawn from logits.
struct SamplingOptions {
  double temperature = 1.0;  ///< logits are divided by it; 0: always the most likely token
  int64_t top_k = 0;         ///< only among the k most likely; 0: all
  double top_p = 1.0;  ///< only among the most likely that together reach p (arXiv:1904.09751)
  uint64_t seed = 1;
};

/// Draws tokens. Draw number i depends on the seed, i and the logits only.
class Sampler {
 public:
  /// Throws ConfigError when an option is out of range.
  explicit Sampler(const SamplingOptions& options);

  /// logits (V) fp32 or fp64. Equal logits rank by id. Throws NumericError when one is NaN.
  int32_t sample(const ConstTensor& logits);

 private:
  struct Candidate {
    double logit;
    int32_t token;
    double weight = 0.0;  ///< its probability, not normalised
  };

  SamplingOptions options_;
  int64_t draws_ = 0;
  std::vector<Candidate> candidates_;
};

}  // namespace gradus
