#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "support/tensors.h"
#include "support/tolerances.h"

namespace gradus::test {

/// EXPECTs |actual - expected| <= elementwise_tolerance · max(scale, largest |expected|). scale:
/// the magnitude of the terms that a result is the sum of. Of a few elements all may have
/// cancelled, which leaves the rounding of the terms and nothing to measure it by.
inline void expect_close(const ConstTensor& actual, const ConstTensor& expected,
                         double scale = 1.0) {
  double largest = 0.0;
  for (int64_t i = 0; i < expected.numel(); ++i) {
    largest = std::max(largest, std::abs(get_value(expected, i)));
  }
  const double relative = largest / std::max(scale, largest);
  const double error = relative_error(actual, expected);
  // All zeros expected: relative_error is infinite for any difference, as it should be.
  EXPECT_LE(largest == 0.0 ? error : error * relative, elementwise_tolerance(actual.dtype()))
      << describe(actual);
}

}  // namespace gradus::test
