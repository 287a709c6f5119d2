#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/rng.h"

/// Attention of kernels/attention.h on the device: FlashAttention-2 (arXiv:2307.08691) over
/// mma.sync, for bf16 and fp16 (E: __nv_bfloat16, __half). All pointers are to device memory.
namespace gradus::cuda {

/// A (B, T, H, D) tensor by its strides, in elements; the last axis is contiguous.
template <typename E>
struct HeadTensor {
  E* data = nullptr;
  int64_t batch_stride = 0;
  int64_t row_stride = 0;
  int64_t head_stride = 0;
};

/// Sizes and mask, as AttentionSpec has them.
struct AttentionProblem {
  int batch = 0;
  int queries = 0;   ///< T_q
  int keys = 0;      ///< T_k
  int heads = 0;     ///< of q
  int kv_heads = 0;  ///< of k and v; heads is a multiple
  int head_size = 0;
  double scale = 1.0;  ///< more than 0
  bool causal = true;
  int window = 0;
  int query_position = 0;
  int key_position = 0;
  const int32_t* document_start = nullptr;  ///< (B, T_q), or null
  int64_t document_batch_stride = 0;
  int64_t document_row_stride = 1;
  Dropout dropout;
};

/// Which of the kernels below runs: the choice of the table, or an entry of it by number.
inline constexpr int kVariantOfTable = -1;

template <typename E>
struct AttentionForward {
  AttentionProblem problem;
  HeadTensor<E> out;
  float* lse = nullptr;  ///< (B, H, T_q)
  HeadTensor<const E> q, k, v;
  int variant = kVariantOfTable;
};

template <typename E>
struct AttentionBackward {
  AttentionProblem problem;
  HeadTensor<E> dq, dk, dv;
  float* row_sum = nullptr;  ///< (B, H, T_q), written
  HeadTensor<const E> dout, out;
  const float* lse = nullptr;
  HeadTensor<const E> q, k, v;
  int variant = kVariantOfTable;
};

/// out and lse from q, k, v; asynchronous on `stream`. Throws ShapeError, CudaError.
template <typename E>
void attention_forward(const AttentionForward<E>& args, cudaStream_t stream);

/// dq =, dk =, dv =, row_sum =, the same bits every time. Asynchronous on `stream`. Throws
/// ShapeError, CudaError.
template <typename E>
void attention_backward(const AttentionBackward<E>& args, cudaStream_t stream);

/// The table of variants that serve a head size, by name: entry i is variant i.
std::vector<std::string> attention_forward_variants(int head_size);
std::vector<std::string> attention_backward_variants(int head_size);

}  // namespace gradus::cuda
