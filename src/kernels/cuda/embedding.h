#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/dtype.h"
#include "core/rng.h"

namespace gradus::cuda {

/// Rows (b, t) of a (B, T, C) tensor: row n is position n mod T of sample n / T.
struct EmbeddingRows {
  int64_t rows = 0;  ///< B · T
  int64_t channels = 0;
  int64_t positions = 1;  ///< T
  DType residual_dtype = DType::fp32;
  DType param_dtype = DType::fp32;  ///< of the tables, as dispatch_precision() pairs it
};

/// out[n] = weight[tokens[n] - first_row], or 0 where that row lies on another rank, and where
/// `position_weight` is given out[n] = dropout(that + position_weight[first_position + n mod T]):
/// both embeddings at once where the table is not cut.
struct TokenEmbedding {
  void* out = nullptr;              ///< (N, C), residual dtype
  const int32_t* tokens = nullptr;  ///< (N)
  const void* weight = nullptr;     ///< (V_tp, C), parameter dtype
  int64_t table_rows = 0;           ///< V_tp
  int64_t first_row = 0;
  const void* position_weight = nullptr;  ///< (context, C), parameter dtype, or null
  int64_t first_position = 0;
  Dropout dropout = {};
};
void token_embedding_forward(const TokenEmbedding& a, const EmbeddingRows& shape,
                             cudaStream_t stream);

/// inout = dropout(inout + weight[first_position + n mod T]).
struct PositionEmbedding {
  void* inout = nullptr;         ///< (N, C), residual dtype
  const void* weight = nullptr;  ///< (context, C), parameter dtype
  int64_t first_position = 0;
  Dropout dropout = {};
};
void position_embedding_forward(const PositionEmbedding& a, const EmbeddingRows& shape,
                                cudaStream_t stream);

/// dweight (V_tp, C) fp32 += the rows of dout summed by token, in index order: no atomics, each
/// table row has one writer. The order is made first, by counting, in scratch of
/// token_order_scratch(rows) bytes: a multiple of rows² comparisons.
struct TokenEmbeddingGradient {
  float* dweight = nullptr;
  const void* dout = nullptr;       ///< (N, C), residual dtype
  const int32_t* tokens = nullptr;  ///< (N)
  int64_t table_rows = 0;
  int64_t first_row = 0;
  void* scratch = nullptr;
};
void token_embedding_backward(const TokenEmbeddingGradient& a, const EmbeddingRows& shape,
                              cudaStream_t stream);
int64_t token_order_scratch(int64_t rows);

/// dinout = dropout'(dinout), in place; dweight[first_position + t] (C) fp32 += its sum over the
/// samples, in order. rows is a multiple of positions.
struct PositionEmbeddingGradient {
  void* dinout = nullptr;  ///< (N, C), residual dtype
  float* dweight = nullptr;
  int64_t first_position = 0;
  Dropout dropout = {};
};
void position_embedding_backward(const PositionEmbeddingGradient& a, const EmbeddingRows& shape,
                                 cudaStream_t stream);

}  // namespace gradus::cuda
