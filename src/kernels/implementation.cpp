#include "kernels/implementation.h"

#include <fmt/format.h>

#include "core/counted.h"
#include "kernels/cpu/instruction_set.h"
#include "kernels/cpu/matmul.h"

namespace gradus {

std::string vector_instruction_set() { return cpu::vector_instruction_set(); }

std::string matmul_implementation(const Executor& /*x*/, DType dtype) {
  return cpu::matmul_implementation(dtype);
}

const RefusedProducts& refused_products(Executor& x) { return x.state<RefusedProducts>(); }

std::string describe(const RefusedProducts& refused) {
  if (refused.count == 0) return {};
  return fmt::format(
      "oneDNN did not take {} up to now, the first of {} {} x {} x {}: the packed product computed "
      "{} in {} arithmetic",
      counted(refused.count, "matrix product"), to_string(refused.dtype), refused.rows,
      refused.depth, refused.columns, refused.count == 1 ? "it" : "them",
      to_string(accumulator_of(refused.dtype)));
}

}  // namespace gradus
