#include "infer/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "core/rng.h"

namespace gradus {
namespace {

/// Uniform in [0, 1), 53 bits.
double uniform(uint64_t seed, int64_t draw) {
  const auto words = philox4x32(rng_key(seed, rng_site("sample")), 0, static_cast<uint64_t>(draw));
  const uint64_t bits = (uint64_t{words[0]} << 32 | words[1]) >> 11;
  return static_cast<double>(bits) / 9007199254740992.0;
}

}  // namespace

Sampler::Sampler(const SamplingOptions& options) : options_(options) {
  if (!(options.temperature >= 0.0) || std::isinf(options.temperature)) {
    throw ConfigError("temperature {} is not a number of 0 or more", options.temperature);
  }
  if (options.top_k < 0) throw ConfigError("top-k {} is below 0", options.top_k);
  if (!(options.top_p > 0.0 && options.top_p <= 1.0)) {
    throw ConfigError("top-p {} is not in (0, 1]", options.top_p);
  }
}

int32_t Sampler::sample(const ConstTensor& logits) {
  candidates_.clear();
  for (int64_t i = 0; i < logits.numel(); ++i) {
    const double logit =
        logits.dtype() == DType::fp64 ? logits.as<double>()[i] : logits.as<float>()[i];
    if (std::isnan(logit) || logit == std::numeric_limits<double>::infinity()) {
      throw NumericError(
          "the logit of token {} is {}: the model has blown up; generate from an earlier "
          "checkpoint",
          i, std::isnan(logit) ? "not a number" : fmt::format("{}", logit));
    }
    candidates_.push_back({.logit = logit, .token = static_cast<int32_t>(i)});
  }
  const auto likelier = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
  };
  const Candidate best = *std::ranges::min_element(candidates_, likelier);
  if (options_.temperature == 0.0) return best.token;

  // Only a limit needs an order: drawing from all takes them as they come, by id.
  if (options_.top_k > 0 && options_.top_k < static_cast<int64_t>(candidates_.size())) {
    std::ranges::partial_sort(candidates_, candidates_.begin() + options_.top_k, likelier);
    candidates_.resize(static_cast<size_t>(options_.top_k));
  } else if (options_.top_p < 1.0) {
    std::ranges::sort(candidates_, likelier);
  }
  double total = 0.0;
  for (Candidate& candidate : candidates_) {
    candidate.weight = std::exp((candidate.logit - best.logit) / options_.temperature);
    total += candidate.weight;
  }
  if (options_.top_p < 1.0) {
    double kept = 0.0;
    size_t count = 0;
    while (count < candidates_.size() && (count == 0 || kept < options_.top_p * total)) {
      kept += candidates_[count++].weight;
    }
    candidates_.resize(count);
    total = kept;
  }
  double left = uniform(options_.seed, draws_++) * total;
  int32_t drawn = best.token;
  for (const Candidate& candidate : candidates_) {
    if (candidate.weight == 0.0) continue;  // never drawn, not even where rounding leaves a rest
    drawn = candidate.token;
    left -= candidate.weight;
    if (left < 0.0) break;
  }
  return drawn;
}

}  // namespace gradus
