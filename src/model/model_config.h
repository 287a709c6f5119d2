#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "kernels/attention.h"

namespace gradus {

/// The names used in YAML, in the enum's order; so for every enum of the configuration.
constexpr std::array<std::string_view, 2> enum_names(AttentionKind) { return {"flash", "plain"}; }
constexpr std::string_view to_string(AttentionKind kind) {
  return enum_names(kind)[static_cast<size_t>(kind)];
}

/// The named sets of dtypes a run can compute in; core/precision.h says what each consists of.
enum class PrecisionPreset : uint8_t { fp32, bf16, fp16, bf16_lean, fp64 };
constexpr std::array<std::string_view, 5> enum_names(PrecisionPreset) {
  return {"fp32", "bf16", "fp16", "bf16_lean", "fp64"};
}
constexpr std::string_view to_string(PrecisionPreset preset) {
  return enum_names(preset)[static_cast<size_t>(preset)];
}

/// Which activations backward recomputes instead of keeping them from forward.
enum class Recompute : uint8_t { none, selective, full };
constexpr std::array<std::string_view, 3> enum_names(Recompute) {
  return {"none", "selective", "full"};
}
constexpr std::string_view to_string(Recompute recompute) {
  return enum_names(recompute)[static_cast<size_t>(recompute)];
}

/// Shape of a pre-LN GPT. nullopt stands for `auto`.
struct ModelConfig {
  int64_t layers = 4;                               ///< L
  int64_t channels = 128;                           ///< C
  int64_t heads = 4;                                ///< H; D = C / H
  int64_t context = 64;                             ///< the longest T
  std::optional<int64_t> mlp_width = std::nullopt;  ///< F; auto: 4·C
  double dropout = 0.0;         ///< of embeddings, attention weights and residual branches
  bool bias = true;             ///< false: linear layers and layernorms have none
  bool tied_embeddings = true;  ///< the head's weight is the token embedding's
  AttentionKind attention = AttentionKind::flash;
  std::optional<int64_t> vocab_size = std::nullopt;  ///< V, unpadded; auto: the tokenizer's

  bool operator==(const ModelConfig&) const = default;
};

/// F, with auto resolved.
constexpr int64_t resolved_mlp_width(const ModelConfig& model) {
  return model.mlp_width.value_or(4 * model.channels);
}

}  // namespace gradus
