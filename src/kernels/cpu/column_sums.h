#pragma once

#include "core/executor.h"

namespace gradus::cpu {

/// Sums over rows that several threads share: each thread has a row of partial sums in scratch
/// memory, on cache lines of its own; they are added in the order of the threads, so that the
/// result is the same from run to run.

/// Elements from one row of partial sums to the next.
template <typename T>
constexpr int64_t partial_stride(int64_t columns) {
  return scratch_bytes<T>(columns) / static_cast<int64_t>(sizeof(T));
}

/// Scratch bytes of one row of partial sums a thread, for sums over elements of dtype.
inline int64_t column_sums_scratch(const Executor& x, int64_t columns, DType dtype) {
  return x.threads() * (accumulator_of(dtype) == DType::fp64 ? scratch_bytes<double>(columns)
                                                             : scratch_bytes<float>(columns));
}

}  // namespace gradus::cpu
