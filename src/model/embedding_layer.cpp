#include "model/embedding_layer.h"

#include "kernels/embedding.h"

namespace gradus {
namespace {

/// The first vocabulary row that this rank holds.
int64_t first_row(const Tensor& token, const TensorParallel& tp) {
  return tp.rank() * token.size(0);
}

/// The position of the first token that this rank holds of `part`, T_part tokens of sequences that
/// begin at first_position.
int64_t position_of(const ConstTensor& part, int64_t first_position, const TensorParallel& tp) {
  return first_position + (tp.sequence_parallel() ? tp.rank() * part.size(1) : 0);
}

}  // namespace

EmbeddingParams EmbeddingParams::bind(const Parameters& parameters, Tensor Parameter::*view) {
  return {parameters["embedding.token.weight"].*view,
          parameters["embedding.position.weight"].*view};
}

void embedding_forward(Executor& x, const Tensor& out_part, const Tensor& full,
                       const ConstTensor& tokens, const EmbeddingParams& w, int64_t first_position,
                       const DropoutSites& dropout, TensorParallel& tp) {
  token_embedding_forward(x, full, tokens, w.token, first_row(w.token, tp));  // 1
  tp.reduce_scatter(x, out_part, full);                                       // 2
  position_embedding_forward(x, out_part, w.position, position_of(out_part, first_position, tp),
                             dropout.at(0, DropoutSite::embedding));  // 3
}

void embedding_backward(Executor& x, const EmbeddingParams& dw, const Tensor& dout_part,
                        const Tensor& dfull, const ConstTensor& tokens, int64_t first_position,
                        const DropoutSites& dropout, TensorParallel& tp) {
  position_embedding_backward(x, dout_part, dw.position, position_of(dout_part, first_position, tp),
                              dropout.at(0, DropoutSite::embedding));             // 3
  tp.reduce_scatter_backward(x, dfull, dout_part);                                // 2
  token_embedding_backward(x, dw.token, dfull, tokens, first_row(dw.token, tp));  // 1
}

}  // namespace gradus
