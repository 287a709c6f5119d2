#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/executor.h"
#include "model/gpt.h"

namespace gradus {

/// The forward pass of generation: one sequence, a few tokens at a time, with the keys and values
/// of the tokens before them in a cache. Its blocks are those of training.
class GptDecoder {
 public:
  /// options.B must be 1, options.keep Keep::nothing and tp a group of one; options.T is the
  /// cache's length. Throws ShapeError.
  GptDecoder(const Gpt::Options& options, TensorParallel& tp);

  void declare(TensorVisitor& visitor, const Parameters& parameters, const Executor& x);

  /// Positions filled, and how many there are.
  int64_t length() const { return length_; }
  int64_t capacity() const { return sizes_.T; }
  /// Empties the cache.
  void reset();

  /// Appends the tokens and returns the logits of the one that follows the last: (V) fp32 (fp64 for
  /// fp64), valid until the next call. Throws ShapeError when the cache cannot take them.
  ConstTensor forward(Executor& x, std::span<const int32_t> tokens);

 private:
  /// Hands out tensors of few tokens over memory that was declared for T.
  class Overlay;

  Sizes sizes_;
  Gpt::Options options_;
  TensorParallel& tp_;
  EmbeddingParams embedding_;
  std::vector<BlockParams> blocks_;
  HeadParams head_;
  std::vector<KvView> caches_;
  std::map<std::string, Tensor> memory_;  // the blocks' transient tensors by name, at T tokens
  Tensor residual_;                       // (1, T, C)
  Tensor tokens_;                         // i32 (1, T)
  Tensor last_ln_, last_mean_, last_rstd_;
  Tensor logits_;  // (1, V_tp)
  int64_t length_ = 0;
};

}  // namespace gradus
