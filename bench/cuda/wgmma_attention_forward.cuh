#pragma once

// Causal attention forward for Hopper (arXiv:2205.14135, 2407.08608). A block owns kW x 64 queries:
// one producer thread streams tiles of kN keys and values through a ring of shared memory with
// tensor copies; each of kW warpgroups keeps the scores, the online softmax and the output of its
// 64 queries in registers. Read once: Q; K and V once per block of queries (from L2); written once:
// out, lse. Tiles above the diagonal are never loaded, only those on it are masked.

#include "bench/cuda/wgmma.cuh"

namespace gradus::cuda::hopper {

struct ForwardArguments {
  CUtensorMap q, k, v, out;  ///< (B, T, H, D) bf16; boxes of 64 rows for q and out, kN for k and v
  float* lse;                ///< (B, H, T)
  uint32_t* fault;           ///< host memory, see barrier_wait
  int queries;               ///< T
  int heads;
  WorkOrder order;
  float scale;
};

/// The rungs. kOverlap: the scores of the next tile are issued before the wait for this tile's
/// output product. kPingPong: warpgroups issue their products in turn, so that one's softmax runs
/// under another's products. kLazy: the maximum that is subtracted follows the true one only past a
/// distance, so that the output is seldom rescaled. kPolynomial n: every n-th exponential is taken
/// by fused multiply-adds, to relieve the unit that makes 16 a clock (0: none). Without kSoftmax:
/// the products and copies alone, a bound on what any softmax allows; its results mean nothing.
template <int kHead, int kWarpgroups, int kKeys, int kRing, bool kOverlap_, bool kPingPong_,
          bool kLazy_ = false, int kPolynomial_ = 0, bool kSoftmax_ = true>
struct ForwardTile {
  static constexpr int D = kHead, kW = kWarpgroups, kN = kKeys, kStages = kRing;
  static constexpr bool kOverlap = kOverlap_, kPingPong = kPingPong_, kLazy = kLazy_;
  static constexpr int kPolynomial = kPolynomial_;
  static constexpr bool kSoftmax = kSoftmax_;
  static constexpr int kQueries = 64 * kW;
  static constexpr int kThreads = 128 * (kW + 1);
  static constexpr uint32_t kQBytes = 64 * D * 2;     // of one warpgroup
  static constexpr uint32_t kTileBytes = kN * D * 2;  // of K or of V
  // Two buffers for Q where they fit, so that a block that goes on to another item has it in time.
  static constexpr uint32_t kRest = 2 * kStages * kTileBytes + 8 * (6 + 4 * kStages);
  static constexpr int kBuffers = kRest + 2 * kW * kQBytes <= 227 * 1024 ? 2 : 1;
  static constexpr uint32_t kK = kBuffers * kW * kQBytes, kV = kK + kStages * kTileBytes;
  static constexpr uint32_t kBarriers = kV + kStages * kTileBytes;
  static constexpr uint32_t kSharedBytes = kBarriers + 8 * (6 + 4 * kStages);
  static constexpr int kProducerRegisters = kW == 2 ? 24 : 32;
  static constexpr int kConsumerRegisters = kW == 2 ? 240 : 160;
  static constexpr int kLaunchRegisters = kW == 2 ? 168 : 128;
};

namespace forward_detail {

/// Where a block's barriers lie.
template <class Tile>
struct Barriers {
  uint32_t base;
  __device__ __forceinline__ uint32_t q_full(int b) const { return base + 8 * b; }
  __device__ __forceinline__ uint32_t q_empty(int b) const { return base + 16 + 8 * b; }
  __device__ __forceinline__ uint32_t item(int b) const { return base + 32 + 8 * b; }
  __device__ __forceinline__ uint32_t k_full(int s) const { return base + 48 + 8 * s; }
  __device__ __forceinline__ uint32_t k_empty(int s) const { return k_full(Tile::kStages + s); }
  __device__ __forceinline__ uint32_t v_full(int s) const { return k_full(2 * Tile::kStages + s); }
  __device__ __forceinline__ uint32_t v_empty(int s) const { return k_full(3 * Tile::kStages + s); }
};

struct Place {
  int first_query, batch, head, tiles;
};

template <class Tile>
__device__ __forceinline__ Place place_of(const ForwardArguments& a, int item) {
  int rank, pair;
  a.order.place(item, rank, pair);
  const int block = a.order.tiles - 1 - rank;
  const int end = min((block + 1) * Tile::kQueries, a.queries);
  return {block * Tile::kQueries, pair / a.heads, pair % a.heads, (end + Tile::kN - 1) / Tile::kN};
}

template <class Tile>
__device__ __forceinline__ void load_tile(uint32_t destination, const CUtensorMap& map,
                                          uint32_t full, const Place& p, int tile) {
  barrier_expect(full, Tile::kTileBytes);
#pragma unroll
  for (int slab = 0; slab < Tile::D / 64; ++slab) {
    tma_load(destination + slab * Tile::kN * kSlabRow, map, full, slab * 64, p.head,
             tile * Tile::kN, p.batch);
  }
}

template <class Tile>
__device__ __forceinline__ void produce(const ForwardArguments& a, uint32_t base,
                                        const Barriers<Tile>& bars) {
  RingPlace<Tile::kStages> k, v;
  RingPlace<Tile::kBuffers> q;
  for (int item = a.order.take();;) {
    barrier_wait(bars.q_empty(q.slot), q.parity ^ 1, a.fault, 1);
    if (item >= a.order.items) {
      shared_store(bars.item(q.slot), ~0u);
      barrier_arrive(bars.q_full(q.slot));
      return;
    }
    shared_store(bars.item(q.slot), item);
    const Place p = place_of<Tile>(a, item);
    barrier_expect(bars.q_full(q.slot), Tile::kW * Tile::kQBytes);
#pragma unroll
    for (int w = 0; w < Tile::kW; ++w) {
#pragma unroll
      for (int slab = 0; slab < Tile::D / 64; ++slab) {
        tma_load(base + (q.slot * Tile::kW + w) * Tile::kQBytes + slab * 64 * kSlabRow, a.q,
                 bars.q_full(q.slot), slab * 64, p.head, p.first_query + w * 64, p.batch);
      }
    }
    q.next();
    item = a.order.take_next();  // its latency passes under this item's copies
    // In the order of use: K of the next tile before V of this one.
    for (int tile = 0; tile <= p.tiles; ++tile) {
      if (tile < p.tiles) {
        barrier_wait(bars.k_empty(k.slot), k.parity ^ 1, a.fault, 2);
        load_tile<Tile>(base + Tile::kK + k.slot * Tile::kTileBytes, a.k, bars.k_full(k.slot), p,
                        tile);
        k.next();
      }
      if (tile > 0) {
        barrier_wait(bars.v_empty(v.slot), v.parity ^ 1, a.fault, 3);
        load_tile<Tile>(base + Tile::kV + v.slot * Tile::kTileBytes, a.v, bars.v_full(v.slot), p,
                        tile - 1);
        v.next();
      }
    }
  }
}

/// 2^x for x up to a few powers, to 1e-4: x = j + f with j whole and |f| <= 1/2, 2^f by a
/// polynomial with p(0) = 1, j added to its exponent. From -127 on exactly 0, as for what is
/// masked.
__device__ __forceinline__ float exp2_polynomial(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 x 2^23: the sum's low bits are j
  x = fmaxf(x, -127.0f);
  const float shifted = x + kRound;
  const float f = x - (shifted - kRound);
  float p = fmaf(f, 0.055008550f, 0.242211290f);
  p = fmaf(p, f, 0.693283004f);
  p = fmaf(p, f, 1.0f);
  return __int_as_float(__float_as_int(p) + static_cast<int>(__float_as_uint(shifted) << 23));
}

/// The online softmax of the two rows that a thread shares with the three others of its quad. A
/// row's sum is the thread's own until finish().
template <class Tile>
struct Softmax {
  static constexpr int kN = Tile::kN;
  static constexpr float kDistance = 8.0f;  // weights up to 2^8 instead of 1
  float maximum[2], sum[2];
  float rescale[2] = {1.0f, 1.0f};
  bool moved = true;  // a row of this warp is to be rescaled

