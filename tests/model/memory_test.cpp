// The formulas of docs/memory.md, against the plans of whole models: nothing is allocated here.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/arena.h"
#include "model/gpt.h"
#include "model/gpt_decoder.h"
#include "model/gpt_parameters.h"
#include "optim/optimizer.h"
#include "parallel/tensor_parallel.h"
#include "train/precision_preset.h"
#include "train/training_model.h"

namespace gradus {
namespace {

constexpr PrecisionPreset kPresets[] = {PrecisionPreset::fp32, PrecisionPreset::bf16,
                                        PrecisionPreset::bf16_lean, PrecisionPreset::fp64};
constexpr Recompute kRecompute[] = {Recompute::none, Recompute::selective, Recompute::full};

/// Bytes of an element, by the table of docs/memory.md: activations, residual stream, statistics.
struct Element {
  int64_t a, r, s;
};
Element element(PrecisionPreset preset) {
  switch (preset) {
    case PrecisionPreset::fp32:
      return {4, 4, 4};
    case PrecisionPreset::bf16:
      return {2, 4, 4};
    case PrecisionPreset::bf16_lean:
      return {2, 2, 4};
    case PrecisionPreset::fp64:
    case PrecisionPreset::fp16:
      break;
  }
  return {8, 8, 8};
}

/// Every tensor's size is a multiple of 64 bytes whatever the cut, so that alignment adds nothing.
Config config_for(PrecisionPreset preset, Recompute recompute) {
  Config config;
  config.model = {.layers = 3, .channels = 128, .heads = 8, .context = 64, .mlp_width = 320};
  config.train.precision = preset;
  config.train.recompute = recompute;
  config.train.micro_batch = 4;
  config.train.global_batch = 12;
  return config;
}

std::unique_ptr<MemoryPlan> plan_of(const Config& config, int64_t vocabulary, int tp_size = 1,
                                    bool sequence = false) {
  Executor x(Device::cpu, 2);
  Parallelism parallel({.tp = tp_size}, {}, {.sequence = sequence});
  return TrainingModel(config, vocabulary, x, parallel).plan();
}

/// Saved bytes whose names begin with `prefix`, without alignment.
int64_t saved_bytes(const MemoryPlan& plan, const std::string& prefix) {
  int64_t bytes = 0;
  for (const auto& entry : plan.entries()) {
    if (entry.lifetime.kind() == Lifetime::Kind::saved && entry.name.starts_with(prefix)) {
      bytes += entry.shape.numel() * size_of(entry.dtype);
    }
  }
  return bytes;
}

const MemoryPlan::Entry& entry_of(const MemoryPlan& plan, const std::string& name) {
  for (const auto& entry : plan.entries()) {
    if (entry.name == name) return entry;
  }
  throw std::out_of_range(name);
}

TEST(Memory, SavedActivationsOfALayerFollowTheFormulas) {
  for (const PrecisionPreset preset : kPresets) {
    for (const Recompute recompute : kRecompute) {
      SCOPED_TRACE(std::string(to_string(preset)) + ", " + std::string(to_string(recompute)));
      const Config config = config_for(preset, recompute);
      const auto [a, r, s] = element(preset);
      const int64_t N = config.train.micro_batch * config.model.context;
      const int64_t C = config.model.channels;
      const int64_t F = resolved_mlp_width(config.model);
      const int64_t H = config.model.heads;
      const int64_t layer = recompute == Recompute::none
                                ? a * N * (6 * C + 2 * F) + 2 * r * N * C + s * N * (H + 4)
                            : recompute == Recompute::selective
                                ? a * N * (4 * C + F) + 2 * r * N * C + s * N * (H + 4)
                                : r * N * C;
      const auto plan = plan_of(config, 100);
      for (int l = 0; l < 3; ++l) {
        EXPECT_EQ(saved_bytes(*plan, fmt::format("block.{}.", l)), layer);
      }
      EXPECT_EQ(saved_bytes(*plan, "embedding."), r * N * C);
      EXPECT_EQ(plan->bytes_of(Lifetime::Kind::saved), 3 * layer + r * N * C);
    }
  }
}

TEST(Memory, SavedActivationsUnderTensorParallelism) {
  for (const PrecisionPreset preset : {PrecisionPreset::fp32, PrecisionPreset::bf16}) {
    for (const int64_t t : {2, 4}) {
      const Config config = config_for(preset, Recompute::none);
      const auto [a, r, s] = element(preset);
      const int64_t N = config.train.micro_batch * config.model.context;
      const int64_t C = config.model.channels;
      const int64_t F = resolved_mlp_width(config.model);
      const int64_t H = config.model.heads;
      const auto whole = plan_of(config, 100, static_cast<int>(t), false);
      EXPECT_EQ(saved_bytes(*whole, "block.1."),
                a * N * (2 * C + (4 * C + 2 * F) / t) + 2 * r * N * C + s * N * (H / t + 4));
      const auto parts = plan_of(config, 100, static_cast<int>(t), true);
      EXPECT_EQ(saved_bytes(*parts, "block.1."),
                a * N * (2 * C + 4 * C + 2 * F) / t + 2 * r * N * C / t + s * N * (H + 4) / t);
    }
  }
}

/// docs/memory.md's numbers for GPT-2's 12 layers of 768 channels, B = 12, T = 1024.
TEST(Memory, Gpt2sTable) {
  constexpr double kMiB = 1024.0 * 1024.0;
  struct Row {
    PrecisionPreset preset;
    Recompute recompute;
    double layer_mib;
    double all_gib;
  };
  for (const Row& row : {Row{PrecisionPreset::fp32, Recompute::none, 576.75, 6.79},
                         Row{PrecisionPreset::fp32, Recompute::selective, 360.75, 4.26},
                         Row{PrecisionPreset::fp32, Recompute::full, 36.0, 0.46},
                         Row{PrecisionPreset::bf16, Recompute::none, 324.75, 3.84},
                         Row{PrecisionPreset::bf16, Recompute::selective, 216.75, 2.58},
                         Row{PrecisionPreset::bf16, Recompute::full, 36.0, 0.46}}) {
    Config config;
    config.model = {.layers = 12, .channels = 768, .heads = 12, .context = 1024};
    config.train.precision = row.preset;
    config.train.recompute = row.recompute;
    const auto plan = plan_of(config, 50257);
    EXPECT_EQ(static_cast<double>(saved_bytes(*plan, "block.3.")) / kMiB, row.layer_mib);
    EXPECT_NEAR(static_cast<double>(plan->bytes_of(Lifetime::Kind::saved)) / kMiB / 1024.0,
                row.all_gib, 0.005);
    EXPECT_EQ(entry_of(*plan, "head.logits").shape, (Shape{333, 50264})) << "R by V_padded";
  }
}

TEST(Memory, HeadHoldsAChunkOfLogits) {
  for (const PrecisionPreset preset : kPresets) {
    for (const int64_t vocabulary : {100, 50257, 200000}) {
      const Config config = config_for(preset, Recompute::none);
      const auto [a, r, s] = element(preset);
      const int64_t N = config.train.micro_batch * config.model.context;
      const int64_t V = (vocabulary + 7) / 8 * 8;
      const int64_t R = std::min(N, std::max<int64_t>(64, (int64_t{1} << 24) / V));
      const auto plan = plan_of(config, vocabulary);
      EXPECT_EQ(entry_of(*plan, "head.logits").bytes, (s * R * V + 63) / 64 * 64);
      if (a == s) {
        EXPECT_THROW(entry_of(*plan, "head.d_logits"), std::out_of_range) << "one with the logits";
      } else {
        EXPECT_EQ(entry_of(*plan, "head.d_logits").bytes, (a * R * V + 63) / 64 * 64);
      }
      for (const char* name : {"head.row_max", "head.row_sum", "head.target_logit", "head.lse"}) {
        EXPECT_EQ(entry_of(*plan, name).shape, (Shape{R})) << name;
      }
      EXPECT_EQ(entry_of(*plan, "head.ln").bytes, a * N * config.model.channels);
      EXPECT_EQ(entry_of(*plan, "head.d_ln").bytes, a * N * config.model.channels);
    }
  }
}

TEST(Memory, OtherTransientsHaveTheirSizes) {
  for (const PrecisionPreset preset : kPresets) {
    const Config config = config_for(preset, Recompute::full);
    const auto [a, r, s] = element(preset);
    const int64_t N = config.train.micro_batch * config.model.context;
    const int64_t C = config.model.channels;
    const auto plan = plan_of(config, 100);
    EXPECT_EQ(entry_of(*plan, "shared.d_up").bytes, a * N * 320);
    EXPECT_EQ(entry_of(*plan, "shared.d_qkv").bytes, 3 * a * N * C);
    EXPECT_EQ(entry_of(*plan, "d_residual").bytes, r * N * C);
    for (const char* name : {"d_down", "d_ln2", "d_proj", "d_att", "d_ln1", "proj", "down"}) {
      EXPECT_EQ(entry_of(*plan, std::string("shared.") + name).bytes, a * N * C) << name;
    }
    EXPECT_EQ(entry_of(*plan, "shared.row_sum").bytes, s * N * config.model.heads);
  }
}

/// Layers add to what is saved and to nothing else.
TEST(Memory, TransientsDoNotGrowWithLayers) {
  for (const Recompute recompute : kRecompute) {
    Config config = config_for(PrecisionPreset::bf16, recompute);
    const auto few = plan_of(config, 100);
    config.model.layers = 9;
    const auto many = plan_of(config, 100);
    EXPECT_EQ(many->bytes_of(Lifetime::Kind::transient), few->bytes_of(Lifetime::Kind::transient));
    EXPECT_EQ(many->bytes_of(Lifetime::Kind::scratch), few->bytes_of(Lifetime::Kind::scratch));
  }
}

TEST(Memory, WeightsAndOptimizerBytesOfAnElement) {
  for (const auto& [preset, bytes] :
       {std::pair{PrecisionPreset::fp32, 16}, std::pair{PrecisionPreset::bf16, 18},
        std::pair{PrecisionPreset::bf16_lean, 18}, std::pair{PrecisionPreset::fp64, 32}}) {
    const Config config = config_for(preset, Recompute::none);
    const Parameters parameters(gpt_parameters(config.model, 100, 1),
                                {.precision = precision_of(preset)});
    int64_t elements = 0;
    int64_t partials = 0;
    for (const Bucket& bucket : parameters.buckets()) {
      elements += bucket.numel;
      for (const BucketSection& section : bucket.sections) {
        partials += (section.range.end - section.range.begin + 1023) / 1024;
      }
    }
    const auto aligned = [](int64_t size) { return (size + 63) / 64 * 64; };
    const int64_t places = config.train.global_batch * config.model.context;
    EXPECT_EQ(plan_of(config, 100)->bytes_of(Lifetime::Kind::persistent),
              bytes * elements + aligned(8 * partials) + aligned(8) +
                  aligned(static_cast<int64_t>(sizeof(StepState))) + 2 * 4 * places + aligned(8) +
                  aligned(3 * 8))
        << to_string(preset);
  }
}

TEST(Memory, GenerationHoldsKeysAndValuesOfEveryLayer) {
  for (const PrecisionPreset preset : kPresets) {
    const Config config = config_for(preset, Recompute::none);
    Executor x(Device::cpu, 2);
    TensorParallel tp(0, 1, false);
    Parameters parameters(gpt_parameters(config.model, 100, 1),
                          {.precision = precision_of(preset), .gradients = false});
    GptDecoder decoder({.model = config.model,
                        .vocabulary = 100,
                        .precision = precision_of(preset),
                        .keep = Keep::nothing,
                        .B = 1,
                        .T = config.model.context},
                       tp);
    MemoryPlan plan(Device::cpu);
    parameters.declare(plan);
    decoder.declare(plan, parameters, x);
    plan.lay_out();
    int64_t cache = 0;
    for (const auto& entry : plan.entries()) {
      EXPECT_FALSE(entry.name.ends_with("gradients")) << entry.name;
      if (entry.name.ends_with("_cache")) cache += entry.bytes;
    }
    EXPECT_EQ(cache, 2 * 3 * config.model.context * config.model.channels * element(preset).a);
    EXPECT_EQ(plan.bytes_of(Lifetime::Kind::saved), 0);
  }
}

/// No declared transient may lie where another that lives with it lies, in real models too.
TEST(Memory, TransientsOfRealPlansDoNotOverlap) {
  for (const Recompute recompute : kRecompute) {
    for (const bool sequence : {false, true}) {
      const auto plan =
          plan_of(config_for(PrecisionPreset::bf16, recompute), 100, sequence ? 2 : 1, sequence);
      const auto& entries = plan->entries();
      for (size_t i = 0; i < entries.size(); ++i) {
        for (size_t j = 0; j < i; ++j) {
          const auto& a = entries[i];
          const auto& b = entries[j];
          if (a.lifetime.kind() != Lifetime::Kind::transient) continue;
          if (b.lifetime.kind() != Lifetime::Kind::transient) continue;
          const bool apart = a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset;
          EXPECT_TRUE(apart || !a.lifetime.overlaps(b.lifetime)) << a.name << " and " << b.name;
        }
      }
    }
  }
}

}  // namespace
}  // namespace gradus
