#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace gradus {

/// Whether elements of one type may be read as another: floating-point types as each other,
/// anything as itself.
bool convertible(DType from, DType to);

/// Copies `count` elements of a file's bytes (any alignment) to memory of another dtype. Widening
/// is exact; narrowing rounds to nearest, ties to even (through fp32 on the way from fp64 to bf16
/// and fp16). The types must be convertible().
void convert_elements(std::byte* to, DType to_dtype, const std::byte* from, DType from_dtype,
                      int64_t count);

}  // namespace gradus
