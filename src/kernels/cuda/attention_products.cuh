#pragma once

// Products of tiles by a warp, out of mma.sync.m16n8k16: A and B come from shared memory by
// ldmatrix, 16 x 16 squares at a time, or A from the warp's own sums of a product before. A lane's
// part of an mma tile of sums, 16 x 8, is rows lane/4 and lane/4 + 8, columns 2 (lane % 4) and the
// next.

#include "kernels/cuda/attention_tile.cuh"

namespace gradus::cuda {

/// How the 32 row addresses of an ldmatrix.x4 go over a 16 x 16 square of a tile.
enum class Square {
  down,    ///< matrices 0, 1 one below the other, 2, 3 to their right
  across,  ///< matrices 0, 1 beside each other, 2, 3 below them
};

/// A lane's place in the squares of a tile. With P = rows of the tile:
///   down:              A (P, depth)          down, transposed:   B (P = depth, columns)
///   across:            B (columns = P, depth)
/// A fragment's registers are those of mma; of B, 0 and 1 are columns 0-7 of the square, 2 and 3
/// columns 8-15.
template <int kColumns, Square kSquare, typename E>
class SquareReader {
  using Layout = TileLayout<kColumns>;

 public:
  __device__ SquareReader(const E* tile, int first_row) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int row = kSquare == Square::down ? lane % 16 : lane % 8 + lane / 16 * 8;
    const int chunk = kSquare == Square::down ? lane / 16 : lane / 8 % 2;
    rows_ = tile + (first_row + row) * kColumns;
    place_ = chunk ^ Layout::swizzle(row);
  }
  /// The square at row and chunk, both even multiples: row % 16 == 0, chunk % 2 == 0.
  __device__ void read(uint32_t (&out)[4], int row, int chunk) const {
    ldmatrix_x4(out, at(row, chunk));
  }
  __device__ void read_transposed(uint32_t (&out)[4], int row, int chunk) const {
    ldmatrix_x4_trans(out, at(row, chunk));
  }

 private:
  __device__ const E* at(int row, int chunk) const {
    constexpr int kGroup = Layout::kGroup;
    return rows_ + row * kColumns + chunk / kGroup * kGroup * 8 + ((chunk % kGroup) ^ place_) * 8;
  }

  const E* rows_;
  int place_;
};

/// The fp32 sums of a warp: kM x kN tiles of mma, 16 x 8 each.
template <int kM, int kN>
struct Sums {
  float v[kM][kN][4];

  __device__ void clear() {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) v[m][n][e] = 0.0f;
      }
    }
  }

  /// Row 16 m + 8 half + lane/4 times factor[m][half].
  __device__ void scale_rows(const float (&factor)[kM][2]) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) v[m][n][e] *= factor[m][e / 2];
      }
    }
  }

  __device__ void scale(float factor) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) v[m][n][e] *= factor;
      }
    }
  }

  /// Columns [16 step, 16 step + 16) rounded to E, as A of a product.
  template <typename E>
  __device__ void fragment(uint32_t (&a)[kM][4], int step) const {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      a[m][0] = pack2<E>(v[m][2 * step][0], v[m][2 * step][1]);
      a[m][1] = pack2<E>(v[m][2 * step][2], v[m][2 * step][3]);
      a[m][2] = pack2<E>(v[m][2 * step + 1][0], v[m][2 * step + 1][1]);
      a[m][3] = pack2<E>(v[m][2 * step + 1][2], v[m][2 * step + 1][3]);
    }
  }
};

/// sums[.][n, n + 1] += a · the two halves of b.
template <typename E, int kM, int kN>
__device__ inline void multiply_square(Sums<kM, kN>& sums, int n, const uint32_t (&a)[kM][4],
                                       const uint32_t (&b)[4]) {
  const uint32_t left[2] = {b[0], b[1]};
  const uint32_t right[2] = {b[2], b[3]};
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    mma_m16n8k16<E>(sums.v[m][n], a[m], left);
    mma_m16n8k16<E>(sums.v[m][n + 1], a[m], right);
  }
}

