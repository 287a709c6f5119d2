#pragma once

#include "core/executor.h"
#include "core/parameters.h"
#include "core/tensor.h"
#include "model/dropout_sites.h"
#include "parallel/tensor_parallel.h"

namespace gradus {

/// Weights of the embeddings, or their gradients.
struct EmbeddingParams {
  Tensor token;     ///< (V_tp, C), cut by vocabulary
  Tensor position;  ///< (context, C)

  /// view: &Parameter::value or &Parameter::grad.
  static EmbeddingParams bind(const Parameters& parameters, Tensor Parameter::*view);
};

/// out_part = dropout(token[tokens] + position[first_position + t]), t counted over the tokens of
/// all ranks: under sequence parallelism this rank's begin at tp.rank() · T_part. full: (B, T, C),
/// this rank's summand of the token embedding; the same tensor as out_part without sequence
/// parallelism.
void embedding_forward(Executor& x, const Tensor& out_part, const Tensor& full,
                       const ConstTensor& tokens, const EmbeddingParams& w, int64_t first_position,
                       const DropoutSites& dropout, TensorParallel& tp);
/// dout_part is overwritten. dw +=.
void embedding_backward(Executor& x, const EmbeddingParams& dw, const Tensor& dout_part,
                        const Tensor& dfull, const ConstTensor& tokens, int64_t first_position,
                        const DropoutSites& dropout, TensorParallel& tp);

}  // namespace gradus
