// The device side of products_bench; products_cases.cpp is the program.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "bench/cuda/harness.h"
#include "bench/cuda/products_kernels.h"

namespace gradus::bench {
namespace {

using cuda::CublasLtProduct;

__device__ double value_of(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::fp32:
      return static_cast<const float*>(data)[i];
    case DType::bf16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
    default:
      return __half2float(static_cast<const __half*>(data)[i]);
  }
}

/// A block a sample.
__global__ void sample_kernel(Samples samples, CublasLtProduct p, cuda::CublasLtOperands o) {
  __shared__ double partial[128];
  const int64_t i = samples.rows[blockIdx.x];
  const int64_t j = samples.columns[blockIdx.x];
  double sum = 0.0;
  for (int64_t l = threadIdx.x; l < p.k; l += blockDim.x) {
    const int64_t a = p.transpose_a ? i * p.stride_a + l : l * p.stride_a + i;
    const int64_t b = p.transpose_b ? l * p.stride_b + j : j * p.stride_b + l;
    sum += value_of(o.a, p.operand, a) * value_of(o.b, p.operand, b);
  }
  partial[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int lane = 1; lane < static_cast<int>(blockDim.x); ++lane) sum += partial[lane];
  samples.want[blockIdx.x] = sum;
  samples.got[blockIdx.x] = value_of(o.d, p.result, j * p.stride_d + i);
  if (p.stride_auxiliary > 0) {
    samples.auxiliary[blockIdx.x] = value_of(o.auxiliary, p.result, j * p.stride_auxiliary + i);
  }
}

/// Adds up a number for each 32-bit word and its place, so that any changed bit shows. The order of
/// the additions does not matter.
__global__ void fingerprint_kernel(const uint32_t* words, int64_t count, unsigned long long* sum) {
  unsigned long long mine = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    unsigned long long word = (static_cast<unsigned long long>(i) << 32) ^ words[i];
    word = (word ^ (word >> 29)) * 0xBF58476D1CE4E5B9ull;
    mine += word ^ (word >> 32);
  }
  atomicAdd(sum, mine);
}

struct alignas(16) Eight {
  __nv_bfloat162 pairs[4];
};

__device__ float gelu(float x) {
  const float u = 0.7978845608f * (x + 0.044715f * x * x * x);
  return x / (1.0f + __expf(-2.0f * u));
}

__device__ float gelu_derivative(float x) {
  const float slope = 0.7978845608f * (1.0f + 3.0f * 0.044715f * x * x);
  const float u = 0.7978845608f * (x + 0.044715f * x * x * x);
  const float s = 1.0f / (1.0f + __expf(-2.0f * u));
  return s + 2.0f * x * s * (1.0f - s) * slope;
}

/// out = gelu(x + bias), x + bias written over x: 8 elements a thread.
__global__ void bias_gelu(Eight* out, Eight* x, const Eight* bias, int64_t count, int columns) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  Eight v = x[i];
  const Eight b = bias[i % columns];
  Eight result;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    v.pairs[j] = __hadd2(v.pairs[j], b.pairs[j]);
    const float2 f = __bfloat1622float2(v.pairs[j]);
    result.pairs[j] = __floats2bfloat162_rn(gelu(f.x), gelu(f.y));
  }
  x[i] = v;
  out[i] = result;
}

/// out = gelu(x).
__global__ void gelu_alone(Eight* out, const Eight* x, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const Eight v = x[i];
  Eight result;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float2 f = __bfloat1622float2(v.pairs[j]);
    result.pairs[j] = __floats2bfloat162_rn(gelu(f.x), gelu(f.y));
  }
  out[i] = result;
}

/// d *= gelu'(x).
__global__ void gelu_backward(Eight* d, const Eight* x, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  Eight v = d[i];
  const Eight at = x[i];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float2 f = __bfloat1622float2(at.pairs[j]);
    const float2 g = __bfloat1622float2(v.pairs[j]);
    v.pairs[j] = __floats2bfloat162_rn(g.x * gelu_derivative(f.x), g.y * gelu_derivative(f.y));
  }
  d[i] = v;
}