/// sums (16 kM, 8 kN) += A Bᵀ over kDepth columns that both tiles have: A's 16 kM rows from
/// a_row on, B's 8 kN from b_row on.
template <int kDepth, typename E, int kM, int kN, int kColumns>
__device__ inline void multiply_rows(Sums<kM, kN>& sums,
                                     const SquareReader<kColumns, Square::down, E>& a_tile,
                                     const SquareReader<kColumns, Square::across, E>& b_tile) {
#pragma unroll
  for (int step = 0; step < kDepth / 16; ++step) {
    uint32_t a[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) a_tile.read(a[m], 16 * m, 2 * step);
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t b[4];
      b_tile.read(b, 8 * n, 2 * step);
      multiply_square<E>(sums, n, a, b);
    }
  }
}

/// The same with A in registers, one fragment for each step of 16.
template <typename E, int kM, int kN, int kColumns, int kSteps>
__device__ inline void multiply_rows(Sums<kM, kN>& sums, const uint32_t (&a)[kSteps][kM][4],
                                     const SquareReader<kColumns, Square::across, E>& b_tile) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t b[4];
      b_tile.read(b, 8 * n, 2 * step);
      multiply_square<E>(sums, n, a[step], b);
    }
  }
}

/// sums (16 kM, 8 kN) += left · B, where left (16 kM, 8 kDepthTiles) are a warp's sums, rounded to
/// E, and B is the tile's first 8 kDepthTiles rows.
template <typename E, int kM, int kN, int kDepthTiles, int kColumns>
__device__ inline void multiply_columns(Sums<kM, kN>& sums, const Sums<kM, kDepthTiles>& left,
                                        const SquareReader<kColumns, Square::down, E>& b_tile) {
#pragma unroll
  for (int step = 0; step < kDepthTiles / 2; ++step) {
    uint32_t a[kM][4];
    left.template fragment<E>(a, step);
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t b[4];
      b_tile.read_transposed(b, 16 * step, n);
      multiply_square<E>(sums, n, a, b);
    }
  }
}

/// The same with A (16 kM, kDepth) from a tile, and B from chunk b_chunk on, which is even.
template <int kDepth, typename E, int kM, int kN, int kAColumns, int kBColumns>
__device__ inline void multiply_columns(Sums<kM, kN>& sums,
                                        const SquareReader<kAColumns, Square::down, E>& a_tile,
                                        const SquareReader<kBColumns, Square::down, E>& b_tile,
                                        int b_chunk) {
#pragma unroll
  for (int step = 0; step < kDepth / 16; ++step) {
    uint32_t a[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) a_tile.read(a[m], 16 * m, 2 * step);
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t b[4];
      b_tile.read_transposed(b, 16 * step, b_chunk + n);
      multiply_square<E>(sums, n, a, b);
    }
  }
}

/// `hidden` where a query does not see a key; rows are queries, from first_query on, columns keys.
template <int kM, int kN>
__device__ inline void hide(Sums<kM, kN>& sums, float hidden, const AttentionMask& mask, int b,
                            int first_query, int first_key) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int last = mask.queries - 1;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_query + 16 * m + 8 * half + lane / 4;
      const KeyRange seen = mask.visible(b, row < last ? row : last);
      const int begin = seen.begin - first_key - lane % 4 * 2;
      const int end = seen.end - first_key - lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (8 * n + e < begin || 8 * n + e >= end) sums.v[m][n][2 * half + e] = hidden;
        }
      }
    }
  }
}

/// sums into the tile, rounded, from a row and a chunk on.
template <int kColumns, typename E, int kM, int kN>
__device__ inline void put_sums(E* tile, int first_row, int first_chunk, const Sums<kM, kN>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + 16 * m + 8 * half + lane / 4;
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        *reinterpret_cast<uint32_t*>(
            tile + TileLayout<kColumns>::chunk_offset(row, first_chunk + n) + lane % 4 * 2) =
            pack2<E>(sums.v[m][n][2 * half], sums.v[m][n][2 * half + 1]);
      }
    }
  }
}

}  // namespace gradus::cuda
