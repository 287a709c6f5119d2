#pragma once

#include <cstdint>
#include <string>

#include "core/executor.h"

namespace gradus {

/// Which code runs on this processor, for `gradus info` and benchmark records.

/// The instruction set that the vectorised CPU kernels use, for example "AVX2".
std::string vector_instruction_set();
/// What multiplies matrices of a dtype on x, and the environment variable that limits it, if one
/// does.
std::string matmul_implementation(const Executor& x, DType dtype);

/// Matrix products that x's matmul_implementation() is oneDNN for and that it would not take: the
/// packed product computed them, in the accumulator type's arithmetic.
struct RefusedProducts {
  int64_t count = 0;
  /// Of the first: rows and columns of the result, and the length of its sums.
  DType dtype = DType::fp32;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t depth = 0;
};
const RefusedProducts& refused_products(Executor& x);
/// "3 matrix products went from oneDNN to …", for people; empty where there are none.
std::string describe(const RefusedProducts& refused);

}  // namespace gradus
