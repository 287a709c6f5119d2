// Sums over rows. A block takes a strip of columns and every gridDim.y-th group of rows: each
// thread adds one vector of columns down its rows in registers, the threads of a column are added
// in order in shared memory, and the block writes a row of partial sums. Then the rows of partials
// are added: a block has 32 columns and 32 threads for each. The matrix is read once, the partials
// (at most a few percent of it) are written and read once.

#include <algorithm>

#include "kernels/cuda/column_strip.cuh"
#include "kernels/cuda/column_sums.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/precision.h"
#include "kernels/cuda/warp.cuh"

namespace gradus::cuda {
namespace {

constexpr int kColumns = 32;  // of a block of add_rows
constexpr int kGroups = 32;   // threads that share a column's partials

__global__ void __launch_bounds__(kColumns* kGroups) add_rows(AddPartials a) {
  __shared__ float sums[kGroups][kColumns + 1];
  const int set = static_cast<int>(blockIdx.y);
  // Not a.total[set], for which the parameters would be copied to local memory.
  float* total_of_set = set == 0 ? a.total[0] : set == 1 ? a.total[1] : a.total[2];
  if (total_of_set == nullptr) return;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x;
  float sum = 0.0f;
  if (column < a.columns) {
    const float* partials = a.partials + static_cast<int64_t>(set) * a.count * a.columns + column;
#pragma unroll 4
    for (int p = static_cast<int>(threadIdx.y); p < a.count; p += kGroups) {
      sum += partials[p * a.columns];
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  // A warp a column.
  static_assert(kGroups == kWarp && kColumns == kWarp);
  const float total = warp_sum(sums[threadIdx.x][threadIdx.y]);
  const int64_t summed = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.y;
  if (threadIdx.x == 0 && summed < a.columns) total_of_set[summed] += total;
}

/// What a strip adds where nothing is computed.
template <typename T>
struct Rows {
  const T* in;
  int64_t stride;

  template <int N>
  using Column = Nothing;
  template <int N>
  using Row = Lanes<T, N>;

  template <int N>
  __device__ Nothing column(int64_t) const {
    return {};
  }
  template <int N>
  __device__ Row<N> load(int64_t row, int64_t column) const {
    Row<N> lanes;
    lanes.load(in + row * stride + column);
    return lanes;
  }
  template <int N>
  __device__ void finish(float (&values)[N], Nothing, const Row<N>& read, int64_t, int64_t) const {
    read.widen(values);
  }
};

}  // namespace

void add_partials(const AddPartials& a, cudaStream_t stream) {
  if (a.count == 0 || a.columns == 0) return;
  const dim3 grid(static_cast<unsigned>((a.columns + kColumns - 1) / kColumns),
                  static_cast<unsigned>(a.sets));
  launch(add_rows, {.grid = grid, .block = dim3(kColumns, kGroups)}, stream, a);
}

void column_sums(const ColumnSums& a, cudaStream_t stream) {
  dispatch_float("column_sums", a.dtype, [&]<typename T>(T) {
    const Rows<T> rows{static_cast<const T*>(a.in), a.stride};
    constexpr int N = kLanesOf<T>;
    const bool aligned =
        a.columns % N == 0 && a.stride % N == 0 && reinterpret_cast<uintptr_t>(a.in) % 16 == 0;
    sum_strips<N>(rows, aligned, a.total, a.rows, a.columns, a.scratch, stream, a.strips);
  });
}

int64_t column_sums_scratch(int64_t rows, int64_t columns) { return strip_scratch(rows, columns); }

}  // namespace gradus::cuda
