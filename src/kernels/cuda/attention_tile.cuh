#pragma once

// Tiles of attention in shared memory: where their elements lie, and how they come and go.
//
// A tile is rows of kColumns elements of 16 bits, cut into chunks of 8 (16 bytes). Chunk c of row r
// lies at place c ^ swizzle(r) of its row, so that the 8 rows which one phase of ldmatrix reads at
// the same chunk are in 8 different groups of banks:
//
//   row 0   0 1 2 3 4 5 6 7      rows of a multiple of 64 columns: swizzle(r) = r % 8
//   row 1   1 0 3 2 5 4 7 6
//   row 2   2 3 0 1 6 7 4 5      32 and 96 columns, where every second row begins in the middle of
//   ...                          the banks: swizzle(r) = r / 2 % 4

#include <cstdint>
#include <limits>

#include "kernels/cuda/attention_mask.cuh"
#include "kernels/cuda/ptx.cuh"

namespace gradus::cuda {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr float kLog2E = 1.44269504088896340736f;

/// Where the elements of a tile lie.
template <int kColumns>
struct TileLayout {
  static_assert(kColumns % 32 == 0);
  static constexpr int kChunks = kColumns / 8;
  /// Chunks that trade places among each other.
  static constexpr int kGroup = kChunks % 8 == 0 ? 8 : 4;

  __device__ static int swizzle(int row) { return kGroup == 8 ? row & 7 : (row >> 1) & 3; }
  __device__ static int chunk_offset(int row, int chunk) {
    return row * kColumns + (chunk ^ swizzle(row)) * 8;
  }
  __device__ static int offset(int row, int column) {
    return chunk_offset(row, column / 8) + column % 8;
  }
};

/// The rows of one sample and head in global memory.
template <typename E>
struct HeadRows {
  E* data;
  int64_t stride;
  int head_size;
};

template <typename E>
__device__ inline HeadRows<E> head_rows(const HeadTensor<E>& tensor, int b, int h, int head_size) {
  return {tensor.data + b * tensor.batch_stride + h * tensor.head_stride, tensor.row_stride,
          head_size};
}

/// Rows [first, first + kRows) into a tile by all threads of the block; rows from `end` on and
/// columns past the head size become zeros. kAligned: rows begin at multiples of 16 bytes, and are
/// copied asynchronously; the copies are not committed.
template <int kRows, int kColumns, int kThreads, bool kAligned, typename E>
__device__ inline void load_tile(E* tile, const HeadRows<const E>& rows, int first, int end) {
  using Layout = TileLayout<kColumns>;
  constexpr int kChunks = Layout::kChunks;
  const int thread = static_cast<int>(threadIdx.x);
  if constexpr (kAligned) {
    static_assert(kRows * kChunks % kThreads == 0);
    if (kThreads % kChunks == 0 && first + kRows <= end && rows.head_size == kColumns) {
      // The whole tile; the thread's chunks are one below the other.
      constexpr int kRowStep = kThreads >= kChunks ? kThreads / kChunks : 1;
      const int row = thread / kChunks;
      const int chunk = thread % kChunks;
      const E* source = rows.data + (first + row) * rows.stride + chunk * 8;
#pragma unroll
      for (int r = 0; r < kRows; r += kRowStep) {
        cp_async_16(tile + Layout::chunk_offset(row + r, chunk), source);
        source += kRowStep * rows.stride;
      }
      return;
    }
#pragma unroll 1
    for (int i = thread; i < kRows * kChunks; i += kThreads) {
      const int r = i / kChunks;
      const int chunk = i % kChunks;
      const int bytes = clamp_to(2 * (rows.head_size - chunk * 8), 0, 16);
      const bool valid = first + r < end && bytes > 0;
      cp_async_16(tile + Layout::chunk_offset(r, chunk),
                  valid ? rows.data + (first + r) * rows.stride + chunk * 8 : rows.data,
                  valid ? bytes : 0);
    }
  } else {
    for (int i = thread; i < kRows * kColumns; i += kThreads) {
      const int r = i / kColumns;
      const int column = i % kColumns;
      const bool valid = first + r < end && column < rows.head_size;
      tile[Layout::offset(r, column)] =
          valid ? rows.data[(first + r) * rows.stride + column] : E(0.0f);
    }
  }
}

/// A warp's own kRows rows of a tile, from tile_row on, to the rows [first, end) of global memory.
template <int kRows, int kColumns, typename E>
__device__ inline void store_rows(const E* tile, const HeadRows<E>& rows, bool aligned,
                                  int tile_row, int first, int end) {
  using Layout = TileLayout<kColumns>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (aligned && rows.head_size % 8 == 0) {
#pragma unroll 4
    for (int i = lane; i < kRows * Layout::kChunks; i += 32) {
      const int r = i / Layout::kChunks;
      const int chunk = i % Layout::kChunks;
      if (first + r < end && chunk * 8 < rows.head_size) {
        *reinterpret_cast<uint4*>(rows.data + (first + r) * rows.stride + chunk * 8) =
            *reinterpret_cast<const uint4*>(tile + Layout::chunk_offset(tile_row + r, chunk));
      }
    }
  } else {
    for (int i = lane; i < kRows * kColumns; i += 32) {
      const int r = i / kColumns;
      const int column = i % kColumns;
      if (first + r < end && column < rows.head_size) {
        rows.data[(first + r) * rows.stride + column] = tile[Layout::offset(tile_row + r, column)];
      }
    }
  }
}

}  // namespace gradus::cuda