  __device__ __forceinline__ void begin() {
    maximum[0] = maximum[1] = -INFINITY;
    sum[0] = sum[1] = 0.0f;
  }

  /// scores become exp2(scale2 (score - maximum)); rescale is what older sums are to be multiplied
  /// by. Key 0 is in the first tile, so that every maximum is finite.
  __device__ __forceinline__ void update(float (&scores)[kN / 2], float scale2) {
    float most[2] = {maximum[0], maximum[1]};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) {
        most[half] =
            fmaxf(most[half], fmaxf(scores[4 * j + 2 * half], scores[4 * j + 2 * half + 1]));
      }
      most[half] = fmaxf(most[half], __shfl_xor_sync(~0u, most[half], 1));
      most[half] = fmaxf(most[half], __shfl_xor_sync(~0u, most[half], 2));
    }
    moved = true;
    if constexpr (Tile::kLazy) {
      const bool far = (most[0] - maximum[0]) * scale2 > kDistance ||
                       (most[1] - maximum[1]) * scale2 > kDistance;
      moved = __any_sync(~0u, far);
    }
    if (moved) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        rescale[half] = exp2_approx((maximum[half] - most[half]) * scale2);
        maximum[half] = most[half];
        sum[half] *= rescale[half];
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float shift = maximum[half] * scale2;
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int i = 4 * j + 2 * half + e;
          const float x = fmaf(scores[i], scale2, -shift);
          constexpr int kEvery = Tile::kPolynomial == 0 ? 1 : Tile::kPolynomial;
          if (Tile::kPolynomial != 0 && (j * 2 + e) % kEvery == 0) {
            scores[i] = exp2_polynomial(x);
          } else {
            scores[i] = exp2_approx(x);
          }
          sum[half] += scores[i];
        }
      }
    }
  }

  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum[half] += __shfl_xor_sync(~0u, sum[half], 1);
      sum[half] += __shfl_xor_sync(~0u, sum[half], 2);
    }
  }
};

