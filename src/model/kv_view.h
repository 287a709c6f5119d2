#pragma once

#include <cstdint>

#include "core/tensor.h"

namespace gradus {

/// Keys and values of one layer for the positions already seen, as a cache holds them for
/// generation.
struct KvView {
  Tensor k;            ///< (B, T_max, H_tp, D)
  Tensor v;            ///< as k
  int64_t length = 0;  ///< positions [0, length) are filled; the next tokens go behind them
};

}  // namespace gradus
