#pragma once

#include "kernels/attention.h"

/// The CPU's implementations; arguments were checked by kernels/attention.cpp. Both kinds give the
/// same bits for any number of threads.
namespace gradus::cpu {

/// Tiles of keys and online softmax; scratch memory independent of T (attention_flash_*.cpp).
void flash_forward(Executor& x, Tensor out, Tensor lse, ConstTensor q, ConstTensor k, ConstTensor v,
                   const AttentionSpec& spec);
void flash_backward(Executor& x, Tensor dq, Tensor dk, Tensor dv, Tensor row_sum, ConstTensor dout,
                    ConstTensor out, ConstTensor lse, ConstTensor q, ConstTensor k, ConstTensor v,
                    const AttentionSpec& spec);
int64_t flash_scratch(const Executor& x, int64_t head_size, DType dtype);

/// Whole score matrices, one head a thread (attention_plain.cpp).
void plain_forward(Executor& x, Tensor out, Tensor lse, ConstTensor q, ConstTensor k, ConstTensor v,
                   const AttentionSpec& spec);
void plain_backward(Executor& x, Tensor dq, Tensor dk, Tensor dv, Tensor row_sum, ConstTensor dout,
                    ConstTensor out, ConstTensor lse, ConstTensor q, ConstTensor k, ConstTensor v,
                    const AttentionSpec& spec);
int64_t plain_scratch(const Executor& x, int64_t queries, int64_t keys, int64_t head_size,
                      DType dtype);

}  // namespace gradus::cpu
