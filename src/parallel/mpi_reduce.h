#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/dtype.h"
#include "parallel/communicator.h"

namespace gradus {

/// out[i] = reduction of pieces[0][i], pieces[1][i], … in this order, for `count` elements.
/// Accumulates in accumulator_of(dtype) and rounds once. out may be one of the pieces. dtype and op
/// are a pair that Communicator accepts.
void reduce_in_order(std::byte* out, std::span<const std::byte* const> pieces, int64_t count,
                     DType dtype, ReduceOp op);

}  // namespace gradus
