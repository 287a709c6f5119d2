// The ladder of attention: every kernel of its tables, checked against fp64 on a small odd shape,
// then timed on causal heads of 64 and 128 with 16384 tokens a launch. Flops are those of the
// products alone: forward 4 · B · H · T² · D / 2, backward 2.5 times as many. The shares are of
// what mma.sync alone reaches in the same run.

#include <cmath>
#include <string>

#include "bench/cuda/harness.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_case.h"
#include "kernels/cuda/dynamic_shared.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"

namespace gradus::bench {
namespace {

constexpr int64_t kTokens = 16384;

struct Shape {
  int head_size, heads, T;
  int batch() const { return static_cast<int>(kTokens / T); }
  std::string name() const {
    return "D" + std::to_string(head_size) + " H" + std::to_string(heads) + " T" +
           std::to_string(T);
  }
  double forward_flops() const {
    return 2.0 * static_cast<double>(kTokens) * heads * T * head_size;
  }
};

template <typename E>
const char* dtype_name() {
  return std::is_same_v<E, __half> ? "fp16" : "bf16";
}

cuda::AttentionProblem problem_of(const Shape& s) {
  return {.batch = s.batch(),
          .queries = s.T,
          .keys = s.T,
          .heads = s.heads,
          .kv_heads = s.heads,
          .head_size = s.head_size,
          .scale = 1.0 / std::sqrt(s.head_size)};
}

// ---- what mma.sync reaches ----

constexpr int kPeakSteps = 2000;

/// 16 products in flight a warp, out of registers. Writes nothing that is not zero.
template <typename E>
__global__ void __launch_bounds__(256) mma_peak_kernel(float* out, uint32_t bits) {
  float d[16][4] = {};
  const uint32_t a[4] = {bits, bits, bits, bits};
  const uint32_t b[2] = {bits, bits};
  for (int step = 0; step < kPeakSteps; ++step) {
#pragma unroll
    for (int i = 0; i < 16; ++i) cuda::mma_m16n8k16<E>(d[i], a, b);
  }
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 16; ++i) sum += d[i][0] + d[i][1] + d[i][2] + d[i][3];
  if (sum != 0.0f) out[threadIdx.x] = sum;
}

template <typename E>
double mma_peak() {
  const int blocks = 132 * 2;
  const Timing timing = time_launches(
      nullptr,
      [&](int) {
        cuda::launch(mma_peak_kernel<E>, {.grid = blocks, .block = 256}, nullptr, nullptr, 0u);
      },
      {.samples = 10, .launches = 4});
  return 4096.0 * 16 * kPeakSteps * blocks * 8 / (timing.median_us * 1e-6);
}

// ---- checks ----

using cuda::testing::AttentionCase;
using cuda::testing::AttentionErrors;

template <typename E>
void check(Report& report, const AttentionCase& c, const std::string& kernel) {
  const AttentionErrors e = cuda::testing::run_attention_case<E>(c);
  const double epsilon = std::is_same_v<E, __half> ? 1.0 / 1024 : 1.0 / 128;
  const double worst = std::fmax(std::fmax(e.dq, e.dk), e.dv);
  const bool passed = e.out < 0.6 * epsilon && e.lse < 1e-5 && worst < epsilon && e.guards &&
                      e.repeats && e.empty_rows;
  std::printf("  %-4s %-18s %-52s out %.1e lse %.1e dq %.1e dk %.1e dv %.1e%s%s%s  %s\n",
              dtype_name<E>(), c.name.c_str(), kernel.c_str(), e.out, e.lse, e.dq, e.dk, e.dv,
              e.guards ? "" : " GUARDS", e.repeats ? "" : " DIFFERS", e.empty_rows ? "" : " EMPTY",
              passed ? "ok" : "FAILED");
  std::fflush(stdout);
  if (!passed) report.fail(c.name + " " + kernel, "the errors are past their bounds");
}

template <typename E>
void check_variants(Report& report, int head_size) {
  AttentionCase c{.name = "T277 D" + std::to_string(head_size),
                  .problem = problem_of({head_size, 2, 277})};
  c.problem.batch = 1;
  c.backward = false;
  const auto forward = cuda::attention_forward_variants(head_size);
  for (size_t i = 0; i < (std::is_same_v<E, __half> ? 1 : forward.size()); ++i) {
    c.variant = static_cast<int>(i);
    report.attempt(c.name, [&] { check<E>(report, c, "forward " + forward[i]); });
  }
  c.backward = true;
  const auto backward = cuda::attention_backward_variants(head_size);
  for (size_t i = 0; i < (std::is_same_v<E, __half> ? 1 : backward.size()); ++i) {
    c.variant = static_cast<int>(i);
    report.attempt(c.name, [&] { check<E>(report, c, "backward " + backward[i]); });
  }
}

// ---- times ----

template <typename E>
struct Tensors {
  explicit Tensors(const Shape& s)
      : qkv(kTokens * 3 * s.heads * s.head_size),
        dqkv(kTokens * 3 * s.heads * s.head_size),
        out(kTokens * s.heads * s.head_size),
        dout(kTokens * s.heads * s.head_size),
        lse(kTokens * s.heads),
        row_sum(kTokens * s.heads) {
    fill_random(qkv, 1);
    fill_random(dout, 2);
  }
  /// Part 0, 1, 2 of a packed (B, T, 3, H, D) tensor.
  template <typename T>
  static cuda::HeadTensor<T> part(const DeviceBuffer<E>& packed, const Shape& s, int index) {
    const int64_t row = int64_t{s.heads} * s.head_size;
    return {packed.data() + index * row, s.T * 3 * row, 3 * row, s.head_size};
  }
  template <typename T>
  static cuda::HeadTensor<T> whole(const DeviceBuffer<E>& tensor, const Shape& s) {
    const int64_t row = int64_t{s.heads} * s.head_size;
    return {tensor.data(), s.T * row, row, s.head_size};
  }
  DeviceBuffer<E> qkv, dqkv, out, dout;
  DeviceBuffer<float> lse, row_sum;
};

/// Kernels for rows and masks that the main path does not have are timed on one shape.
bool timed(const Shape& s, const std::string& name, bool all_variants, size_t number) {
  if (number == 0) return true;
  return all_variants && (s.T == 2048 || (name != "any" && name != "dropout"));
}

template <typename E>
void time_shape(Report& report, const Shape& s, bool all_variants) {
  Tensors<E> t(s);
  const TimingOptions options{.samples = report.options().quick ? 5 : 20, .launches = 4};
  using T = Tensors<E>;
  cuda::AttentionForward<E> forward{.problem = problem_of(s),
                                    .out = T::template whole<E>(t.out, s),
                                    .lse = t.lse.data(),
                                    .q = T::template part<const E>(t.qkv, s, 0),
                                    .k = T::template part<const E>(t.qkv, s, 1),
                                    .v = T::template part<const E>(t.qkv, s, 2)};
  const auto forward_names = cuda::attention_forward_variants(s.head_size);
  for (size_t i = 0; i < forward_names.size(); ++i) {
    if (!timed(s, forward_names[i], all_variants, i)) continue;
    forward.variant = static_cast<int>(i);
    report.attempt("forward " + forward_names[i], [&] {
      Measurement m{.operation = "forward",
                    .shape = s.name(),
                    .dtype = dtype_name<E>(),
                    .kernel = forward_names[i],
                    .flops = s.forward_flops()};
      m.timing = time_launches(
          nullptr, [&](int) { cuda::attention_forward(forward, nullptr); }, options);
      report.add(m);
    });
  }
  forward.variant = cuda::kVariantOfTable;
  cuda::attention_forward(forward, nullptr);

  cuda::AttentionBackward<E> backward{.problem = problem_of(s),
                                      .dq = T::template part<E>(t.dqkv, s, 0),
                                      .dk = T::template part<E>(t.dqkv, s, 1),
                                      .dv = T::template part<E>(t.dqkv, s, 2),
                                      .row_sum = t.row_sum.data(),
                                      .dout = T::template whole<const E>(t.dout, s),
                                      .out = T::template whole<const E>(t.out, s),
                                      .lse = t.lse.data(),
                                      .q = forward.q,
                                      .k = forward.k,
                                      .v = forward.v};
  const auto backward_names = cuda::attention_backward_variants(s.head_size);
  for (size_t i = 0; i < backward_names.size(); ++i) {
    if (!timed(s, backward_names[i], all_variants, i)) continue;
    backward.variant = static_cast<int>(i);
    report.attempt("backward " + backward_names[i], [&] {
      Measurement m{.operation = "backward",
                    .shape = s.name(),
                    .dtype = dtype_name<E>(),
                    .kernel = backward_names[i],
                    .flops = 2.5 * s.forward_flops()};
      m.timing = time_launches(
          nullptr, [&](int) { cuda::attention_backward(backward, nullptr); }, options);
      report.add(m);
    });
  }
}

/// What dropout costs: the table's kernels with a tenth of the weights dropped.
template <typename E>
void time_dropout(Report& report, const Shape& s) {
  Tensors<E> t(s);
  using T = Tensors<E>;
  cuda::AttentionProblem problem = problem_of(s);
  problem.dropout.p = 0.1;
  const cuda::AttentionForward<E> forward{.problem = problem,
                                          .out = T::template whole<E>(t.out, s),
                                          .lse = t.lse.data(),
                                          .q = T::template part<const E>(t.qkv, s, 0),
                                          .k = T::template part<const E>(t.qkv, s, 1),
                                          .v = T::template part<const E>(t.qkv, s, 2)};
  const cuda::AttentionBackward<E> backward{.problem = problem,
                                            .dq = T::template part<E>(t.dqkv, s, 0),
                                            .dk = T::template part<E>(t.dqkv, s, 1),
                                            .dv = T::template part<E>(t.dqkv, s, 2),
                                            .row_sum = t.row_sum.data(),
                                            .dout = T::template whole<const E>(t.dout, s),
                                            .out = T::template whole<const E>(t.out, s),
                                            .lse = t.lse.data(),
                                            .q = forward.q,
                                            .k = forward.k,
                                            .v = forward.v};
  const TimingOptions options{.samples = 10, .launches = 2};
  Measurement m{.operation = "forward",
                .shape = s.name(),
                .dtype = dtype_name<E>(),
                .kernel = "forward, a tenth dropped",
                .flops = s.forward_flops()};
  m.timing = time_launches(
      nullptr, [&](int) { cuda::attention_forward(forward, nullptr); }, options);
  report.add(m);
  m.operation = "backward";
  m.kernel = "backward, a tenth dropped";
  m.flops = 2.5 * s.forward_flops();
  m.timing = time_launches(
      nullptr, [&](int) { cuda::attention_backward(backward, nullptr); }, options);
  report.add(m);
}

int run(int argc, char** argv) {
  Report report("attention", parse_options(argc, argv));
  const Options& options = report.options();
  report.heading("checks against fp64: ‖got - want‖ / ‖want‖");
  for (const int head_size : {64, 128}) {
    if (options.wants("D" + std::to_string(head_size))) {
      check_variants<__nv_bfloat16>(report, head_size);
    }
  }
  if (options.wants("fp16")) check_variants<__half>(report, 128);
  if (!options.check) {
    report.set_throughput(mma_peak<__nv_bfloat16>(), "mma.sync alone");
    for (const Shape& shape : {Shape{64, 32, 2048}, Shape{128, 16, 2048}, Shape{64, 32, 1024},
                               Shape{128, 16, 1024}, Shape{64, 32, 4096}, Shape{128, 16, 4096}}) {
      if (!options.wants(shape.name())) continue;
      report.heading("causal, B·T = 16384, " + shape.name());
      report.attempt(shape.name(), [&] { time_shape<__nv_bfloat16>(report, shape, true); });
    }
    for (const Shape& shape : {Shape{64, 32, 2048}, Shape{128, 16, 2048}}) {
      if (!options.wants("dropout")) continue;
      report.heading("dropout");
      report.attempt("dropout", [&] { time_dropout<__nv_bfloat16>(report, shape); });
    }
    if (options.wants("fp16")) {
      report.heading("fp16");
      time_shape<__half>(report, {128, 16, 2048}, false);
    }
  }
  return report.finish();
}

}  // namespace
}  // namespace gradus::bench

int main(int argc, char** argv) {
  try {
    return gradus::bench::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "attention_bench: %s\n", error.what());
    return 1;
  }
}