constexpr int kSumLanes = 8;     // rows that a block adds at a time
constexpr int kSumColumns = 32;  // vectors of eight columns
/// Column sums of (rows, columns) bf16: each block adds a run of rows of 256 columns.
__global__ void column_sums_partial(float* partial, const Eight* in, int rows, int vectors,
                                    int rows_per_block) {
  __shared__ float shared[kSumLanes][kSumColumns * 8];
  const int vector = blockIdx.x * kSumColumns + threadIdx.x;
  float sum[8] = {};
  if (vector < vectors) {
    const int end = min(rows, static_cast<int>(blockIdx.y + 1) * rows_per_block);
    for (int row = blockIdx.y * rows_per_block + threadIdx.y; row < end; row += kSumLanes) {
      const Eight v = in[static_cast<int64_t>(row) * vectors + vector];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 f = __bfloat1622float2(v.pairs[j]);
        sum[2 * j] += f.x;
        sum[2 * j + 1] += f.y;
      }
    }
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) shared[threadIdx.y][threadIdx.x * 8 + j] = sum[j];
  __syncthreads();
  const int column = threadIdx.y * kSumColumns + threadIdx.x;
  float total = 0.0f;
#pragma unroll
  for (int lane = 0; lane < kSumLanes; ++lane) total += shared[lane][column];
  const int at = blockIdx.x * kSumColumns * 8 + column;
  if (at < vectors * 8) partial[static_cast<int64_t>(blockIdx.y) * vectors * 8 + at] = total;
}

/// out += the partial sums, in order.
__global__ void column_sums_add(float* out, const float* partial, int parts, int columns) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= columns) return;
  float sum = 0.0f;
  for (int part = 0; part < parts; ++part) {
    sum += partial[static_cast<int64_t>(part) * columns + column];
  }
  out[column] += sum;
}

unsigned blocks_for(int64_t threads) { return static_cast<unsigned>((threads + 255) / 256); }

}  // namespace

void sample_product(const Samples& samples, int count, const cuda::CublasLtCall& call,
                    cudaStream_t stream) {
  sample_kernel<<<static_cast<unsigned>(count), 128, 0, stream>>>(samples, call.product,
                                                                  call.operands);
  GRADUS_BENCH_CUDA(cudaGetLastError());
}

void fingerprint(unsigned long long* sum, const void* data, int64_t bytes, cudaStream_t stream) {
  fingerprint_kernel<<<1024, 256, 0, stream>>>(static_cast<const uint32_t*>(data), bytes / 4, sum);
  GRADUS_BENCH_CUDA(cudaGetLastError());
}

void pass_gelu(void* out, const void* x, int64_t count, cudaStream_t stream) {
  gelu_alone<<<blocks_for(count / 8), 256, 0, stream>>>(static_cast<Eight*>(out),
                                                        static_cast<const Eight*>(x), count / 8);
  GRADUS_BENCH_CUDA(cudaGetLastError());
}

void pass_bias_gelu(void* out, void* x, const void* bias, int64_t count, int64_t columns,
                    cudaStream_t stream) {
  bias_gelu<<<blocks_for(count / 8), 256, 0, stream>>>(
      static_cast<Eight*>(out), static_cast<Eight*>(x), static_cast<const Eight*>(bias), count / 8,
      static_cast<int>(columns / 8));
  GRADUS_BENCH_CUDA(cudaGetLastError());
}

void pass_gelu_backward(void* d, const void* x, int64_t count, cudaStream_t stream) {
  gelu_backward<<<blocks_for(count / 8), 256, 0, stream>>>(static_cast<Eight*>(d),
                                                           static_cast<const Eight*>(x), count / 8);
  GRADUS_BENCH_CUDA(cudaGetLastError());
}

void pass_column_sums(float* sums, float* partial, const void* in, int64_t rows, int64_t columns,
                      cudaStream_t stream) {
  const int vectors = static_cast<int>(columns / 8);
  const int across = (vectors + kSumColumns - 1) / kSumColumns;
  const int most = static_cast<int>(std::min<int64_t>(kColumnSumParts, rows / 64));
  const int parts = std::clamp(132 * 8 / across, 1, std::max(1, most));
  const int rows_of_part = (static_cast<int>(rows) + parts - 1) / parts;
  column_sums_partial<<<dim3(static_cast<unsigned>(across), static_cast<unsigned>(parts)),
                        dim3(kSumColumns, kSumLanes), 0, stream>>>(
      partial, static_cast<const Eight*>(in), static_cast<int>(rows), vectors, rows_of_part);
  GRADUS_BENCH_CUDA(cudaGetLastError());
  column_sums_add<<<static_cast<unsigned>((columns + 127) / 128), 128, 0, stream>>>(
      sums, partial, parts, static_cast<int>(columns));
  GRADUS_BENCH_CUDA(cudaGetLastError());
}

}  // namespace gradus::bench