template <int kN>
__device__ __forceinline__ void mask(float (&scores)[kN / 2], int first_key, int row) {
  const int column = first_key + 2 * (threadIdx.x % 4);
#pragma unroll
  for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (column + 8 * j + e > row) scores[4 * j + e] = -INFINITY;
      if (column + 8 * j + e > row + 8) scores[4 * j + 2 + e] = -INFINITY;
    }
  }
}

template <class Tile>
__device__ __forceinline__ void consume(const ForwardArguments& a, uint32_t base,
                                        const Barriers<Tile>& bars, int w) {
  constexpr int D = Tile::D, kN = Tile::kN;
  const int warp = (threadIdx.x / 32) % 4, lane = threadIdx.x % 32;
  const float scale2 = a.scale * 1.4426950408889634f;
  RingPlace<Tile::kStages> k, v;
  RingPlace<Tile::kBuffers> q;
  uint32_t q_tile = 0;

  float scores[kN / 2], out[D / 2];
  uint32_t weights[kN / 4];
  Softmax<Tile> softmax;

  // Each warp says for itself that it has read a slot.
  const auto release = [&](uint32_t barrier) {
    __syncwarp();
    if (lane == 0) barrier_arrive(barrier);
  };
  const auto issue_scores = [&] {
    barrier_wait(bars.k_full(k.slot), k.parity, a.fault, 4);
    wgmma_fence();
    product_nt<D, kN>(scores, q_tile, base + Tile::kK + k.slot * Tile::kTileBytes);
    wgmma_commit();
  };
  const auto issue_output = [&](bool accumulate) {
    barrier_wait(bars.v_full(v.slot), v.parity, a.fault, 5);
    pin(out);
    pin(weights);
    wgmma_fence();
    product_nn<kN, D>(out, weights, base + Tile::kV + v.slot * Tile::kTileBytes, accumulate);
    wgmma_commit();
  };
  const auto rescale_output = [&] {
    if (!softmax.moved) return;
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
      out[4 * j] *= softmax.rescale[0];
      out[4 * j + 1] *= softmax.rescale[0];
      out[4 * j + 2] *= softmax.rescale[1];
      out[4 * j + 3] *= softmax.rescale[1];
    }
  };
  constexpr int kTurn = 1;  // named barriers kTurn + w: warpgroup w may issue
  if (Tile::kPingPong && w == Tile::kW - 1) named_arrive(kTurn, 256);

  const auto next_item = [&] {
    barrier_wait(bars.q_full(q.slot), q.parity, a.fault, 6);
    return __shfl_sync(~0u, shared_load_int(bars.item(q.slot)), 0);
  };
  for (int item = next_item(); item >= 0; q.next(), item = next_item()) {
    const Place p = place_of<Tile>(a, item);
    q_tile = base + (q.slot * Tile::kW + w) * Tile::kQBytes;
    const int first_row = p.first_query + w * 64;
    const int row = first_row + warp * 16 + lane / 4;
    softmax.begin();

    const auto softmax_tile = [&](int tile) {
      if constexpr (!Tile::kSoftmax) return;
      if ((tile + 1) * kN - 1 > first_row) mask<kN>(scores, tile * kN, row);
      softmax.update(scores, scale2);
    };

    issue_scores();
    wgmma_wait<0>();
    pin(scores);
    release(bars.k_empty(k.slot));
    k.next();
    softmax_tile(0);
    pack_all<kN>(weights, scores);

    for (int tile = 1; tile < p.tiles; ++tile) {
      if constexpr (Tile::kOverlap) {
        if constexpr (Tile::kPingPong) named_sync(kTurn + w, 256);
        issue_scores();
        issue_output(tile > 1);
        if constexpr (Tile::kPingPong) named_arrive(kTurn + (w + 1) % Tile::kW, 256);
        wgmma_wait<1>();
        pin(scores);
        release(bars.k_empty(k.slot));
        k.next();
        softmax_tile(tile);
        wgmma_wait<0>();
        pin(out);
        pin(weights);
        release(bars.v_empty(v.slot));
        v.next();
        pack_all<kN>(weights, scores);
        if constexpr (Tile::kSoftmax) rescale_output();
      } else {
        // The output product of the tile before, then scores: nothing of this warpgroup overlaps.
        issue_output(tile > 1);
        wgmma_wait<0>();
        pin(out);
        pin(weights);
        release(bars.v_empty(v.slot));
        v.next();
        issue_scores();
        wgmma_wait<0>();
        pin(scores);
        release(bars.k_empty(k.slot));
        k.next();
        softmax_tile(tile);
        pack_all<kN>(weights, scores);
        if constexpr (Tile::kSoftmax) rescale_output();
      }
    }
    issue_output(p.tiles > 1);
    wgmma_wait<0>();
    pin(out);
    release(bars.v_empty(v.slot));
    v.next();

    softmax.finish();
    if (lane % 4 == 0) {
      float* lse = a.lse + (static_cast<int64_t>(p.batch) * a.heads + p.head) * a.queries;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (row + 8 * half < a.queries) {
          lse[row + 8 * half] = softmax.maximum[half] * a.scale + __logf(softmax.sum[half]);
        }
      }
    }
    // The output leaves through this warpgroup's part of Q.
    const int own = kTurn + Tile::kW + w;
    named_sync(own, 128);
    write_tile<D>(q_tile, out, 1.0f / softmax.sum[0], 1.0f / softmax.sum[1]);
    async_proxy_fence();
    named_sync(own, 128);
    if (threadIdx.x % 128 == 0) {
#pragma unroll
      for (int slab = 0; slab < D / 64; ++slab) {
        tma_store(a.out, q_tile + slab * 64 * kSlabRow, slab * 64, p.head, first_row, p.batch);
      }
      tma_store_read_wait();
      barrier_arrive(bars.q_empty(q.slot));
    }
  }
}

}  // namespace forward_detail

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    attention_forward_kernel(const __grid_constant__ ForwardArguments a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDACC__)
  extern __shared__ __align__(1024) uint8_t attention_shared[];
  const uint32_t base = shared_address(attention_shared);
  const forward_detail::Barriers<Tile> bars{base + Tile::kBarriers};
  const int warpgroup = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0);
  if (threadIdx.x == 0) {
    if (base % kSwizzleAtom != 0) stop(a.fault, 99, base);
    for (int b = 0; b < Tile::kBuffers; ++b) {
      barrier_init(bars.q_full(b), 1);
      barrier_init(bars.q_empty(b), Tile::kW);
    }
    for (int s = 0; s < Tile::kStages; ++s) {
      barrier_init(bars.k_full(s), 1);
      barrier_init(bars.v_full(s), 1);
      barrier_init(bars.k_empty(s), 4 * Tile::kW);
      barrier_init(bars.v_empty(s), 4 * Tile::kW);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (warpgroup == 0) {
    registers_release<Tile::kProducerRegisters>();
    if (threadIdx.x == 0) forward_detail::produce<Tile>(a, base, bars);
  } else {
    registers_acquire<Tile::kConsumerRegisters>();
    forward_detail::consume<Tile>(a, base, bars, warpgroup - 1);
  }
#endif
}

}  // namespace gradus::cuda::hopper
