#pragma once

#include <cstdint>

#include "site.h"

// What kernels/cuda/ptx.cuh's instructions do. Layouts are those of the PTX ISA's figures.

namespace cudasim {

enum class Element { bf16, fp16 };

/// One thread's asynchronous copy of `bytes` (4, 8 or 16), the last of them zero from
/// `source_bytes` on. It happens, by the seed, at once or as late as the waits allow.
void cp_async(void* shared, const void* global, int bytes, int source_bytes,
              Site site = Site::here());
void cp_async_commit();
void cp_async_wait(int pending);

/// 1, 2 or 4 matrices of 8x8 elements of two bytes, to as many registers.
void ldmatrix(uint32_t* out, int matrices, bool transpose, const void* row,
              Site site = Site::here());

/// d += a * b, of 16x8, 16x16 and 16x8 elements.
void mma_m16n8k16(Element element, float* d, const uint32_t* a, const uint32_t* b,
                  Site site = Site::here());

float exp2_approx(float x);

}  // namespace cudasim
