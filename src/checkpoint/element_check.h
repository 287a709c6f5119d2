#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace gradus {

/// What the elements of a floating-point tensor may be; of integers all are as they may be.
enum class Elements : uint8_t {
  any,
  finite,
  not_negative,  ///< and finite
};

/// The first of `count` elements that is not as it may be; count where all are. Any alignment.
int64_t first_unfit(const std::byte* data, DType dtype, int64_t count, Elements elements);

}  // namespace gradus
