#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "core/dtype.h"
#include "core/step_state.h"

namespace gradus::cuda {

/// partials[i] = Σ in² over chunk i of 1024 elements, in fp64, in a fixed order. in (n), fp32, bf16
/// or fp16; partials fp64 (ceil(n / 1024)). Reads `in` once.
struct SumOfSquares {
  double* partials = nullptr;
  const void* in = nullptr;
  int64_t count = 0;
  DType dtype = DType::fp32;
};
void sum_of_squares(const SumOfSquares& a, cudaStream_t stream);

/// out (1) = Σ partials, fp64, in an order that depends on their number alone.
void sum_partials(double* out, const double* partials, int64_t count, cudaStream_t stream);

/// A flat slice of a parameter and what its update needs, all of `count` elements.
struct AdamWSlice {
  void* param = nullptr;    ///< bf16 or fp16 beside `master`; fp32 without
  float* master = nullptr;  ///< or null: param is fp32 and is updated itself
  float* m = nullptr;
  float* v = nullptr;
  const float* grad = nullptr;
  int64_t count = 0;
  double weight_decay = 0.0;
};
/// Elements that a block takes: 1024, 2048 or 4096.
inline constexpr int64_t kAdamWChunk = 1024;
/// What a block does: elements [first, first + size) of a slice, as far as it reaches.
struct AdamWChunk {
  int64_t first = 0;
  int64_t slice = 0;
};
int64_t adamw_chunks(std::span<const AdamWSlice> slices, int64_t size = kAdamWChunk);
/// Writes adamw_chunks() chunks, in the order of the slices: made once, uploaded beside the slices.
void list_adamw_chunks(std::span<const AdamWSlice> slices, std::span<AdamWChunk> chunks,
                       int64_t size = kAdamWChunk);
/// Bytes of scratch of a step: what its blocks share.
inline constexpr int64_t kAdamWScratch = 64;

/// One step of AdamW over many slices at once, as kernels/optimizer.h has it for each:
///   g = clip_scale · grad;  m = β1 m + (1-β1) g;  v = β2 v + (1-β2) g²
///   w = w - lr (m / (1-β1^t) / (√(v / (1-β2^t)) + ε) + weight_decay · w),  t = state.applied
/// param = round(master). Rate, clip factor, t and the verdict are read from `state` on the device;
/// nothing is changed when state.nonfinite. largest (3) fp64 is raised to the magnitudes of what is
/// written (infinity for what is not finite): exact in any order.
struct AdamWStep {
  const AdamWSlice* slices = nullptr;  ///< on the device
  const AdamWChunk* chunks = nullptr;  ///< on the device
  int64_t chunk_count = 0;
  int64_t chunk_size = kAdamWChunk;
  DType param_dtype = DType::fp32;   ///< of every slice: bf16 or fp16 with master, fp32 without
  const StepState* state = nullptr;  ///< on the device
  double* largest = nullptr;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  void* scratch = nullptr;  ///< kAdamWScratch bytes, aligned to 16
};
void adamw_step(const AdamWStep& a, cudaStream_t stream);

}  // namespace gradus::cuda
