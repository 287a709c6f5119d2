// The operations that take a training step's time, at the sizes of the two models that
// bench/README.md reports. Arguments: threads through OMP, as a filter --benchmark_filter=matmul.

#include <benchmark/benchmark.h>

#include <cmath>
#include <memory>
#include <vector>

#include "kernels/attention.h"
#include "kernels/gelu.h"
#include "kernels/layernorm.h"
#include "kernels/matmul.h"

namespace gradus {
namespace {

/// Memory for one benchmark's tensors, filled with small numbers that are no denormals.
class Memory {
 public:
  Tensor tensor(const Shape& shape, DType dtype) {
    const auto bytes = static_cast<size_t>(shape.numel() * size_of(dtype));
    blocks_.push_back(std::make_unique<std::byte[]>(bytes + 64));
    void* aligned = blocks_.back().get();
    size_t space = bytes + 64;
    std::align(64, bytes, aligned, space);
    const Tensor out(aligned, dtype, Device::cpu, shape);
    for (int64_t i = 0; i < out.numel(); ++i) {
      const float value = 0.01f * static_cast<float>(i % 97 - 48);
      if (dtype == DType::bf16) {
        out.as<bf16>()[i] = bf16(value);
      } else {
        out.as<float>()[i] = value;
      }
    }
    return out;
  }

