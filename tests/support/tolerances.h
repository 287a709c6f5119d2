#pragma once

#include <cstdint>

#include "core/dtype.h"

/// Tolerances that several tests share, each with its reason; one that a single test has stands
/// there. All are listed in docs/numerics.md. Relative to the largest magnitude of the tensor
/// unless it says otherwise.
namespace gradus::test {

/// Attention's out, dq, dk, dv against fp64 from the same rounded inputs. fp64: sums of some
/// hundred terms, in another order. fp32: the same sums and exp2 to 2 ulp, and lse rounded to fp32,
/// which shifts every weight of a row. bf16: the last rounding of a result, half a unit of 8 bits
/// (2^-8), over fp32 arithmetic.
constexpr double attention_tolerance(DType dtype) {
  return dtype == DType::fp64 ? 1e-12 : dtype == DType::fp32 ? 5e-6 : 4.0e-3;
}
/// lse and row_sum, which are fp32 where the tensors are bf16.
constexpr double attention_lse_tolerance(DType dtype) {
  return dtype == DType::fp64 ? 1e-12 : 5e-6;
}
/// Attention's out at scores of 1e4: a score's own rounding, some units of 1e4 · 2^-24 (2^-53),
/// is the relative error of its exponential.
constexpr double large_scores_tolerance(DType dtype) { return dtype == DType::fp64 ? 1e-10 : 2e-2; }

/// The operations on rows and elements (layernorm, GELU, residual, embeddings) against fp64 from
/// the same rounded inputs; dtype: of the result. fp64: sums of up to some thousand terms, in
/// another order. fp32: some roundings of 2^-24 an element, and the same sums. bf16: the last
/// rounding of a result, at most 2^-8 of it, over fp32 arithmetic.
constexpr double elementwise_tolerance(DType dtype) {
  return dtype == DType::fp64 ? 1e-13 : dtype == DType::fp32 ? 2e-6 : 3.91e-3;
}

/// A sum of `depth` products plus one addend, as a share of the sum of their magnitudes: the bound
/// of recursive summation in arithmetic of unit roundoff u (Higham, "Accuracy and Stability of
/// Numerical Algorithms", section 3.1), (depth + 1) u and what a reference's own rounding adds.
/// Storing the result as bf16 adds half a unit of its 8 bits, 2^-8 at most.
constexpr double sum_tolerance(int64_t depth, DType stored) {
  const double u = stored == DType::fp64 ? 0x1p-53 : 0x1p-24;
  return 2.0 * static_cast<double>(depth + 2) * u + (stored == DType::bf16 ? 0x1p-8 : 0.0);
}

/// Loss, norm and gradients of one step whose batch, or whose work among threads, is cut in another
/// way: the same terms, added in another order. fp64: sums of some hundred terms. fp32: the same
/// through the backward passes of a few layers, each of which passes on what the ones before it
/// rounded.
constexpr double layout_tolerance(DType dtype) { return dtype == DType::fp64 ? 1e-12 : 2e-5; }

}  // namespace gradus::test
