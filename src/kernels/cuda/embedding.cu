// Token and position embeddings. Forward gathers table rows, 16 bytes a thread, and can add
// positions and drop on the way. Backward of the tokens first orders them: a token's place is the
// number of tokens before it in that order, counted by comparing with all. Then a warp a run of
// equal tokens and strip of columns adds the run's rows in index order. dout is read once, touched
// table rows are read and written once.

#include "kernels/cuda/column_strip.cuh"
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/embedding.h"
#include "kernels/cuda/philox.cuh"
#include "kernels/cuda/precision.h"
#include "kernels/cuda/warp.cuh"

namespace gradus::cuda {
namespace {

template <typename R, typename P>
struct Gather {
  R* out;
  const int32_t* tokens;
  const P* weight;
  const P* positions;  ///< from first_position on, or null
  int64_t channels;
  int64_t table_rows;
  int64_t first_row;
  RowDropout dropout;

  template <int N>
  using Column = Nothing;
  template <int N>
  struct Row {
    bool here;  ///< the table's row is this rank's
    Lanes<P, N> token;
    Lanes<P, N> position;
  };

  template <int N>
  __device__ Nothing column(int64_t) const {
    return {};
  }
  template <int N>
  __device__ Row<N> load(int64_t row, int64_t column) const {
    Row<N> read;
    const int64_t place = tokens[row] - first_row;
    read.here = place >= 0 && place < table_rows;
    if (read.here) read.token.load(weight + place * channels + column);
    if (positions != nullptr) {
      const uint32_t position = static_cast<uint32_t>(row) % dropout.positions;
      read.position.load(positions + position * channels + column);
    }
    return read;
  }
  template <int N>
  __device__ void finish(float (&value)[N], Nothing, const Row<N>& read, int64_t row,
                         int64_t column) const {
#pragma unroll
    for (int j = 0; j < N; ++j) value[j] = 0.0f;
    if (read.here) read.token.widen(value);
    if (positions != nullptr) {
      float shift[N];
      read.position.widen(shift);
#pragma unroll
      for (int j = 0; j < N; ++j) value[j] += shift[j];
      dropout.drop(value, row, column);
    }
    store_floats(out + row * channels + column, value);
  }
};

template <typename R, typename P>
struct AddPositions {
  R* inout;
  const P* positions;
  int64_t channels;
  RowDropout dropout;

  template <int N>
  using Column = Nothing;
  template <int N>
  struct Row {
    Lanes<R, N> row;
    Lanes<P, N> position;
  };

