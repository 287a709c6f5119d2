#pragma once

// What the kernels of attention's backward pass are given.

#include "kernels/cuda/attention_dropout.cuh"
#include "kernels/cuda/attention_mask.cuh"
#include "kernels/cuda/attention_products.cuh"

namespace gradus::cuda {

template <typename E>
struct BackwardArguments {
  AttentionMask mask;
  AttentionDropout dropout;
  HeadTensor<E> dq, dk, dv;
  HeadTensor<const E> dout, out, q, k, v;
  const float* lse;
  float* row_sum;
  int batch, heads, group, head_size;
  float scale;
  bool aligned_in, aligned_out;
};

}  // namespace gradus::cuda
