#pragma once

#include <cstdint>

namespace gradus {

/// The sizes of a model and a batch, in the letters of docs/notation.md. `_tp`: a rank's share
/// under tensor parallelism; T_part: tokens of a sequence that a rank holds outside the cut regions
/// (T, or T / tp under sequence parallelism).
struct Sizes {
  int64_t B = 0;  ///< sequences of a micro-batch
  int64_t T = 0;  ///< tokens of a sequence
  int64_t C = 0;  ///< channels
  int64_t H = 0;  ///< heads
  int64_t D = 0;  ///< channels of a head, C / H
  int64_t F = 0;  ///< hidden units of the MLP
  int64_t V = 0;  ///< vocabulary
  int64_t L = 0;  ///< layers

  int64_t V_padded = 0;  ///< rows of the embedding over all ranks, padding included
  int64_t T_part = 0;
  int64_t C_tp = 0;
  int64_t H_tp = 0;
  int64_t F_tp = 0;
  int64_t V_tp = 0;

  int64_t rows() const { return B * T; }
};

}  // namespace gradus