  template <int N>
  __device__ Nothing column(int64_t) const {
    return {};
  }
  template <int N>
  __device__ Row<N> load(int64_t row, int64_t column) const {
    Row<N> read;
    const uint32_t position = static_cast<uint32_t>(row) % dropout.positions;
    read.row.load(inout + row * channels + column);
    read.position.load(positions + position * channels + column);
    return read;
  }
  template <int N>
  __device__ void finish(float (&value)[N], Nothing, const Row<N>& read, int64_t row,
                         int64_t column) const {
    float shift[N];
    read.row.widen(value);
    read.position.widen(shift);
#pragma unroll
    for (int j = 0; j < N; ++j) value[j] += shift[j];
    dropout.drop(value, row, column);
    store_floats(inout + row * channels + column, value);
  }
};

// ---- the order of the tokens ----

constexpr int kOrderThreads = 256;
constexpr int kShare = 4;    // neighbouring threads that count for one token
constexpr int kTile = 2048;  // tokens compared with at a time, in shared memory

/// order[place] = index and sorted[place] = token for each token, ties in index order.
__global__ void __launch_bounds__(kOrderThreads)
    order_tokens(int32_t* order, int32_t* sorted, const int32_t* tokens, int rows) {
  __shared__ int32_t tile[kTile];
  const int i = static_cast<int>(blockIdx.x) * (kOrderThreads / kShare) +
                static_cast<int>(threadIdx.x) / kShare;
  const int share = static_cast<int>(threadIdx.x) % kShare;
  const int32_t token = i < rows ? tokens[i] : 0;
  int before = 0;
  for (int first = 0; first < rows; first += kTile) {
    const int size = rows - first < kTile ? rows - first : kTile;
    __syncthreads();
    for (int j = static_cast<int>(threadIdx.x); j < size; j += kOrderThreads) {
      tile[j] = tokens[first + j];
    }
    __syncthreads();
    if (first + size <= i) {
#pragma unroll 8
      for (int j = share; j < size; j += kShare) before += tile[j] <= token ? 1 : 0;
    } else if (first > i) {
#pragma unroll 8
      for (int j = share; j < size; j += kShare) before += tile[j] < token ? 1 : 0;
    } else {
      for (int j = share; j < size; j += kShare) {
        before += tile[j] < token || (tile[j] == token && first + j < i) ? 1 : 0;
      }
    }
  }
#pragma unroll
  for (int distance = kShare / 2; distance > 0; distance /= 2) {
    before += __shfl_xor_sync(kAllLanes, before, distance);
  }
  if (share == 0 && i < rows) {
    order[before] = i;
    sorted[before] = token;
  }
}

constexpr int kRunWarps = 4;

/// A warp a place of the order: the one where a run of equal tokens begins adds the run. Its lanes
/// look at 32 places at once, so that a frequent token's rows are read some at a time and not one
/// by one.
template <typename R, int N>
__global__ void __launch_bounds__(kRunWarps* kWarp)
    add_runs(float* dweight, const R* dout, const int32_t* order, const int32_t* sorted, int rows,
             int64_t channels, int64_t table_rows, int64_t first_row) {
  constexpr int kAtOnce = 16;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int place = static_cast<int>(blockIdx.x) * kRunWarps + static_cast<int>(threadIdx.x) / kWarp;
  if (place >= rows) return;
  const int32_t token = sorted[place];
  const int64_t table_row = token - first_row;
  if (table_row < 0 || table_row >= table_rows) return;
  if (place > 0 && sorted[place - 1] == token) return;

  const int64_t column = (static_cast<int64_t>(blockIdx.y) * kWarp + lane) * N;
  const bool active = column < channels;
  float* to = dweight + table_row * channels + column;
  float sum[N] = {};
  if (active) load_floats(sum, to);
  int count = kWarp;
  for (; count == kWarp; place += kWarp) {
    const bool same = place + lane < rows && sorted[place + lane] == token;
    const int32_t index = same ? order[place + lane] : 0;
    count = __popc(__ballot_sync(kAllLanes, same));
    for (int first = 0; first < count; first += kAtOnce) {
      float value[kAtOnce][N];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int64_t row = __shfl_sync(kAllLanes, index, (first + i) % kWarp);
        if (active && first + i < count) load_floats(value[i], dout + row * channels + column);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i < count) {
#pragma unroll
          for (int j = 0; j < N; ++j) sum[j] += value[i][j];
        }
      }
    }
  }
  if (active) store_floats(to, sum);
}

// ---- positions ----

/// A thread a vector of a position: all samples, in order.
template <typename R, int N>
__global__ void __launch_bounds__(kElementwiseThreads)
    differentiate_positions(R* dinout, float* dweight, int64_t samples, int64_t channels,
                            RowDropout dropout) {
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * N;
  const int64_t position = blockIdx.x;
  if (column >= channels) return;
  float sum[N];
  float* to = dweight + position * channels + column;
  load_floats(sum, to);
  for (int64_t b = 0; b < samples; ++b) {
    const int64_t row = b * dropout.positions + position;
    float value[N];
    load_floats(value, dinout + row * channels + column);
    if (dropout.active) {
      dropout.drop(value, row, column);
      store_floats(dinout + row * channels + column, value);
    }
#pragma unroll
    for (int j = 0; j < N; ++j) sum[j] += value[j];
  }
  store_floats(to, sum);
}

int divide_up(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

void require_shape(const char* operation, const EmbeddingRows& shape) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 4096;
  if (shape.channels < 1 || shape.positions < 1 || shape.rows < 0 || shape.rows > kMost) {
    throw_shape_error(std::string(operation) + ": " + std::to_string(shape.rows) + " rows of " +
                      std::to_string(shape.channels) + " channels, " +
                      std::to_string(shape.positions) + " positions");
  }
}

}  // namespace

void token_embedding_forward(const TokenEmbedding& a, const EmbeddingRows& shape,
                             cudaStream_t stream) {
  constexpr const char* kName = "token_embedding_forward";
  require_shape(kName, shape);
  dispatch_precision(
      kName, shape.residual_dtype, shape.param_dtype, [&]<typename R, typename P>(R, P) {
        constexpr int N = kLanesOfBoth<R, P>;
        const auto* positions = static_cast<const P*>(a.position_weight);
        if (positions != nullptr) positions += a.first_position * shape.channels;
        const Gather<R, P> work{static_cast<R*>(a.out),
                                a.tokens,
                                static_cast<const P*>(a.weight),
                                positions,
                                shape.channels,
                                a.table_rows,
                                a.first_row,
                                RowDropout(a.dropout, shape.positions)};
        const bool aligned = are_aligned(a.out, a.weight) && shape.channels % kLanesOf<P> == 0 &&
                             (positions == nullptr || are_aligned(positions));
        for_each_strip<N>(work, aligned, shape.rows, shape.channels, stream);
      });
}

