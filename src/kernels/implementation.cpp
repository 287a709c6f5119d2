#include "kernels/implementation.h"

#include "kernels/cpu/instruction_set.h"
#include "kernels/cpu/matmul.h"

namespace gradus {

std::string vector_instruction_set() { return cpu::vector_instruction_set(); }

std::string matmul_implementation(const Executor& /*x*/, DType dtype) {
  return cpu::matmul_implementation(dtype);
}

}  // namespace gradus
