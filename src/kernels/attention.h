#pragma once

#include "core/executor.h"
#include "core/rng.h"
#include "core/tensor.h"

namespace gradus {

enum class AttentionKind : uint8_t {
  flash,  ///< tiles of keys, online softmax, O(T) memory (arXiv:1805.02867, 2205.14135, 2307.08691)
  plain,  ///< the scores of one head at a time as a whole (T_q, T_k) matrix in scratch memory
};

/// What one attention is, beside its tensors. A query at absolute position p sees the keys at
/// absolute positions in (p - window, p] when causal, and none that lie before its document's
/// start.
struct AttentionSpec {
  AttentionKind kind = AttentionKind::flash;
  double scale = 1.0;  ///< on q·k; 1/√D in the transformer (arXiv:1706.03762)
  bool causal = true;
  int64_t window = 0;          ///< keys a query sees at most, itself included; 0: no limit
  int64_t query_position = 0;  ///< absolute position of query 0
  int64_t key_position = 0;    ///< absolute position of key 0
  ConstTensor document_start;  ///< i32 (B, T_q): absolute position where the query's document
                               ///< starts; undefined: 0
  Dropout dropout;             ///< on attention weights, see core/rng.h for the counters
};

/// out = dropout(softmax(scale · q kᵀ + mask)) v for each head; lse = log Σ exp of the masked
/// scores. q, out (B, T_q, H, D); k, v (B, T_k, H_kv, D), H a multiple of H_kv (grouped queries,
/// arXiv:2305.13245): head h reads k and v of head h / (H / H_kv). The last axis is contiguous, the
/// others may be strided (slices of a packed QKV). lse (B, H, T_q) fp32 (fp64 for fp64),
/// contiguous. A query that sees no key gives out = 0 and lse = -inf. Both kinds serve the same
/// contract. Throws ShapeError.
void attention_forward(Executor& x, Tensor out, Tensor lse, ConstTensor q, ConstTensor k,
                       ConstTensor v, const AttentionSpec& spec);

/// dq =, dk =, dv =, from dout and what forward left: P = exp(scale · q kᵀ - lse) is recomputed and
/// never kept; with row_sum = Σ_d dout · out, dS = P ∘ (dP - row_sum) (docs/backward.md). row_sum
/// (B, H, T_q), dtype of lse, is written here (=) so that the caller owns its memory.
void attention_backward(Executor& x, Tensor dq, Tensor dk, Tensor dv, Tensor row_sum,
                        ConstTensor dout, ConstTensor out, ConstTensor lse, ConstTensor q,
                        ConstTensor k, ConstTensor v, const AttentionSpec& spec);

/// Scratch bytes that forward and backward need at most.
int64_t attention_scratch(const Executor& x, AttentionKind kind, int64_t queries, int64_t keys,
                          int64_t head_size, DType dtype);

}  // namespace gradus
