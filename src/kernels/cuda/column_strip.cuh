#pragma once

// Elementwise work down strips of columns, with the sums of each column beside it (column_sums.cu
// has the picture). `Work` computes N neighbours of a row in three steps, so that a thread reads
// several rows before it computes the first:
//   Column<N>  what it keeps of its columns, by column<N>(column) at the start
//   Row<N>     what it reads of a row, by load<N>(row, column)
//   finish<N>(values, column of the thread, row as read, row, column): writes what it has to write,
//   and
//              leaves in `values` what the columns sum

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/column_sums.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/vector.cuh"

namespace gradus::cuda {

/// A Column of work that keeps nothing.
struct Nothing {};

/// A vector of a row of parameters, such as biases, that may not be there.
template <typename T, int N>
struct OptionalLanes {
  bool present;
  Lanes<T, N> lanes;

  __device__ OptionalLanes(const T* row, int64_t column) : present(row != nullptr) {
    if (present) lanes.load(row + column);
  }
  __device__ void add_to(float (&values)[N]) const {
    if (!present) return;
    float shift[N];
    lanes.widen(shift);
#pragma unroll
    for (int j = 0; j < N; ++j) values[j] += shift[j];
  }
};

inline constexpr int kStripThreads = 256;
inline constexpr int kMostStripPartials = 256;

template <typename Work, int N, bool kSums>
__global__ void __launch_bounds__(kStripThreads)
    take_strips(Work work, [[maybe_unused]] float* partials, int64_t rows, int64_t columns) {
  constexpr int kAtOnce = 4;  // rows that are read before one is computed
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
  float sums[N] = {};
  if (column < columns) {
    const int64_t step = static_cast<int64_t>(gridDim.y) * blockDim.y;
    const auto of_column = work.template column<N>(column);
    for (int64_t first = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; first < rows;
         first += kAtOnce * step) {
      typename Work::template Row<N> read[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i * step < rows) read[i] = work.template load<N>(first + i * step, column);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i * step < rows) {
          float values[N];
          work.template finish<N>(values, of_column, read[i], first + i * step, column);
          if constexpr (kSums) {
#pragma unroll
            for (int j = 0; j < N; ++j) sums[j] += values[j];
          }
        }
      }
    }
  }
  if constexpr (kSums) {
    // [y][x][N] would have threads of a warp meet in banks; [y][j][x] does not.
    __shared__ float shared[N][kStripThreads];
    const int place = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
#pragma unroll
    for (int j = 0; j < N; ++j) shared[j][place] = sums[j];
    __syncthreads();
    if (threadIdx.y == 0 && column < columns) {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        float total = sums[j];
        for (unsigned y = 1; y < blockDim.y; ++y) {
          total += shared[j][y * blockDim.x + threadIdx.x];
        }
        partials[static_cast<int64_t>(blockIdx.y) * columns + column + j] = total;
      }
    }
  }
}

/// Blocks down the rows of a strip, and so rows of partials.
inline int strips_down(int64_t rows, int64_t across, int rows_of_block) {
  // Some 1056 blocks (eight for each SM of an H100) where the rows allow.
  const int64_t wanted =
      std::clamp<int64_t>(1056 / std::max<int64_t>(1, across), 1, kMostStripPartials);
  const int64_t most = (rows + rows_of_block - 1) / rows_of_block;
  return static_cast<int>(std::max<int64_t>(1, std::min(wanted, most)));
}

inline int64_t strip_scratch(int64_t rows, int64_t columns) {
  return std::min<int64_t>(kMostStripPartials, std::max<int64_t>(rows, 1)) * columns *
         static_cast<int64_t>(sizeof(float));
}

inline constexpr int kStripAcross = 32;                          // threads of a block side by side
inline constexpr int kStripRows = kStripThreads / kStripAcross;  // and below each other

template <int N>
int64_t strips_across(int64_t columns) {
  return (columns + kStripAcross * N - 1) / (kStripAcross * N);
}

/// The work alone.
template <int kLanes, typename Work>
void for_each_strip(const Work& work, bool aligned, int64_t rows, int64_t columns,
                    cudaStream_t stream) {
  if (rows == 0 || columns == 0) return;
  constexpr int64_t kRowsOfThread = 4;
  constexpr int64_t kMostBlocks = 65535;
  constexpr int64_t kRowsOfBlock = kRowsOfThread * kStripRows;
  const int64_t down = std::min(kMostBlocks, (rows + kRowsOfBlock - 1) / kRowsOfBlock);
  const auto run = [&]<int N>(std::integral_constant<int, N>) {
    const dim3 grid(static_cast<unsigned>(strips_across<N>(columns)), static_cast<unsigned>(down));
    launch(take_strips<Work, N, false>, {.grid = grid, .block = dim3(kStripAcross, kStripRows)},
           stream, work, nullptr, rows, columns);
  };
  aligned ? run(std::integral_constant<int, kLanes>{}) : run(std::integral_constant<int, 1>{});
}

/// The work, and total (columns) += the sums of what it leaves, in a fixed order.
template <int kLanes, typename Work>
void sum_strips(const Work& work, bool aligned, float* total, int64_t rows, int64_t columns,
                void* scratch, cudaStream_t stream, int blocks_down = 0) {
  if (rows == 0 || columns == 0) return;
  const auto run = [&]<int N>(std::integral_constant<int, N>) {
    const int64_t across = strips_across<N>(columns);
    int down = strips_down(rows, across, kStripRows);
    if (blocks_down > 0) {
      down = static_cast<int>(std::min<int64_t>({blocks_down, kMostStripPartials, rows}));
    }
    const dim3 grid(static_cast<unsigned>(across), static_cast<unsigned>(down));
    auto* partials = static_cast<float*>(scratch);
    launch(take_strips<Work, N, true>, {.grid = grid, .block = dim3(kStripAcross, kStripRows)},
           stream, work, partials, rows, columns);
    add_partials(
        {.total = {total}, .partials = partials, .sets = 1, .count = down, .columns = columns},
        stream);
  };
  aligned ? run(std::integral_constant<int, kLanes>{}) : run(std::integral_constant<int, 1>{});
}

}  // namespace gradus::cuda