void position_embedding_forward(const PositionEmbedding& a, const EmbeddingRows& shape,
                                cudaStream_t stream) {
  constexpr const char* kName = "position_embedding_forward";
  require_shape(kName, shape);
  dispatch_precision(
      kName, shape.residual_dtype, shape.param_dtype, [&]<typename R, typename P>(R, P) {
        constexpr int N = kLanesOfBoth<R, P>;
        const auto* positions = static_cast<const P*>(a.weight) + a.first_position * shape.channels;
        const AddPositions<R, P> work{static_cast<R*>(a.inout), positions, shape.channels,
                                      RowDropout(a.dropout, shape.positions)};
        const bool aligned = are_aligned(a.inout, positions) && shape.channels % kLanesOf<P> == 0;
        for_each_strip<N>(work, aligned, shape.rows, shape.channels, stream);
      });
}

int64_t token_order_scratch(int64_t rows) {
  return 2 * rows * static_cast<int64_t>(sizeof(int32_t));
}

void token_embedding_backward(const TokenEmbeddingGradient& a, const EmbeddingRows& shape,
                              cudaStream_t stream) {
  constexpr const char* kName = "token_embedding_backward";
  require_shape(kName, shape);
  if (shape.rows == 0) return;
  const auto rows = static_cast<int>(shape.rows);
  auto* order = static_cast<int32_t*>(a.scratch);
  int32_t* sorted = order + rows;
  launch(order_tokens,
         {.grid = static_cast<unsigned>(divide_up(rows, kOrderThreads / kShare)),
          .block = kOrderThreads},
         stream, order, sorted, a.tokens, rows);
  dispatch_float(kName, shape.residual_dtype, [&]<typename R>(R) {
    // 16 bytes of fp32: 8 of a 16-bit dtype.
    constexpr int N = 4;
    const auto* dout = static_cast<const R*>(a.dout);
    const bool aligned = shape.channels % N == 0 && are_aligned(a.dweight) && are_aligned(dout);
    const int lanes = aligned ? N : 1;
    const Launch grid{.grid = dim3(static_cast<unsigned>(divide_up(rows, kRunWarps)),
                                   static_cast<unsigned>(divide_up(shape.channels, kWarp * lanes))),
                      .block = kRunWarps * kWarp};
    if (aligned) {
      launch(add_runs<R, N>, grid, stream, a.dweight, dout, order, sorted, rows, shape.channels,
             a.table_rows, a.first_row);
    } else {
      launch(add_runs<R, 1>, grid, stream, a.dweight, dout, order, sorted, rows, shape.channels,
             a.table_rows, a.first_row);
    }
  });
}

void position_embedding_backward(const PositionEmbeddingGradient& a, const EmbeddingRows& shape,
                                 cudaStream_t stream) {
  constexpr const char* kName = "position_embedding_backward";
  require_shape(kName, shape);
  if (shape.rows % shape.positions != 0) {
    throw_shape_error(std::string(kName) + ": " + std::to_string(shape.rows) +
                      " rows are not whole samples of " + std::to_string(shape.positions));
  }
  if (shape.rows == 0) return;
  dispatch_float(kName, shape.residual_dtype, [&]<typename R>(R) {
    constexpr int N = 4;
    auto* dinout = static_cast<R*>(a.dinout);
    float* dweight = a.dweight + a.first_position * shape.channels;
    const bool aligned = shape.channels % N == 0 && are_aligned(dinout) && are_aligned(dweight);
    const int64_t vectors = shape.channels / (aligned ? N : 1);
    const int threads =
        vectors < kElementwiseThreads ? divide_up(vectors, kWarp) * kWarp : kElementwiseThreads;
    const Launch grid{.grid = dim3(static_cast<unsigned>(shape.positions),
                                   static_cast<unsigned>(divide_up(vectors, threads))),
                      .block = static_cast<unsigned>(threads)};
    const RowDropout dropout(a.dropout, shape.positions);
    const int64_t samples = shape.rows / shape.positions;
    if (aligned) {
      launch(differentiate_positions<R, N>, grid, stream, dinout, dweight, samples, shape.channels,
             dropout);
    } else {
      launch(differentiate_positions<R, 1>, grid, stream, dinout, dweight, samples, shape.channels,
             dropout);
    }
  });
}

}  // namespace gradus::cuda
