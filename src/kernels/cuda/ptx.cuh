#pragma once

// Instructions that CUDA C++ has no name for: asynchronous copies to shared memory, matrix
// fragments and their products (PTX ISA 8.x, sm_80 and later). Each has a body for nvcc, and a host
// twin that cudasim executes. `lane` is the thread's number in its warp; a register of a fragment
// holds two neighbours, the lower column (or row, in B) in the lower half.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#if !defined(__CUDACC__)
#include <cudasim/ptx.h>
#endif

namespace gradus::cuda {

// ---- two elements in a register ----

/// low and high rounded to T (__nv_bfloat16 or __half), to nearest even, as the halves of a
/// register.
template <typename T>
__device__ inline uint32_t pack2(float low, float high) {
  uint32_t bits;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    memcpy(&bits, &pair, sizeof(bits));
  } else {
    static_assert(std::is_same_v<T, __half>);
    const __half2 pair = __floats2half2_rn(low, high);
    memcpy(&bits, &pair, sizeof(bits));
  }
  return bits;
}

/// The halves of a register, low first.
template <typename T>
__device__ inline float2 unpack2(uint32_t bits) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    __nv_bfloat162 pair;
    memcpy(&pair, &bits, sizeof(bits));
    return __bfloat1622float2(pair);
  } else {
    static_assert(std::is_same_v<T, __half>);
    __half2 pair;
    memcpy(&pair, &bits, sizeof(bits));
    return __half22float2(pair);
  }
}

// ---- arithmetic ----

/// 2^x, to about two units in the last place; results below 2^-126 are 0.
__device__ inline float exp2_approx(float x) {
#if defined(__CUDACC__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return cudasim::exp2_approx(x);
#endif
}

// ---- asynchronous copies ----

#if defined(__CUDACC__)
__device__ inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}
#endif

/// Copies the first `source_bytes` (0…16) of 16 bytes at `global` to `shared` and fills the rest
/// with zeros; nothing is read of `global` where it is 0, but the pointer is 16-byte aligned all
/// the same, as `shared` is. Done when the thread has waited for the group that it commits the copy
/// to; other threads see it after a barrier behind that wait.
__device__ inline void cp_async_16(void* shared, const void* global, int source_bytes) {
#if defined(__CUDACC__)
  asm volatile(
      "cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
      "l"(__cvta_generic_to_global(global)), "r"(source_bytes)
      : "memory");
#else
  cudasim::cp_async(shared, global, 16, source_bytes);
#endif
}

/// Copies 16 bytes.
__device__ inline void cp_async_16(void* shared, const void* global) {
#if defined(__CUDACC__)
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global))
               : "memory");
#else
  cudasim::cp_async(shared, global, 16, 16);
#endif
}

/// Makes one group of the thread's copies since the last commit (of none, too).
__device__ inline void cp_async_commit() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  cudasim::cp_async_commit();
#endif
}

/// Waits until at most the kPending youngest of the thread's groups are under way.
template <int kPending>
__device__ inline void cp_async_wait() {
  static_assert(kPending >= 0);
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  cudasim::cp_async_wait(kPending);
#endif
}

// ---- fragments from shared memory ----
//
// A matrix is 8 rows of 16 bytes (8 elements). Lane 8*m + r gives the address of row r of matrix m
// (x2: lanes 0…15; what the others give is not read, but is a shared address as theirs). Register m
// of `lane` is then row lane/4, columns 2*(lane%4) and the next of matrix m; transposed, rows
// 2*(lane%4) and the next of column lane/4.

__device__ inline void ldmatrix_x4(uint32_t (&out)[4], const void* row) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
#else
  cudasim::ldmatrix(out, 4, false, row);
#endif
}

__device__ inline void ldmatrix_x4_trans(uint32_t (&out)[4], const void* row) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
#else
  cudasim::ldmatrix(out, 4, true, row);
#endif
}

__device__ inline void ldmatrix_x2(uint32_t (&out)[2], const void* row) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(out[0]), "=r"(out[1])
               : "r"(shared_address(row))
               : "memory");
#else
  cudasim::ldmatrix(out, 2, false, row);
#endif
}

__device__ inline void ldmatrix_x2_trans(uint32_t (&out)[2], const void* row) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(out[0]), "=r"(out[1])
               : "r"(shared_address(row))
               : "memory");
#else
  cudasim::ldmatrix(out, 2, true, row);
#endif
}

// ---- products of fragments ----

/// d += a * b of a warp: a (16, 16) by rows, b (16, 8) by columns, both T (__nv_bfloat16 or
/// __half), d (16, 8) fp32. With group = lane/4 and pair = 2*(lane%4):
///   a[0] rows group,     columns pair, pair+1     a[2] rows group,     columns pair+8, pair+9
///   a[1] rows group + 8, columns pair, pair+1     a[3] rows group + 8, columns pair+8, pair+9
///   b[0] rows pair, pair+1 of column group        b[1] rows pair+8, pair+9 of column group
///   d[0], d[1] row group, columns pair, pair+1    d[2], d[3] row group + 8, the same columns
template <typename T>
__device__ inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>);
#if defined(__CUDACC__)
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#else
  cudasim::mma_m16n8k16(
      std::is_same_v<T, __nv_bfloat16> ? cudasim::Element::bf16 : cudasim::Element::fp16, d, a, b);
#endif
}

}  // namespace gradus::cuda
