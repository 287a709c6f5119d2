#pragma once

#include <limits>

#include "core/executor.h"
#include "core/step_state.h"
#include "core/tensor.h"

namespace gradus {

/// Elements that share one partial of a norm: a fixed logical chunk, whatever the layout.
inline constexpr int64_t kNormChunk = 1024;
/// Partials of the norm of so many elements.
constexpr int64_t norm_chunks(int64_t elements) { return (elements + kNormChunk - 1) / kNormChunk; }

/// partials[i] = Σ in² over chunk i of kNormChunk elements, in fp64. in (n), partials fp64
/// (ceil(n / kNormChunk)). Deterministic: chunks are summed in a fixed order whatever the threads.
void sum_of_squares(Executor& x, Tensor partials, ConstTensor in);

/// out (1) = Σ partials, added in index order. fp64.
void sum_partials(Executor& x, Tensor out, ConstTensor partials);

/// out (1) = max(out, max |in|), fp64; infinity where a value of in is not finite. Exact: no order,
/// number of threads or layout changes it.
void raise_to_largest(Executor& x, Tensor out, ConstTensor in);

struct AdamW {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0.0;
};

/// What decide_step() is told of the step.
struct StepDecision {
  double clip_norm = 0.0;                            ///< 0: do not clip
  double lr = 0.0;                                   ///< of this step
  AdamW adamw;                                       ///< with the largest weight_decay of any part
  double range = std::numeric_limits<float>::max();  ///< largest finite weight, m or v
};
/// The places in `largest`, fp64 (3): the largest magnitudes of all weights, m and v.
enum class Largest : int64_t { weight, first_moment, second_moment, count };

/// Decides one step from the norm's partials (fp64, added in index order; of gradients still
/// multiplied by state.loss_scale), the step's mean loss (fp64 (1), without that factor) and
/// `largest` before the step (infinity for one that is not finite), which is set to 0 where the
/// step is applied. Reads the state (u8, sizeof(StepState)) and writes every field but loss_scale:
///   grad_norm = √(Σ partials) / loss_scale
///   clip_scale = (0 < clip_norm < grad_norm ? clip_norm / grad_norm : 1) / loss_scale
///   nonfinite = loss or grad_norm is not finite, or the update is not sure to be: with
///     G = min(grad_norm, clip_norm), which no clipped gradient exceeds, M = max(m, G) and
///     t = applied + 1, each of G², v, lr M / ((1-β1^t) min(1, ε)) and the largest weight with
///     decay and step added has to stay below range / 2
/// attempted, and either applied or skipped, go up by one. A step that is applied therefore leaves
/// every weight, m and v finite (docs/numerics.md).
void decide_step(Executor& x, Tensor state, Tensor largest, ConstTensor partials, ConstTensor loss,
                 const StepDecision& decision);

/// Decoupled weight decay (arXiv:1711.05101, algorithm 2, with bias correction), on flat slices
/// (n):
///   g = clip_scale · grad;  m = β1 m + (1-β1) g;  v = β2 v + (1-β2) g²
///   w = w - lr (m / (1-β1^t) / (√(v / (1-β2^t)) + ε) + weight_decay · w),  t = state.applied
/// on the master weights: `master` (fp32, param bf16) or, when that is undefined, `param` itself
/// (fp32 or fp64); param = round(master). m, v, grad in the master weights' dtype, all of param's
/// shape. largest is raised to the magnitudes of what is written. The state has been decided:
/// t >= 1. Does nothing when state.nonfinite. Throws ShapeError.
void adamw_step(Executor& x, Tensor param, Tensor master, Tensor m, Tensor v, Tensor largest,
                ConstTensor grad, ConstTensor state, const AdamW& options);

}  // namespace gradus
