#pragma once

// The Hopper pieces a warp-specialised kernel is made of, each one PTX instruction: mbarriers,
// tensor copies (TMA), warpgroup products (wgmma), named barriers, register hand-over. sm_90a only.
// Sections named are those of the PTX ISA.

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

namespace gradus::cuda::hopper {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// Tells host memory where and why, and ends the kernel with an error.
__device__ __forceinline__ void stop(uint32_t* fault, uint32_t code, uint32_t detail) {
  fault[0] = code;
  fault[1] = blockIdx.x;
  fault[2] = threadIdx.x;
  fault[3] = detail;
  __threadfence_system();
  asm volatile("trap;");
}

// ---- mbarrier (Parallel Synchronization: mbarrier) ------------------------------------------

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

/// Makes inits visible to the asynchronous proxy.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async;" ::: "memory");
}

/// One arrival that also announces the bytes that copies will bring within this phase.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ bool barrier_try(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; "
      "}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

/// Waits for the phase of that parity to end; after some seconds writes `code` and the block to
/// host memory and traps, so that a wrong count shows as a message and not as a hang.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity, uint32_t* fault,
                                             uint32_t code) {
  if (barrier_try(barrier, parity)) return;
  const long long start = clock64();
  while (!barrier_try(barrier, parity)) {
    if (clock64() - start > 4'000'000'000ll) {
      stop(fault, code, parity);
    }
  }
}

// ---- named barriers and registers ------------------------------------------------------------

__device__ __forceinline__ void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

template <int kRegisters>
__device__ __forceinline__ void registers_release() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void registers_acquire() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- tensor copies (Data Movement: cp.async.bulk.tensor) ---------------------------------------

/// Box at coordinates (column, head, row, batch) to shared memory; its bytes count on `barrier`.
/// What lies outside the tensor arrives as zeros and counts as bytes.
__device__ __forceinline__ void tma_load(uint32_t destination, const CUtensorMap& map,
                                         uint32_t barrier, int column, int head, int row,
                                         int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4, %5, %6}], [%2];" ::"r"(destination),
      "l"(reinterpret_cast<uint64_t>(&map)), "r"(barrier), "r"(column), "r"(head), "r"(row),
      "r"(batch)
      : "memory");
}

/// Box from shared memory to the tensor; what lies outside is not written.
__device__ __forceinline__ void tma_store(const CUtensorMap& map, uint32_t source, int column,
                                          int head, int row, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(
          reinterpret_cast<uint64_t>(&map)),
      "r"(source), "r"(column), "r"(head), "r"(row), "r"(batch)
      : "memory");
}

/// Commits this thread's stores and waits until they have read shared memory.
__device__ __forceinline__ void tma_store_read_wait() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

/// Contiguous bytes (a multiple of 16, 16-byte aligned) to shared memory.
__device__ __forceinline__ void bulk_load(uint32_t destination, const void* source, uint32_t bytes,
                                          uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(destination),
      "l"(source), "r"(bytes), "r"(barrier)
      : "memory");
}

/// Orders this thread's ordinary writes to shared memory before later copies and products.
__device__ __forceinline__ void async_proxy_fence() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- warpgroup products (Asynchronous Warpgroup Level Matrix Instructions) ---------------------

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// Waits until at most kPending committed groups are under way.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// Keeps the compiler from moving uses of the registers across a fence or a wait.
template <int kCount>
__device__ __forceinline__ void pin(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

template <int kCount>
__device__ __forceinline__ void pin(uint32_t (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}

// wgmma_ss<kTransA, kTransB>(d, a, b, accumulate), wgmma_rs<kTransB>(d, registers of a, b, …):
// d (64, N) (+)= a (64, 16) b (16, N). Thread 32 w + l of the warpgroup holds of d
//   d[4 j + 0, 1]: row 16 w + l / 4,     columns 8 j + 2 (l % 4) + 0, 1
//   d[4 j + 2, 3]: row 16 w + l / 4 + 8, the same columns,
// and of a, two bf16 a register, a[0], a[1]: the two rows at columns 2 (l % 4) + 0, 1; a[2], a[3]:
// at columns + 8. So a product's result, packed, is the next product's A.
#include "bench/cuda/wgmma_shapes-inl.cuh"

__device__ __forceinline__ uint32_t pack(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// 16 bytes of shared memory as numbers.
__device__ __forceinline__ float4 shared_load(uint32_t place) {
  float4 x;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "r"(place));
  return x;
}

__device__ __forceinline__ int shared_load_int(uint32_t place) {
  int x;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(place) : "memory");
  return x;
}

__device__ __forceinline__ void shared_store(uint32_t place, uint32_t value) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(place), "r"(value) : "memory");
}

}  // namespace gradus::cuda::hopper
