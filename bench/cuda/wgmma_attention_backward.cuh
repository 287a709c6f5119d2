#pragma once

// Causal attention backward for Hopper in two passes without atomics (deterministic): one kernel
// owns kW x 64 keys and walks the queries that see them (dK, dV), one owns kW x 64 queries and
// walks the keys they see (dQ). Both recompute S and dP: seven products where a single pass needs
// five, but no fp32 dQ goes through memory, and P and dS never leave registers: the first kernel
// computes them transposed, so that its results are the A operands of the next products.

#include "bench/cuda/wgmma.cuh"

namespace gradus::cuda::hopper {

struct BackwardArguments {
  CUtensorMap q, k, v, dout;  ///< (B, T, H, D) bf16; boxes as each kernel says
  CUtensorMap dq, dk, dv;     ///< boxes of 64 rows
  const float2* rows;         ///< (B, H, rows_padded): lse · log2 e and row_sum; past T: (+inf, 0)
  uint32_t* fault;
  int queries, rows_padded;
  int heads;
  WorkOrder order;
  float scale;
};

struct RowSumArguments {
  const __nv_bfloat16 *dout, *out;  ///< (B, T, H, D) contiguous
  const float* lse;                 ///< (B, H, T)
  float2* rows;
  int batches, queries, heads, rows_padded;
};

/// rows = (lse · log2 e, Σ_d dout · out); eight threads to a row.
template <int D>
__global__ void __launch_bounds__(256) row_sum_kernel(RowSumArguments a) {
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 8;
  const int lane = threadIdx.x % 8;
  const int64_t rows = static_cast<int64_t>(a.batches) * a.rows_padded * a.heads;
  if (row >= rows) return;
  // Heads vary fastest, as in memory.
  const int head = static_cast<int>(row % a.heads);
  const int64_t batch_row = row / a.heads;
  const int t = static_cast<int>(batch_row % a.rows_padded);
  const int64_t batch = batch_row / a.rows_padded;
  float sum = 0.0f;
  if (t < a.queries) {
    const int64_t offset = ((batch * a.queries + t) * a.heads + head) * D;
#pragma unroll
    for (int i = 0; i < D / 64; ++i) {
      const uint4 x = *reinterpret_cast<const uint4*>(a.dout + offset + i * 64 + lane * 8);
      const uint4 y = *reinterpret_cast<const uint4*>(a.out + offset + i * 64 + lane * 8);
      const uint32_t xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sum += __uint_as_float(xs[j] << 16) * __uint_as_float(ys[j] << 16);
        sum += __uint_as_float(xs[j] & 0xffff0000u) * __uint_as_float(ys[j] & 0xffff0000u);
      }
    }
  }
  sum += __shfl_xor_sync(~0u, sum, 1);
  sum += __shfl_xor_sync(~0u, sum, 2);
  sum += __shfl_xor_sync(~0u, sum, 4);
  if (lane == 0) {
    const int64_t pair = batch * a.heads + head;
    a.rows[pair * a.rows_padded + t] =
        t < a.queries ? make_float2(a.lse[pair * a.queries + t] * 1.4426950408889634f, sum)
                      : make_float2(INFINITY, 0.0f);
  }
}

/// kOwned: rows a block owns, kW x 64; kWalked: rows of a tile it walks.
template <int kHead, int kWarpgroups, int kWalkedRows, int kRing>
struct BackwardTile {
  static constexpr int D = kHead, kW = kWarpgroups, kN = kWalkedRows, kStages = kRing;
  static constexpr int kOwned = 64 * kW;
  static constexpr int kThreads = 128 * (kW + 1);
  static constexpr uint32_t kOwnedBytes = 64 * D * 2;  // of one tensor and warpgroup
  static constexpr uint32_t kTileBytes = kN * D * 2;   // of one tensor
  static constexpr uint32_t kRowBytes = kN * 8;        // lse and row_sum
  // Owned: first tensor, second tensor. Ring: first tensor, second tensor; then rows.
  // Two buffers for what is owned where they fit.
  static constexpr uint32_t kRest = kStages * (2 * kTileBytes + kRowBytes) + 8 * (6 + 2 * kStages);
  static constexpr int kBuffers = kRest + 4 * kW * kOwnedBytes <= 227 * 1024 ? 2 : 1;
  static constexpr uint32_t kOwned0 = 0, kOwned1 = kBuffers * kW * kOwnedBytes;
  static constexpr uint32_t kRing0 = 2 * kBuffers * kW * kOwnedBytes,
                            kRing1 = kRing0 + kStages * kTileBytes;
  static constexpr uint32_t kRows = kRing1 + kStages * kTileBytes;
  static constexpr uint32_t kBarriers = kRows + kStages * kRowBytes;
  static constexpr uint32_t kSharedBytes = kBarriers + 8 * (6 + 2 * kStages);
  static constexpr int kProducerRegisters = kW == 2 ? 24 : 32;
  static constexpr int kConsumerRegisters = kW == 2 ? 240 : 160;
  static constexpr int kLaunchRegisters = kW == 2 ? 168 : 128;
};

