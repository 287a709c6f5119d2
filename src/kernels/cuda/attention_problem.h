#pragma once

// What the host functions of attention check and choose, shared by forward and backward.

#include <cstddef>

#include "kernels/cuda/attention.h"

namespace gradus::cuda {

/// Throws ShapeError where the kernels cannot serve the problem.
void check_attention(const char* operation, const AttentionProblem& problem);

/// 64, 96, 128 or 256: what a head is padded to in shared memory.
int padded_head_size(int head_size);

/// Rows that begin at multiples of 16 bytes, whatever batch, row and head.
template <typename E>
bool aligned_rows(const HeadTensor<E>& tensor) {
  constexpr int64_t kElements = 16 / static_cast<int64_t>(sizeof(E));
  return reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0 &&
         tensor.batch_stride % kElements == 0 && tensor.row_stride % kElements == 0 &&
         tensor.head_stride % kElements == 0;
}

}  // namespace gradus::cuda
