#pragma once

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/checkpoint_writer.h"
#include "core/tensor.h"

namespace gradus::test {

/// A small run's state whose every number depends on the step.
struct ExampleRun {
  explicit ExampleRun(int64_t step_count) : step(step_count), weights(12), moments(12) {
    for (size_t i = 0; i < weights.size(); ++i) {
      weights[i] = static_cast<float>(step) + 0.5f * static_cast<float>(i);
      moments[i] = -weights[i];
    }
  }

  static Tensor view(std::vector<float>& values) {
    return {values.data(), DType::fp32, Device::cpu, {3, 4}};
  }

  SaveResult save(const std::filesystem::path& run, int64_t keep) {
    CheckpointContents contents;
    contents.step = step;
    contents.state = {{"samples", 12 * step}};
    contents.files = {{"config.yaml", "seed: 1\n"}, {"tokenizer.json", "{}\n"}};
    contents.model = {{"w", DType::fp32, {3, 4}, {ConstTensorPiece::whole(view(weights))}}};
    contents.optimizer = {
        {"adam.m.w", DType::fp32, {3, 4}, {ConstTensorPiece::whole(view(moments))}}};
    return save_checkpoint(run, contents, keep);
  }

  /// Overwrites this run's state with a checkpoint's.
  void load(const Checkpoint& checkpoint) {
    const std::vector<TensorDestination> model = {
        {"w", {3, 4}, {TensorPiece::whole(view(weights))}}};
    const std::vector<TensorDestination> optimizer = {
        {"adam.m.w", {3, 4}, {TensorPiece::whole(view(moments))}}};
    checkpoint.load(model, optimizer);
    step = checkpoint.step();
  }

  bool operator==(const ExampleRun&) const = default;

  int64_t step;
  std::vector<float> weights;
  std::vector<float> moments;
};

/// Names in a folder, hidden ones included, sorted.
inline std::vector<std::string> names_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  std::ranges::sort(names);
  return names;
}

}  // namespace gradus::test