namespace backward_detail {

template <class Tile>
struct Barriers {
  uint32_t base;
  __device__ __forceinline__ uint32_t owned_full(int b) const { return base + 8 * b; }
  __device__ __forceinline__ uint32_t owned_empty(int b) const { return base + 16 + 8 * b; }
  __device__ __forceinline__ uint32_t item(int b) const { return base + 32 + 8 * b; }
  __device__ __forceinline__ uint32_t full(int s) const { return base + 48 + 8 * s; }
  __device__ __forceinline__ uint32_t empty(int s) const { return full(Tile::kStages + s); }
  __device__ __forceinline__ void init() const {
    for (int b = 0; b < Tile::kBuffers; ++b) {
      barrier_init(owned_full(b), 1);
      barrier_init(owned_empty(b), Tile::kW);
    }
    for (int s = 0; s < Tile::kStages; ++s) {
      barrier_init(full(s), 1);
      barrier_init(empty(s), 4 * Tile::kW);
    }
    barrier_init_fence();
  }
};

struct Place {
  int first_row, batch, head, first_tile, end_tile;
};

/// Keys owned: the first keys are seen by most queries.
template <class Tile>
__device__ __forceinline__ Place place_of_keys(const BackwardArguments& a, int item) {
  int rank, pair;
  a.order.place(item, rank, pair);
  const int first = rank * Tile::kOwned;
  return {first, pair / a.heads, pair % a.heads, first / Tile::kN,
          (a.queries + Tile::kN - 1) / Tile::kN};
}

template <class Tile>
__device__ __forceinline__ Place place_of_queries(const BackwardArguments& a, int item) {
  int rank, pair;
  a.order.place(item, rank, pair);
  const int block = a.order.tiles - 1 - rank;
  const int end = min((block + 1) * Tile::kOwned, a.queries);
  return {block * Tile::kOwned, pair / a.heads, pair % a.heads, 0, (end + Tile::kN - 1) / Tile::kN};
}

/// Streams what a block owns (two tensors, boxes of 64 rows) and walks (two, boxes of kN rows).
template <class Tile, bool kKeysOwned>
__device__ __forceinline__ void produce(const BackwardArguments& a, uint32_t base,
                                        const Barriers<Tile>& bars) {
  const CUtensorMap& owned0 = kKeysOwned ? a.k : a.q;
  const CUtensorMap& owned1 = kKeysOwned ? a.v : a.dout;
  const CUtensorMap& walked0 = kKeysOwned ? a.q : a.k;
  const CUtensorMap& walked1 = kKeysOwned ? a.dout : a.v;
  RingPlace<Tile::kStages> ring;
  RingPlace<Tile::kBuffers> owned;
  for (int item = a.order.take();;) {
    barrier_wait(bars.owned_empty(owned.slot), owned.parity ^ 1, a.fault, 21);
    if (item >= a.order.items) {
      shared_store(bars.item(owned.slot), ~0u);
      barrier_arrive(bars.owned_full(owned.slot));
      return;
    }
    shared_store(bars.item(owned.slot), item);
    const Place p = kKeysOwned ? place_of_keys<Tile>(a, item) : place_of_queries<Tile>(a, item);
    const uint32_t owned_full = bars.owned_full(owned.slot);
    barrier_expect(owned_full, 2 * Tile::kW * Tile::kOwnedBytes);
    for (int w = 0; w < Tile::kW; ++w) {
#pragma unroll
      for (int slab = 0; slab < Tile::D / 64; ++slab) {
        const uint32_t place =
            base + (owned.slot * Tile::kW + w) * Tile::kOwnedBytes + slab * 64 * kSlabRow;
        tma_load(place + Tile::kOwned0, owned0, owned_full, slab * 64, p.head, p.first_row + w * 64,
                 p.batch);
        tma_load(place + Tile::kOwned1, owned1, owned_full, slab * 64, p.head, p.first_row + w * 64,
                 p.batch);
      }
    }
    owned.next();
    item = a.order.take_next();  // its latency passes under this item's copies
    for (int tile = p.first_tile; tile < p.end_tile; ++tile) {
      barrier_wait(bars.empty(ring.slot), ring.parity ^ 1, a.fault, 22);
      const uint32_t full = bars.full(ring.slot);
      barrier_expect(full, 2 * Tile::kTileBytes + (kKeysOwned ? Tile::kRowBytes : 0));
#pragma unroll
      for (int slab = 0; slab < Tile::D / 64; ++slab) {
        const uint32_t place = base + ring.slot * Tile::kTileBytes + slab * Tile::kN * kSlabRow;
        tma_load(place + Tile::kRing0, walked0, full, slab * 64, p.head, tile * Tile::kN, p.batch);
        tma_load(place + Tile::kRing1, walked1, full, slab * 64, p.head, tile * Tile::kN, p.batch);
      }
      if constexpr (kKeysOwned) {
        const int64_t pair = static_cast<int64_t>(p.batch) * a.heads + p.head;
        bulk_load(base + Tile::kRows + ring.slot * Tile::kRowBytes,
                  a.rows + pair * a.rows_padded + tile * Tile::kN, Tile::kRowBytes, full);
      }
      ring.next();
    }
  }
}

/// Lets a warpgroup's (64, D) results out through its part of the owned tensors.
template <int D>
__device__ __forceinline__ void store(const CUtensorMap& map, uint32_t tile, const Place& p,
                                      int row) {
#pragma unroll
  for (int slab = 0; slab < D / 64; ++slab) {
    tma_store(map, tile + slab * 64 * kSlabRow, slab * 64, p.head, row, p.batch);
  }
}

/// dK and dV of 64 keys: rows of every register tile are keys, columns the queries walked.
template <class Tile>
__device__ __forceinline__ void consume_queries(const BackwardArguments& a, uint32_t base,
                                                const Barriers<Tile>& bars, int w) {
  constexpr int D = Tile::D, kN = Tile::kN;
  const int warp = (threadIdx.x / 32) % 4, lane = threadIdx.x % 32;
  uint32_t k_tile = 0, v_tile = 0;
  const float scale2 = a.scale * 1.4426950408889634f;
  RingPlace<Tile::kStages> ahead, behind;  // of the next scores; of the slot to release next
  RingPlace<Tile::kBuffers> owned;

  float s[kN / 2], dp[kN / 2], dk[D / 2], dv[D / 2];
  uint32_t p_packed[kN / 4], ds_packed[kN / 4];

  const auto release = [&] {
    __syncwarp();
    if (lane == 0) barrier_arrive(bars.empty(behind.slot));
    behind.next();
  };
  // S and dP of the tile `ahead`, a group each.
  const auto issue_scores = [&] {
    barrier_wait(bars.full(ahead.slot), ahead.parity, a.fault, 23);
    wgmma_fence();
    product_nt<D, kN>(s, k_tile, base + Tile::kRing0 + ahead.slot * Tile::kTileBytes);
    wgmma_commit();
    product_nt<D, kN>(dp, v_tile, base + Tile::kRing1 + ahead.slot * Tile::kTileBytes);
    wgmma_commit();
  };

  const auto next_item = [&] {
    barrier_wait(bars.owned_full(owned.slot), owned.parity, a.fault, 24);
    return __shfl_sync(~0u, shared_load_int(bars.item(owned.slot)), 0);
  };
  for (int item = next_item(); item >= 0; owned.next(), item = next_item()) {
    const Place p = place_of_keys<Tile>(a, item);
    k_tile = base + Tile::kOwned0 + (owned.slot * Tile::kW + w) * Tile::kOwnedBytes;
    v_tile = base + Tile::kOwned1 + (owned.slot * Tile::kW + w) * Tile::kOwnedBytes;
    const int first_key = p.first_row + w * 64;
    const int key = first_key + warp * 16 + lane / 4;

    zero(dk);
    zero(dv);
    issue_scores();
    for (int tile = p.first_tile;; ++tile) {
      const int slot = ahead.slot;
      const uint32_t rows = base + Tile::kRows + slot * Tile::kRowBytes + (lane % 4) * 16;
      const bool first = tile == p.first_tile;
      wgmma_wait<1>();  // S, and dK of the tile before
      pin(s);
      pin(dk);
      pin(ds_packed);
      if (!first) release();
      const bool masked = tile * kN < first_key + 63;
      const int query = tile * kN + 2 * (lane % 4);
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) {
        const float4 columns = shared_load(rows + j * 64);
        const float lse[2] = {columns.x, columns.z};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float& value = s[4 * j + e];
          value = exp2_approx(fmaf(value, scale2, -lse[e % 2]));
          if (masked && query + 8 * j + e % 2 < key + 8 * (e / 2)) value = 0.0f;
        }
      }
      pack_all<kN>(p_packed, s);
      pin(dv);
      pin(p_packed);
      wgmma_fence();
      product_nn<kN, D>(dv, p_packed, base + Tile::kRing1 + slot * Tile::kTileBytes, true);
      wgmma_commit();
      wgmma_wait<1>();  // dP
      pin(dp);
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) {
        const float4 columns = shared_load(rows + j * 64);
        const float row_sum[2] = {columns.y, columns.w};
#pragma unroll
        for (int e = 0; e < 4; ++e) dp[4 * j + e] = s[4 * j + e] * (dp[4 * j + e] - row_sum[e % 2]);
      }
      pack_all<kN>(ds_packed, dp);
      pin(dk);
      pin(ds_packed);
      wgmma_fence();
      product_nn<kN, D>(dk, ds_packed, base + Tile::kRing0 + slot * Tile::kTileBytes, true);
      wgmma_commit();
      wgmma_wait<1>();  // dV: its A registers are wanted for the next scores
      pin(dv);
      pin(p_packed);
      ahead.next();
      if (tile + 1 == p.end_tile) break;
      issue_scores();
    }
    wgmma_wait<0>();
    pin(dv);
    pin(dk);
    release();

    const int own = 1 + w;
    named_sync(own, 128);
    write_tile<D>(k_tile, dk, a.scale, a.scale);
    write_tile<D>(v_tile, dv, 1.0f, 1.0f);
    async_proxy_fence();
    named_sync(own, 128);
    if (threadIdx.x % 128 == 0) {
      store<D>(a.dk, k_tile, p, first_key);
      store<D>(a.dv, v_tile, p, first_key);
      tma_store_read_wait();
      barrier_arrive(bars.owned_empty(owned.slot));
    }
  }
}

