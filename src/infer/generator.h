#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/arena.h"
#include "core/executor.h"
#include "data/tokenizer.h"
#include "infer/sampler.h"
#include "model/gpt_decoder.h"
#include "train/config.h"

namespace gradus {

/// A trained model, ready to generate: weights, tokenizer and cache of a checkpoint.
class Generator {
 public:
  /// path: a run's folder, its checkpoints folder, or a checkpoint. `refused` gets a line for each
  /// newer checkpoint that is damaged. Throws CheckpointError, MemoryError.
  Generator(const std::filesystem::path& path, Executor& x, TensorParallel& tp,
            std::vector<std::string>& refused);

  const Tokenizer& tokenizer() const { return *tokenizer_; }
  int64_t step() const { return step_; }

  /// The prompt as tokens. An empty one is a line's end, or token 0 where the tokenizer cannot
  /// represent that. Throws DataError for a prompt that the tokenizer cannot represent.
  std::vector<int32_t> encode(std::string_view prompt) const;
  /// Continues the prompt by `tokens` tokens and hands out each one's text as it is drawn. A text
  /// longer than the context goes on from its last half each time the context is full.
  void generate(std::vector<int32_t> prompt, int64_t tokens, Sampler& sampler,
                const std::function<void(std::string_view)>& emit);
  /// All of it. Throws as encode and Sampler do before the first token.
  void generate(std::string_view prompt, int64_t tokens, const SamplingOptions& options,
                const std::function<void(std::string_view)>& emit);

 private:
  Executor& x_;
  std::unique_ptr<Tokenizer> tokenizer_;
  int64_t step_ = 0;
  std::unique_ptr<Parameters> parameters_;
  std::unique_ptr<GptDecoder> decoder_;
  std::unique_ptr<Arena> arena_;
};

}  // namespace gradus
