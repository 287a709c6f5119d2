// The configuration that is verified: the user's, small.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "train/verify.h"

namespace gradus {
namespace {

/// The largest divisor of `value` up to `most`, at least 1.
int64_t divisor_up_to(int64_t value, int64_t most) {
  int64_t divisor = std::clamp<int64_t>(most, 1, value);
  while (value % divisor != 0) --divisor;
  return divisor;
}

}  // namespace

Config shrink_for_verification(const Config& config, int ranks, std::vector<std::string>& rule) {
  Config small = config;
  const auto lower = [&](const char* key, int64_t& value, int64_t most) {
    if (value <= most) return;
    rule.push_back(fmt::format("{} {} -> {}", key, value, most));
    value = most;
  };
  ModelConfig& model = small.model;
  const double mlp_ratio =
      static_cast<double>(resolved_mlp_width(model)) / static_cast<double>(model.channels);
  lower("model.layers", model.layers, std::max(4, ranks));
  const int64_t head_size = std::min<int64_t>(model.channels / model.heads, 4);
  const int64_t tp = small.parallel.tp;
  if (model.heads > 16) {  // to a divisor of theirs that the run's own tp divides
    const int64_t fewer = model.heads % tp == 0 ? tp * divisor_up_to(model.heads / tp, 16 / tp)
                                                : divisor_up_to(model.heads, 16);
    lower("model.heads", model.heads, fewer);
  }
  lower("model.channels", model.channels, model.heads * head_size);
  // A multiple of the heads: what cuts heads then cuts the MLP too.
  const int64_t width =
      std::max<int64_t>(1, std::llround(mlp_ratio * static_cast<double>(head_size))) * model.heads;
  if (resolved_mlp_width(config.model) != width) {
    rule.push_back(
        fmt::format("model.mlp_width {} -> {}", resolved_mlp_width(config.model), width));
  }
  model.mlp_width = width;
  lower("model.context", model.context, (24 + tp - 1) / tp * tp);
  int64_t vocabulary = model.vocab_size.value_or(std::numeric_limits<int64_t>::max());
  if (vocabulary > 131) {
    rule.push_back(fmt::format("model.vocab_size {} -> 131", model.vocab_size
                                                                 ? std::to_string(vocabulary)
                                                                 : std::string("auto")));
    vocabulary = 131;
  }
  model.vocab_size = vocabulary;
  lower("train.micro_batch", small.train.micro_batch, 2);
  const int64_t batch = small.train.micro_batch * 2 * ranks;
  rule.push_back(fmt::format("train.global_batch {} -> {}", small.train.global_batch, batch));
  small.train.global_batch = batch;
  rule.emplace_back("random tokens, one thread a rank");
  return small;
}

}  // namespace gradus