/// dQ of 64 queries: columns of the register tiles are the keys walked.
template <class Tile>
__device__ __forceinline__ void consume_keys(const BackwardArguments& a, uint32_t base,
                                             const Barriers<Tile>& bars, int w) {
  constexpr int D = Tile::D, kN = Tile::kN;
  const int warp = (threadIdx.x / 32) % 4, lane = threadIdx.x % 32;
  uint32_t q_tile = 0, dout_tile = 0;
  const float scale2 = a.scale * 1.4426950408889634f;
  RingPlace<Tile::kStages> ahead, behind;
  RingPlace<Tile::kBuffers> owned;

  float s[kN / 2], dp[kN / 2], dq[D / 2];
  uint32_t ds_packed[kN / 4];

  const auto release = [&] {
    __syncwarp();
    if (lane == 0) barrier_arrive(bars.empty(behind.slot));
    behind.next();
  };
  const auto issue_scores = [&] {
    barrier_wait(bars.full(ahead.slot), ahead.parity, a.fault, 25);
    wgmma_fence();
    product_nt<D, kN>(s, q_tile, base + Tile::kRing0 + ahead.slot * Tile::kTileBytes);
    wgmma_commit();
    product_nt<D, kN>(dp, dout_tile, base + Tile::kRing1 + ahead.slot * Tile::kTileBytes);
    wgmma_commit();
  };

  const auto next_item = [&] {
    barrier_wait(bars.owned_full(owned.slot), owned.parity, a.fault, 26);
    return __shfl_sync(~0u, shared_load_int(bars.item(owned.slot)), 0);
  };
  for (int item = next_item(); item >= 0; owned.next(), item = next_item()) {
    const Place p = place_of_queries<Tile>(a, item);
    q_tile = base + Tile::kOwned0 + (owned.slot * Tile::kW + w) * Tile::kOwnedBytes;
    dout_tile = base + Tile::kOwned1 + (owned.slot * Tile::kW + w) * Tile::kOwnedBytes;
    const int first_query = p.first_row + w * 64;
    const int query = first_query + warp * 16 + lane / 4;
    const float2* rows =
        a.rows + (static_cast<int64_t>(p.batch) * a.heads + p.head) * a.rows_padded;
    float lse[2] = {INFINITY, INFINITY}, row_sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (query + 8 * half < a.queries) {
        const float2 row = rows[query + 8 * half];
        lse[half] = row.x;
        row_sum[half] = row.y;
      }
    }

    zero(dq);
    issue_scores();
    for (int tile = 0;; ++tile) {
      const int slot = ahead.slot;
      wgmma_wait<1>();  // S, and dQ of the tile before
      pin(s);
      pin(dq);
      pin(ds_packed);
      if (tile > 0) release();
      const bool masked = (tile + 1) * kN - 1 > first_query;
      const int key = tile * kN + 2 * (lane % 4);
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) {
        const int half = i % 4 / 2;
        s[i] = exp2_approx(fmaf(s[i], scale2, -lse[half]));
        if (masked && key + 8 * (i / 4) + i % 2 > query + 8 * half) s[i] = 0.0f;
      }
      wgmma_wait<0>();
      pin(dp);
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) dp[i] = s[i] * (dp[i] - row_sum[i % 4 / 2]);
      pack_all<kN>(ds_packed, dp);
      pin(dq);
      pin(ds_packed);
      wgmma_fence();
      product_nn<kN, D>(dq, ds_packed, base + Tile::kRing0 + slot * Tile::kTileBytes, true);
      wgmma_commit();
      ahead.next();
      if (tile + 1 == p.end_tile) break;
      issue_scores();
    }
    wgmma_wait<0>();
    pin(dq);
    release();

    const int own = 1 + w;
    named_sync(own, 128);
    write_tile<D>(q_tile, dq, a.scale, a.scale);
    async_proxy_fence();
    named_sync(own, 128);
    if (threadIdx.x % 128 == 0) {
      store<D>(a.dq, q_tile, p, first_query);
      tma_store_read_wait();
      barrier_arrive(bars.owned_empty(owned.slot));
    }
  }
}

}  // namespace backward_detail

template <class Tile, bool kKeysOwned>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    attention_backward_kernel(const __grid_constant__ BackwardArguments a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDACC__)
  extern __shared__ __align__(1024) uint8_t attention_shared[];
  const uint32_t base = shared_address(attention_shared);
  const backward_detail::Barriers<Tile> bars{base + Tile::kBarriers};
  const int warpgroup = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0);
  if (threadIdx.x == 0) {
    if (base % kSwizzleAtom != 0) stop(a.fault, 99, base);
    bars.init();
  }
  __syncthreads();
  if (warpgroup == 0) {
    registers_release<Tile::kProducerRegisters>();
    if (threadIdx.x == 0) backward_detail::produce<Tile, kKeysOwned>(a, base, bars);
  } else {
    registers_acquire<Tile::kConsumerRegisters>();
    if constexpr (kKeysOwned) {
      backward_detail::consume_queries<Tile>(a, base, bars, warpgroup - 1);
    } else {
      backward_detail::consume_keys<Tile>(a, base, bars, warpgroup - 1);
    }
  }
#endif
}

}  // namespace gradus::cuda::hopper