 private:
  std::vector<std::unique_ptr<std::byte[]>> blocks_;
};

DType dtype_of(const benchmark::State& state, int argument) {
  return state.range(argument) == 16 ? DType::bf16 : DType::fp32;
}

void count_flops(benchmark::State& state, double flops) {
  state.counters["FLOPS"] =
      benchmark::Counter(flops, benchmark::Counter::kIsIterationInvariantRate);
}

void count_bytes(benchmark::State& state, int64_t bytes) {
  state.SetBytesProcessed(state.iterations() * bytes);
}

enum class Product { forward, backward_input, backward_weight };

/// Arguments: M rows, N outputs, K inputs, bits of the dtype.
template <Product kProduct>
void matmul(benchmark::State& state) {
  const int64_t M = state.range(0);
  const int64_t N = state.range(1);
  const int64_t K = state.range(2);
  const DType dtype = dtype_of(state, 3);
  Executor x;
  Memory memory;
  const Tensor in = memory.tensor({M, K}, dtype);
  const Tensor out = memory.tensor({M, N}, dtype);
  const Tensor weight = memory.tensor({N, K}, dtype);
  const Tensor dweight = memory.tensor({N, K}, DType::fp32);
  for (auto _ : state) {
    switch (kProduct) {
      case Product::forward:
        matmul_forward(x, out, in, weight, {});
        break;
      case Product::backward_input:
        matmul_backward_input(x, in, out, weight);
        break;
      case Product::backward_weight:
        matmul_backward_weight(x, dweight, {}, out, in);
        break;
    }
  }
  count_flops(state, 2.0 * static_cast<double>(M * N * K));
}

void matmul_sizes(benchmark::internal::Benchmark* b) {
  for (const int64_t bits : {32, 16}) {
    for (const auto& [n, k] : {std::pair{384, 128}, {128, 128}, {512, 128}, {128, 512}}) {
      b->Args({768, n, k, bits});
    }
    for (const int64_t m : {256, 1024}) {
      for (const auto& [n, k] : {std::pair{2304, 768}, {768, 768}, {3072, 768}, {768, 3072}}) {
        b->Args({m, n, k, bits});
      }
    }
  }
  b->ArgNames({"M", "N", "K", "bits"})->UseRealTime();
}

BENCHMARK(matmul<Product::forward>)->Apply(matmul_sizes);
BENCHMARK(matmul<Product::backward_input>)->Apply(matmul_sizes);
BENCHMARK(matmul<Product::backward_weight>)->Apply(matmul_sizes);

/// Arguments: B, H, T, D, bits. Flash, causal.
template <bool kBackward>
void attention(benchmark::State& state) {
  const int64_t B = state.range(0);
  const int64_t H = state.range(1);
  const int64_t T = state.range(2);
  const int64_t D = state.range(3);
  const DType dtype = dtype_of(state, 4);
  Executor x;
  Memory memory;
  const Shape shape{B, T, H, D};
  const Tensor q = memory.tensor(shape, dtype), k = memory.tensor(shape, dtype);
  const Tensor v = memory.tensor(shape, dtype), out = memory.tensor(shape, dtype);
  const Tensor dq = memory.tensor(shape, dtype), dk = memory.tensor(shape, dtype);
  const Tensor dv = memory.tensor(shape, dtype), dout = memory.tensor(shape, dtype);
  const Tensor lse = memory.tensor({B, H, T}, DType::fp32);
  const Tensor row_sum = memory.tensor({B, H, T}, DType::fp32);
  const AttentionSpec spec{.scale = 1.0 / std::sqrt(static_cast<double>(D))};
  attention_forward(x, out, lse, q, k, v, spec);
  for (auto _ : state) {
    if (kBackward) {
      attention_backward(x, dq, dk, dv, row_sum, dout, out, lse, q, k, v, spec);
    } else {
      attention_forward(x, out, lse, q, k, v, spec);
    }
  }
  // Two products forward, five backward, over the half of the scores that the mask leaves.
  const double products = kBackward ? 5.0 : 2.0;
  count_flops(state, products * static_cast<double>(B * H * T * (T + 1) * D));
}

void attention_sizes(benchmark::internal::Benchmark* b) {
  for (const int64_t bits : {32, 16}) {
    b->Args({12, 4, 64, 32, bits})
        ->Args({4, 12, 64, 64, bits})
        ->Args({4, 12, 256, 64, bits})
        ->Args({1, 16, 1024, 64, bits});
  }
  b->ArgNames({"B", "H", "T", "D", "bits"})->UseRealTime();
}

BENCHMARK(attention<false>)->Name("attention_forward")->Apply(attention_sizes);
BENCHMARK(attention<true>)->Name("attention_backward")->Apply(attention_sizes);

/// Arguments: rows, C, bits.
void layernorm(benchmark::State& state) {
  const int64_t N = state.range(0);
  const int64_t C = state.range(1);
  const DType dtype = dtype_of(state, 2);
  Executor x;
  Memory memory;
  const Tensor in = memory.tensor({N, C}, DType::fp32), out = memory.tensor({N, C}, dtype);
  const Tensor weight = memory.tensor({C}, dtype), bias = memory.tensor({C}, dtype);
  const Tensor mean = memory.tensor({N}, DType::fp32), rstd = memory.tensor({N}, DType::fp32);
  for (auto _ : state) layernorm_forward(x, out, mean, rstd, in, weight, bias);
  count_bytes(state, in.bytes() + out.bytes());
}
BENCHMARK(layernorm)
    ->ArgsProduct({{768, 1024}, {128, 768}, {32, 16}})
    ->ArgNames({"N", "C", "bits"})
    ->UseRealTime();

/// Arguments: rows, F, bits.
void gelu(benchmark::State& state) {
  const DType dtype = dtype_of(state, 2);
  Executor x;
  Memory memory;
  const Tensor in = memory.tensor({state.range(0), state.range(1)}, dtype);
  const Tensor out = memory.tensor({state.range(0), state.range(1)}, dtype);
  for (auto _ : state) gelu_forward(x, out, in);
  count_bytes(state, in.bytes() + out.bytes());
}
BENCHMARK(gelu)
    ->ArgsProduct({{768, 1024}, {512, 3072}, {32, 16}})
    ->ArgNames({"N", "F", "bits"})
    ->UseRealTime();

}  // namespace
}  // namespace gradus

BENCHMARK_MAIN();
