#pragma once

#include <string>

#include "core/executor.h"

namespace gradus {

/// Which code runs on this processor, for `gradus info` and benchmark records.

/// The instruction set that the vectorised CPU kernels use, for example "AVX2".
std::string vector_instruction_set();
/// What multiplies matrices of a dtype on x.
std::string matmul_implementation(const Executor& x, DType dtype);

}  // namespace gradus
