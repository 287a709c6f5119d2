// A Hopper prototype of attention on its own: what wgmma and tensor copies give, rung by rung,
// ahead of a backend that would use them. Causal, bf16, Q, K, V as slices of a packed (B, T, 3, H,
// D).
//   wgmma_attention_bench [--only TEXT] [--quick] [--out FILE]
// Every case runs in a process of its own (--case NAME), so that one that traps or hangs takes no
// other along. The self-test comes first: single tiles of each operand form against the host, and,
// where one differs, what the hardware did with inputs that name their own place.

#include <cudaTypedefs.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench/cuda/harness.h"
#include "bench/cuda/wgmma_attention_backward.cuh"
#include "bench/cuda/wgmma_attention_forward.cuh"
#include "bench/cuda/wgmma_product.cuh"

namespace gradus::bench {
namespace {

using namespace gradus::cuda::hopper;
using Bf16 = __nv_bfloat16;

constexpr int kCaseSeconds = 25;
constexpr double kPeak = 989.4e12;

struct Settings {
  bool quick = false;
  std::string only, out, single;
};
Settings settings;
bool failed = false;
uint32_t* fault = nullptr;

// ---- tensors ------------------------------------------------------------------------------------

/// (B, T, H, D) bf16 within rows of `row` elements.
struct Tensor4 {
  Bf16* data;
  int batches, rows, heads, head_size;
  int64_t row;
};

CUtensorMap tensor_map(const Tensor4& x, int box_rows) {
  static PFN_cuTensorMapEncodeTiled_v12000 encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    GRADUS_BENCH_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                       cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess) throw std::runtime_error("no cuTensorMapEncodeTiled");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  CUtensorMap map{};
  const cuuint64_t sizes[4] = {static_cast<cuuint64_t>(x.head_size),
                               static_cast<cuuint64_t>(x.heads), static_cast<cuuint64_t>(x.rows),
                               static_cast<cuuint64_t>(x.batches)};
  const cuuint64_t strides[3] = {static_cast<cuuint64_t>(x.head_size) * 2,
                                 static_cast<cuuint64_t>(x.row) * 2,
                                 static_cast<cuuint64_t>(x.row) * 2 * x.rows};
  const cuuint32_t box[4] = {64, 1, static_cast<cuuint32_t>(box_rows), 1};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, x.data, sizes, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw std::runtime_error("cuTensorMapEncodeTiled gives " + std::to_string(result));
  }
  return map;
}

/// One head's rows as doubles.
std::vector<double> head_rows(const Tensor4& x, int batch, int head) {
  std::vector<Bf16> narrow(static_cast<size_t>(x.rows) * x.head_size);
  GRADUS_BENCH_CUDA(
      cudaMemcpy2D(narrow.data(), x.head_size * 2,
                   x.data + static_cast<int64_t>(batch) * x.rows * x.row + head * x.head_size,
                   x.row * 2, x.head_size * 2, x.rows, cudaMemcpyDeviceToHost));
  return to_doubles(narrow);
}

// ---- self-test ----------------------------------------------------------------------------------

struct alignas(128) ProbeArguments {
  CUtensorMap a, b, d;
  const Bf16* a_registers;
  float* raw;        // (128, kColumns / 2): every thread's accumulators
  uint32_t* shared;  // the B tile as it lies in shared memory
  uint32_t* fault;
  int b_columns;
};

/// kNt: d (64, kRows) = a (64, kDepth) bᵀ, b (kRows, kDepth). Else d (64, kDepth) = a (64, kRows) b
/// with a from registers: B is (kRows, kDepth) in both, as keys and values are.
template <bool kNt, int kDepth, int kRows>
__global__ void __launch_bounds__(128) probe_kernel(const __grid_constant__ ProbeArguments p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) uint8_t probe_shared[];
  constexpr int kColumns = kNt ? kRows : kDepth;
  constexpr uint32_t kABytes = 64 * kDepth * 2, kBBytes = kRows * kDepth * 2;
  const uint32_t base = shared_address(probe_shared), b_tile = base + kABytes;
  const uint32_t full = b_tile + kBBytes;
  if (threadIdx.x == 0) {
    barrier_init(full, 1);
    barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    barrier_expect(full, kABytes + kBBytes);
    for (int slab = 0; slab < kDepth / 64; ++slab) {
      tma_load(base + slab * 64 * kSlabRow, p.a, full, slab * 64, 0, 0, 0);
      tma_load(b_tile + slab * kRows * kSlabRow, p.b, full, slab * 64, 0, 0, 0);
    }
  }
  barrier_wait(full, 0, p.fault, 50);
  for (uint32_t i = threadIdx.x; i < kBBytes / 4; i += 128) {
    p.shared[i] = reinterpret_cast<const uint32_t*>(probe_shared + kABytes)[i];
  }
  float d[kColumns / 2];
  if constexpr (kNt) {
    wgmma_fence();
    product_nt<kDepth, kRows>(d, base, b_tile);
    wgmma_commit();
    wgmma_wait<0>();
    pin(d);
  } else {
    uint32_t a[kRows / 4];
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < kRows / 4; ++i) {
      const int r = row + i % 2 * 8, c = i / 4 * 16 + i % 4 / 2 * 8 + column;
      a[i] = *reinterpret_cast<const uint32_t*>(p.a_registers + r * kRows + c);
    }
    zero(d);
    pin(a);
    wgmma_fence();
    product_nn<kRows, kDepth>(d, a, b_tile, false);
    wgmma_commit();
    wgmma_wait<0>();
    pin(d);
  }
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) p.raw[threadIdx.x * (kColumns / 2) + i] = d[i];
  if constexpr (!kNt) {  // and out through shared memory, as results leave
    __syncthreads();
    write_tile<kDepth>(base, d, 1.0f, 1.0f);
    async_proxy_fence();
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int slab = 0; slab < kDepth / 64; ++slab) {
        tma_store(p.d, base + slab * 64 * kSlabRow, slab * 64, 0, 0, 0);
      }
      tma_store_read_wait();
    }
  }
#endif
}

struct Probe {
  int inner, columns;  // of the product
  std::function<void(const std::vector<double>&, const std::vector<double>&)>
      run;  // a, b as (r, c)
  std::vector<float> raw;
  std::vector<uint32_t> shared;
  std::vector<Bf16> stored;
};

template <bool kNt, int kDepth, int kRows>
Probe make_probe() {
  return {kNt ? kDepth : kRows, kNt ? kRows : kDepth, {}, {}, {}, {}};
}

template <bool kNt, int kDepth, int kRows>
void run_probe(Probe& probe, const std::vector<double>& a, const std::vector<double>& b) {
  constexpr int kInner = kNt ? kDepth : kRows, kColumns = kNt ? kRows : kDepth;
  const auto narrow = [](const std::vector<double>& wide) {
    std::vector<Bf16> values;
    for (const double x : wide) values.push_back(from_double<Bf16>(x));
    return values;
  };
  std::vector<double> a_shared(64 * kDepth, 0.0);
  if (kNt) a_shared = a;
  const DeviceBuffer<Bf16> a_memory(narrow(a_shared)), a_registers(narrow(a)), b_memory(narrow(b));
  DeviceBuffer<Bf16> d(64 * kDepth);
  DeviceBuffer<float> raw(128 * kColumns / 2);
  DeviceBuffer<uint32_t> shared(kRows * kDepth / 2);
  ProbeArguments p{tensor_map({a_memory.data(), 1, 64, 1, kDepth, kDepth}, 64),
                   tensor_map({b_memory.data(), 1, kRows, 1, kDepth, kDepth}, kRows),
                   tensor_map({d.data(), 1, 64, 1, kDepth, kDepth}, 64),
                   a_registers.data(),
                   raw.data(),
                   shared.data(),
                   fault,
                   kInner};
  constexpr int kShared = 64 * kDepth * 2 + kRows * kDepth * 2 + 16;
  const auto kernel = probe_kernel<kNt, kDepth, kRows>;
  GRADUS_BENCH_CUDA(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared));
  kernel<<<1, 128, kShared>>>(p);
  GRADUS_BENCH_CUDA(cudaGetLastError());
  GRADUS_BENCH_CUDA(cudaDeviceSynchronize());
  probe.raw = raw.download();
  probe.shared = shared.download();
  probe.stored = d.download();
}

/// Row and column of accumulator i of a thread, as wgmma.cuh says.
int row_of(int thread, int i) { return thread / 32 * 16 + thread % 32 / 4 + i % 4 / 2 * 8; }
int column_of(int thread, int i) { return i / 4 * 8 + thread % 4 * 2 + i % 2; }

/// Counts accumulators that differ from what `want` says of their place, prints the first few.
int64_t differing(const Probe& probe, const char* what, const std::function<double(int, int)>& want,
                  double bound, int shown) {
  int64_t bad = 0;
  const int per_thread = probe.columns / 2;
  for (int thread = 0; thread < 128; ++thread) {
    for (int i = 0; i < per_thread; ++i) {
      const double got = static_cast<double>(probe.raw[thread * per_thread + i]);
      const int row = row_of(thread, i), column = column_of(thread, i);
      if (std::fabs(got - want(row, column)) <= bound) continue;
      if (bad++ < shown) {
        std::printf("    %s: thread %d d[%d] (row %d, column %d) is %g, not %g\n", what, thread, i,
                    row, column, got, want(row, column));
      }
    }
  }
  return bad;
}

template <bool kNt, int kDepth, int kRows>
void test_product() {
  Probe probe = make_probe<kNt, kDepth, kRows>();
  const int inner = probe.inner, columns = probe.columns;
  const char* form = kNt ? "a shared, b K-major" : "a registers, b MN-major";
  std::mt19937 random(kDepth * 1000 + kRows);
  std::normal_distribution<double> normal;
  std::vector<double> a(64 * inner), b(kRows * kDepth);
  for (double& x : a) x = to_double(from_double<Bf16>(normal(random)));
  for (double& x : b) x = to_double(from_double<Bf16>(normal(random)));
  const auto b_at = [&](const std::vector<double>& m, int k, int n) {
    return kNt ? m[n * kDepth + k] : m[k * kDepth + n];
  };
  run_probe<kNt, kDepth, kRows>(probe, a, b);

  // What TMA laid down: chunk c of row r at place c ^ (r % 8).
  int64_t misplaced = 0;
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kDepth; ++c) {
      const int place = c / 64 * kRows * 64 + r * 64 + ((c % 64 / 8) ^ (r % 8)) * 8 + c % 8;
      const uint32_t word = probe.shared[place / 2];
      const uint32_t bits = place % 2 ? word >> 16 : word & 0xffffu;
      float value;
      const uint32_t wide = bits << 16;
      std::memcpy(&value, &wide, 4);
      if (static_cast<double>(value) != b[r * kDepth + c] && misplaced++ < 4) {
        std::printf("    TMA: row %d column %d: %g at its place, not %g\n", r, c,
                    static_cast<double>(value), b[r * kDepth + c]);
      }
    }
  }
  const auto reference = [&](int row, int column) {
    double sum = 0.0;
    for (int k = 0; k < inner; ++k) sum += a[row * inner + k] * b_at(b, k, column);
    return sum;
  };
  const int64_t bad = differing(probe, "product", reference, 1e-3, 4);
  int64_t store_bad = 0;
  if (!kNt && bad == 0) {
    for (int r = 0; r < 64; ++r) {
      for (int c = 0; c < kDepth; ++c) {
        const double got = to_double(probe.stored[r * kDepth + c]), want = reference(r, c);
        if (!(std::fabs(got - want) <= 1e-3 + std::fabs(want) / 128) && store_bad++ < 4) {
          std::printf("    store: row %d column %d is %g, not %g\n", r, c, got, want);
        }
      }
    }
  }
  std::printf(
      "  64x%dx%d, %s: %lld of %d accumulators differ, %lld misplaced, %lld stored wrong: %s\n",
      columns, inner, form, static_cast<long long>(bad), 64 * columns,
      static_cast<long long>(misplaced), static_cast<long long>(store_bad),
      bad + misplaced + store_bad == 0 ? "ok" : "FAILED");
  if (bad + misplaced + store_bad == 0) return;
  failed = true;
  // Inputs that name their own place: rows, columns, then the steps of the reduced axis.
  const auto set_b = [&](int k, int n) -> double& {
    return kNt ? b[n * kDepth + k] : b[k * kDepth + n];
  };
  std::fill(a.begin(), a.end(), 0.0);
  std::fill(b.begin(), b.end(), 0.0);
  for (int r = 0; r < 64; ++r) a[r * inner] = r;
  for (int n = 0; n < columns; ++n) set_b(0, n) = 1.0;
  run_probe<kNt, kDepth, kRows>(probe, a, b);
  differing(
      probe, "row", [](int row, int) { return row; }, 0.0, 12);
  for (int r = 0; r < 64; ++r) a[r * inner] = 1.0;
  for (int n = 0; n < columns; ++n) set_b(0, n) = n;
  run_probe<kNt, kDepth, kRows>(probe, a, b);
  differing(
      probe, "column", [](int, int column) { return column; }, 0.0, 12);
  for (int k = 0; k < inner; ++k) {
    for (int n = 0; n < columns; ++n) set_b(k, n) = k;
  }
  for (int k = 0; k < inner; k += k % 16 == 0 ? 1 : k % 16 == 1 ? 7 : 8) {
    std::fill(a.begin(), a.end(), 0.0);
    for (int r = 0; r < 64; ++r) a[r * inner + k] = 1.0;
    run_probe<kNt, kDepth, kRows>(probe, a, b);
    differing(
        probe, ("step " + std::to_string(k)).c_str(), [k](int, int) { return k; }, 0.0, 1);
  }
}

void self_test() {
  std::printf("%s\n", describe_card().c_str());
  test_product<true, 128, 64>();
  test_product<true, 128, 80>();
  test_product<true, 128, 96>();
  test_product<true, 128, 128>();
  test_product<true, 128, 176>();
  test_product<true, 64, 128>();
  test_product<false, 128, 64>();
  test_product<false, 128, 80>();
  test_product<false, 128, 128>();
  test_product<false, 128, 176>();
  test_product<false, 64, 64>();
  test_product<false, 64, 128>();
}

// ---- attention ---------------------------------------------------------------------------------

struct Shape {
  int batches, queries, heads, head_size;
  bool timed;
  int64_t channels() const { return static_cast<int64_t>(heads) * head_size; }
  int64_t rows() const { return static_cast<int64_t>(batches) * queries; }
  int pairs() const { return batches * heads; }
  /// Of the forward's two products below the diagonal.
  double flops() const { return 2.0 * pairs() * head_size * 1.0 * queries * queries; }
  std::string text() const {
    return std::to_string(batches) + "x" + std::to_string(queries) + "x" + std::to_string(heads) +
           "x" + std::to_string(head_size);
  }
};

std::vector<Shape> shapes(int head_size) {
  std::vector<Shape> all = {{2, 333, 3, head_size, false}};
  for (const int queries : {1024, 2048, 4096}) {
    if (settings.quick && queries != 2048) continue;
    all.push_back({16384 / queries, queries, 2048 / head_size, head_size, true});
  }
  return all;
}

int processors() {
  int count = 0;
  GRADUS_BENCH_CUDA(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0));
  return count;
}

/// `streamed`: bytes of one pair that all its tiles read.
WorkOrder work_order(const Shape& shape, int tile_rows, int64_t streamed, bool persistent) {
  const int tiles = (shape.queries + tile_rows - 1) / tile_rows;
  int group =
      static_cast<int>(std::clamp<int64_t>((int64_t{24} << 20) / streamed, 1, shape.pairs()));
  while (shape.pairs() % group != 0) --group;
  WorkOrder order{shape.pairs() * tiles, tiles, group};
  if (persistent) {
    static DeviceBuffer<int> counter = [] {
      DeviceBuffer<int> zero(1);
      zero.zero();
      return zero;
    }();
    static int taken = 0;
    order.counter = counter.data();
    order.base = taken;
    taken += order.items + std::min(order.items, processors());
  }
  return order;
}

template <typename Arguments>
void start(void (*kernel)(Arguments), int threads, int shared, int registers, int grid,
           const Arguments& arguments) {
  static std::vector<const void*> prepared;
  const void* address = reinterpret_cast<const void*>(kernel);
  if (std::find(prepared.begin(), prepared.end(), address) == prepared.end()) {
    GRADUS_BENCH_CUDA(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    cudaFuncAttributes attributes{};
    GRADUS_BENCH_CUDA(cudaFuncGetAttributes(&attributes, kernel));
    if (attributes.numRegs != registers || attributes.localSizeBytes != 0) {
      throw std::runtime_error("kernel has " + std::to_string(attributes.numRegs) + " registers, " +
                               std::to_string(attributes.localSizeBytes) +
                               " bytes of local memory");
    }
    prepared.push_back(address);
  }
  kernel<<<grid, threads, shared>>>(arguments);
  GRADUS_BENCH_CUDA(cudaGetLastError());
}

/// Everything of one shape.
struct Problem {
  explicit Problem(const Shape& s)
      : shape(s),
        qkv(s.rows() * 3 * s.channels()),
        out(s.rows() * s.channels()),
        lse(s.rows() * s.heads) {
    fill_random(qkv, 1);
  }
  Tensor4 slice(const DeviceBuffer<Bf16>& packed, int which) const {
    return {packed.data() + which * shape.channels(),
            shape.batches,
            shape.queries,
            shape.heads,
            shape.head_size,
            3 * shape.channels()};
  }
  Tensor4 whole(const DeviceBuffer<Bf16>& buffer) const {
    return {buffer.data(), shape.batches,   shape.queries,
            shape.heads,   shape.head_size, shape.channels()};
  }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape.head_size)); }
  Shape shape;
  DeviceBuffer<Bf16> qkv, out;
  DeviceBuffer<float> lse;
};

/// Some places that tiles, warps and masks divide differently, and some at random.
std::vector<int> sample_rows(int rows, int random_count) {
  std::vector<int> sample;
  for (const int row : {0,  1,   7,   8,   15,  16,  63,  64,       79,       80,      95,
                        96, 127, 128, 175, 176, 191, 192, rows / 2, rows - 2, rows - 1}) {
    if (row < rows) sample.push_back(row);
  }
  std::mt19937 random(5);
  for (int i = 0; i < random_count; ++i) sample.push_back(static_cast<int>(random() % rows));
  return sample;
}

std::vector<std::pair<int, int>> sample_pairs(const Shape& shape) {
  return {{0, 0}, {shape.batches / 2, shape.heads / 2}, {shape.batches - 1, shape.heads - 1}};
}

double dot(const double* a, const double* b, int n) {
  double sum = 0.0;
  for (int i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

/// Prints what a comparison found, as "name error/largest"; marks a failure.
std::string verdict(const char* name, const std::vector<double>& got,
                    const std::vector<double>& want, double norm, double largest) {
  const Errors errors = compare(got, want);
  const bool passed = errors.within(norm, largest);
  if (!passed) failed = true;
  char text[160];
  std::snprintf(text, sizeof text, "%s %.1e/%.1e%s ", name, errors.norm, errors.largest,
                passed                  ? ""
                : errors.nonfinite != 0 ? " NOT FINITE"
                                        : " FAILED");
  if (!passed) {
    int shown = 0;
    for (size_t i = 0; i < got.size() && shown < 3; ++i) {
      if (!(std::fabs(got[i] - want[i]) <= 0.02 * (1.0 + std::fabs(want[i])))) {
        std::printf("    %s[%zu] is %g, not %g\n", name, i, got[i], want[i]);
        ++shown;
      }
    }
  }
  return text;
}

std::string check_forward(const Problem& p) {
  const int T = p.shape.queries, D = p.shape.head_size;
  std::vector<double> got, want, got_lse, want_lse;
  const std::vector<float> lse = p.lse.download();
  for (const auto& [batch, head] : sample_pairs(p.shape)) {
    const auto q = head_rows(p.slice(p.qkv, 0), batch, head);
    const auto k = head_rows(p.slice(p.qkv, 1), batch, head);
    const auto v = head_rows(p.slice(p.qkv, 2), batch, head);
    const auto out = head_rows(p.whole(p.out), batch, head);
    for (const int row : sample_rows(T, 10)) {
      std::vector<double> scores(row + 1), sum(D, 0.0);
      double most = -INFINITY, total = 0.0;
      for (int key = 0; key <= row; ++key) {
        scores[key] = dot(&q[static_cast<size_t>(row) * D], &k[static_cast<size_t>(key) * D], D) *
                      static_cast<double>(p.scale());
        most = std::max(most, scores[key]);
      }
      for (int key = 0; key <= row; ++key) {
        const double weight = std::exp(scores[key] - most);
        total += weight;
        for (int d = 0; d < D; ++d) sum[d] += weight * v[static_cast<size_t>(key) * D + d];
      }
      for (int d = 0; d < D; ++d) {
        want.push_back(sum[d] / total);
        got.push_back(out[static_cast<size_t>(row) * D + d]);
      }
      want_lse.push_back(most + std::log(total));
      got_lse.push_back(
          static_cast<double>(lse[(static_cast<size_t>(batch) * p.shape.heads + head) * T + row]));
    }
  }
  return verdict("out", got, want, 5e-3, 2e-2) + verdict("lse", got_lse, want_lse, 1e-4, 1e-3);
}

void line(const std::string& kernel, const Shape& shape, const Timing& timing, double flops,
          const std::string& checks) {
  const double rate = timing.median_us > 0 ? flops / (timing.median_us * 1e-6) : 0.0;
  if (timing.samples > 0) {
    std::printf("  %-44s %-16s %9.1f us (min %8.1f) %7.1f TF/s %5.1f%%  %s\n", kernel.c_str(),
                shape.text().c_str(), timing.median_us, timing.min_us, rate * 1e-12,
                rate / kPeak * 100, checks.c_str());
  } else {
    std::printf("  %-44s %-16s %s\n", kernel.c_str(), shape.text().c_str(), checks.c_str());
  }
  std::fflush(stdout);
  if (settings.out.empty()) return;
  FILE* file = std::fopen(settings.out.c_str(), "a");
  if (file == nullptr) throw std::runtime_error("cannot write " + settings.out);
  std::fprintf(file,
               "{\"kernel\": \"%s\", \"shape\": \"%s\", \"dtype\": \"bf16\", \"median_us\": %.3f, "
               "\"min_us\": %.3f, \"samples\": %d, \"flops\": %.6g, \"checks\": \"%s\"}\n",
               kernel.c_str(), shape.text().c_str(), timing.median_us, timing.min_us,
               timing.samples, flops, checks.c_str());
  std::fclose(file);
}

const TimingOptions kTiming{.warmup = 4, .samples = 20, .launches = 2};

template <class Tile>
void run_forward(const Problem& p, bool persistent) {
  const int64_t streamed = int64_t{4} * p.shape.queries * Tile::D;
  const WorkOrder order = work_order(p.shape, Tile::kQueries, streamed, persistent);
  const ForwardArguments arguments{tensor_map(p.slice(p.qkv, 0), 64),
                                   tensor_map(p.slice(p.qkv, 1), Tile::kN),
                                   tensor_map(p.slice(p.qkv, 2), Tile::kN),
                                   tensor_map(p.whole(p.out), 64),
                                   p.lse.data(),
                                   fault,
                                   p.shape.queries,
                                   p.shape.heads,
                                   order,
                                   p.scale()};
  start(attention_forward_kernel<Tile>, Tile::kThreads, Tile::kSharedBytes, Tile::kLaunchRegisters,
        persistent ? std::min(order.items, processors()) : order.items, arguments);
}

template <class Tile>
void forward_case(const std::string& name) {
  static_assert(Tile::kSharedBytes <= 227 * 1024);
  for (const Shape& shape : shapes(Tile::D)) {
    Problem p(shape);
    for (const bool persistent : {false, true}) {
      p.out.poison();
      p.lse.poison();
      run_forward<Tile>(p, persistent);
      GRADUS_BENCH_CUDA(cudaDeviceSynchronize());
      const std::string checks = Tile::kSoftmax ? check_forward(p) : "not attention";
      Timing timing;
      if (shape.timed) {
        timing = time_launches(
            nullptr, [&](int) { run_forward<Tile>(p, persistent); }, kTiming);
      }
      line(name + (persistent ? ", persistent" : ""), shape, timing, shape.flops(), checks);
    }
  }
}

struct BackwardProblem : Problem {
  BackwardProblem(const Shape& s, int padded)
      : Problem(s),
        dout(s.rows() * s.channels()),
        dqkv(s.rows() * 3 * s.channels()),
        rows_padded((s.queries + padded - 1) / padded * padded),
        rows(static_cast<int64_t>(s.pairs()) * rows_padded) {
    fill_random(dout, 2);
  }
  DeviceBuffer<Bf16> dout, dqkv;
  int rows_padded;
  DeviceBuffer<float2> rows;
};

std::string check_backward(const BackwardProblem& p) {
  const int T = p.shape.queries, D = p.shape.head_size;
  const double scale = static_cast<double>(p.scale());
  std::vector<double> got[4], want[4];  // dq, dk, dv, row_sum
  const std::vector<float2> all_rows = p.rows.download();
  for (const auto& [batch, head] : sample_pairs(p.shape)) {
    const auto q = head_rows(p.slice(p.qkv, 0), batch, head);
    const auto k = head_rows(p.slice(p.qkv, 1), batch, head);
    const auto v = head_rows(p.slice(p.qkv, 2), batch, head);
    const auto out = head_rows(p.whole(p.out), batch, head);
    const auto dout = head_rows(p.whole(p.dout), batch, head);
    std::vector<double> grads[3];
    for (int i = 0; i < 3; ++i) grads[i] = head_rows(p.slice(p.dqkv, i), batch, head);
    const float2* rows =
        &all_rows[(static_cast<size_t>(batch) * p.shape.heads + head) * p.rows_padded];
    const auto at = [D](const std::vector<double>& x, int row) {
      return &x[static_cast<size_t>(row) * D];
    };
    const auto weight = [&](int row, int key) {
      return std::exp(dot(at(q, row), at(k, key), D) * scale -
                      static_cast<double>(rows[row].x) * std::log(2.0));
    };
    const auto dscore = [&](int row, int key, double w) {
      return w * (dot(at(dout, row), at(v, key), D) - static_cast<double>(rows[row].y)) * scale;
    };
    for (const int row : sample_rows(T, 6)) {
      std::vector<double> dq(D, 0.0), dk(D, 0.0), dv(D, 0.0);
      for (int key = 0; key <= row; ++key) {
        const double ds = dscore(row, key, weight(row, key));
        for (int d = 0; d < D; ++d) dq[d] += ds * at(k, key)[d];
      }
      for (int query = row; query < T; ++query) {
        const double w = weight(query, row), ds = dscore(query, row, w);
        for (int d = 0; d < D; ++d) {
          dv[d] += w * at(dout, query)[d];
          dk[d] += ds * at(q, query)[d];
        }
      }
      const std::vector<double>* wanted[3] = {&dq, &dk, &dv};
      for (int i = 0; i < 3; ++i) {
        for (int d = 0; d < D; ++d) {
          want[i].push_back((*wanted[i])[d]);
          got[i].push_back(at(grads[i], row)[d]);
        }
      }
      want[3].push_back(dot(at(dout, row), at(out, row), D));
      got[3].push_back(static_cast<double>(rows[row].y));
    }
  }
  return verdict("dq", got[0], want[0], 1e-2, 2e-2) + verdict("dk", got[1], want[1], 1e-2, 2e-2) +
         verdict("dv", got[2], want[2], 1e-2, 2e-2) +
         verdict("row_sum", got[3], want[3], 1e-4, 1e-3);
}

template <class Keys, class Queries>
struct Backward {
  static constexpr int D = Keys::D;
  static void row_sums(const BackwardProblem& p) {
    const RowSumArguments arguments{p.dout.data(),   p.out.data(),    p.lse.data(),  p.rows.data(),
                                    p.shape.batches, p.shape.queries, p.shape.heads, p.rows_padded};
    const int64_t threads = static_cast<int64_t>(p.rows.count()) * 8;
    row_sum_kernel<D><<<static_cast<unsigned>((threads + 255) / 256), 256>>>(arguments);
    GRADUS_BENCH_CUDA(cudaGetLastError());
  }
  template <class Tile, bool kKeysOwned>
  static void pass(const BackwardProblem& p, bool persistent) {
    const int64_t streamed = int64_t{4} * p.shape.queries * D;
    const WorkOrder order = work_order(p.shape, Tile::kOwned, streamed, persistent);
    const int walked_q = kKeysOwned ? Tile::kN : 64, walked_k = kKeysOwned ? 64 : Tile::kN;
    const BackwardArguments arguments{tensor_map(p.slice(p.qkv, 0), walked_q),
                                      tensor_map(p.slice(p.qkv, 1), walked_k),
                                      tensor_map(p.slice(p.qkv, 2), walked_k),
                                      tensor_map(p.whole(p.dout), walked_q),
                                      tensor_map(p.slice(p.dqkv, 0), 64),
                                      tensor_map(p.slice(p.dqkv, 1), 64),
                                      tensor_map(p.slice(p.dqkv, 2), 64),
                                      p.rows.data(),
                                      fault,
                                      p.shape.queries,
                                      p.rows_padded,
                                      p.shape.heads,
                                      order,
                                      p.scale()};
    start(attention_backward_kernel<Tile, kKeysOwned>, Tile::kThreads, Tile::kSharedBytes,
          Tile::kLaunchRegisters, persistent ? std::min(order.items, processors()) : order.items,
          arguments);
  }
};

template <class Keys, class Queries>
void backward_case(const std::string& name) {
  static_assert(Keys::kSharedBytes <= 227 * 1024 && Queries::kSharedBytes <= 227 * 1024);
  using Run = Backward<Keys, Queries>;
  for (const Shape& shape : shapes(Keys::D)) {
    BackwardProblem p(shape, Keys::kN);
    run_forward<ForwardTile<Keys::D, 2, 128, 2, false, false>>(p, false);
    GRADUS_BENCH_CUDA(cudaDeviceSynchronize());
    for (const bool persistent : {false, true}) {
      p.dqkv.poison();
      p.rows.poison();
      const auto all = [&](int) {
        Run::row_sums(p);
        Run::template pass<Keys, true>(p, persistent);
        Run::template pass<Queries, false>(p, persistent);
      };
      all(0);
      GRADUS_BENCH_CUDA(cudaDeviceSynchronize());
      const std::string checks = check_backward(p);
      const std::string label = name + (persistent ? ", persistent" : "");
      if (!shape.timed) {
        line(label, shape, {}, 0.0, checks);
        continue;
      }
      if (!persistent) {
        line("  row sums", shape,
             time_launches(
                 nullptr, [&](int) { Run::row_sums(p); }, kTiming),
             0.0, "");
      }
      line("  dk and dv (4 products)", shape,
           time_launches(
               nullptr, [&](int) { Run::template pass<Keys, true>(p, persistent); }, kTiming),
           2.0 * shape.flops(), "");
      line("  dq (3 products)", shape,
           time_launches(
               nullptr, [&](int) { Run::template pass<Queries, false>(p, persistent); }, kTiming),
           1.5 * shape.flops(), "");
      line(label + " (as 5 products)", shape, time_launches(nullptr, all, kTiming),
           2.5 * shape.flops(), checks);
    }
  }
}

// ---- products ----------------------------------------------------------------------------------

template <class Tile>
void product_case(const std::string& name) {
  struct Sizes {
    int m, n, k;
  };
  for (const Sizes s : {Sizes{200, 264, 192}, Sizes{8192, 8192, 8192}, Sizes{16384, 6144, 2048},
                        Sizes{16384, 2048, 8192}}) {
    DeviceBuffer<Bf16> a(static_cast<int64_t>(s.m) * s.k), b(static_cast<int64_t>(s.n) * s.k);
    DeviceBuffer<Bf16> out(static_cast<int64_t>(s.m) * s.n);
    fill_random(a, 3);
    fill_random(b, 4);
    const ProductArguments arguments{tensor_map({a.data(), 1, s.m, 1, s.k, s.k}, 128),
                                     tensor_map({b.data(), 1, s.n, 1, s.k, s.k}, Tile::kColumns),
                                     out.data(),
                                     fault,
                                     s.m,
                                     s.n,
                                     s.k,
                                     16};
    const auto run = [&](int) {
      start(product_kernel<Tile>, Tile::kThreads, Tile::kSharedBytes, Tile::kLaunchRegisters,
            processors(), arguments);
    };
    run(0);
    GRADUS_BENCH_CUDA(cudaDeviceSynchronize());
    std::vector<double> got, want;
    std::mt19937 random(7);
    for (int i = 0; i < 400; ++i) {
      const int64_t row = i < 4 ? i % 2 * (s.m - 1) : static_cast<int>(random() % s.m);
      const int64_t column = i < 4 ? i / 2 * (s.n - 1) : static_cast<int>(random() % s.n);
      got.push_back(to_double(out.download(row * s.n + column, 1)[0]));
      const auto x = to_doubles(a.download(row * s.k, s.k));
      const auto y = to_doubles(b.download(column * s.k, s.k));
      want.push_back(dot(x.data(), y.data(), s.k));
    }
    const std::string checks = verdict("out", got, want, 4e-3, 1e-2);
    const bool timed = s.m > 1000;
    line(name, {1, s.m, s.n, s.k, timed}, timed ? time_launches(nullptr, run, kTiming) : Timing{},
         2.0 * s.m * s.n * s.k, checks);
  }
}

// ---- cases -------------------------------------------------------------------------------------

struct Case {
  std::string name;
  std::function<void(const std::string&)> run;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {"self-test", [](const std::string&) { self_test(); }},
      // head, warpgroups of 64 queries, keys of a tile, stages of the ring, overlap, ping-pong,
      // lazy
      {"forward 128: 1 plain 128x128", forward_case<ForwardTile<128, 2, 128, 2, false, false>>},
      {"forward 128: 2 overlap 128x128", forward_case<ForwardTile<128, 2, 128, 2, true, false>>},
      {"forward 128: 3 ping-pong 128x128", forward_case<ForwardTile<128, 2, 128, 2, true, true>>},
      {"forward 128: 4 lazy rescale 128x128",
       forward_case<ForwardTile<128, 2, 128, 2, true, true, true>>},
      {"forward 128: 4 lazy rescale 128x96",
       forward_case<ForwardTile<128, 2, 96, 3, true, true, true>>},
      {"forward 128: 4 lazy rescale 128x160",
       forward_case<ForwardTile<128, 2, 160, 2, true, true, true>>},
      {"forward 128: 4 lazy rescale 192x64",
       forward_case<ForwardTile<128, 3, 64, 3, true, true, true>>},
      {"forward 128: products alone 128x128",
       forward_case<ForwardTile<128, 2, 128, 2, true, false, false, 0, false>>},
      {"forward 64: 3 ping-pong 192x128", forward_case<ForwardTile<64, 3, 128, 2, true, true>>},
      {"forward 64: 4 lazy rescale 192x128",
       forward_case<ForwardTile<64, 3, 128, 2, true, true, true>>},
      {"forward 64: 4 lazy rescale 128x128",
       forward_case<ForwardTile<64, 2, 128, 3, true, true, true>>},
      {"forward 64: 5 lazy, 1/8 polynomial 192x128",
       forward_case<ForwardTile<64, 3, 128, 2, true, true, true, 8>>},
      // keys owned by queries walked, queries owned by keys walked
      {"backward 128: 128x64, 128x64 ring 3",
       backward_case<BackwardTile<128, 2, 64, 2>, BackwardTile<128, 2, 64, 3>>},
      {"backward 128: 128x64, 128x80",
       backward_case<BackwardTile<128, 2, 64, 2>, BackwardTile<128, 2, 80, 2>>},
      {"backward 128: 128x64 ring 3, 128x64 ring 2",
       backward_case<BackwardTile<128, 2, 64, 3>, BackwardTile<128, 2, 64, 2>>},
      {"backward 64: 128x96, 128x128",
       backward_case<BackwardTile<64, 2, 96, 3>, BackwardTile<64, 2, 128, 3>>},
      {"backward 64: 128x80, 128x64",
       backward_case<BackwardTile<64, 2, 80, 3>, BackwardTile<64, 2, 64, 4>>},
      {"product 128x256 ring 4", product_case<ProductTile<256, 4>>},
  };
  return all;
}

int run_case(const Case& one) {
  try {
    GRADUS_BENCH_CUDA(cudaHostAlloc(&fault, 64, cudaHostAllocMapped));
    std::memset(fault, 0, 64);
    int major = 0, minor = 0;
    GRADUS_BENCH_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    GRADUS_BENCH_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0));
    if (major != 9 || minor != 0) throw std::runtime_error("made for sm_90a alone");
    one.run(one.name);
  } catch (const std::exception& error) {
    std::printf("  FAILED %s: %s\n", one.name.c_str(), error.what());
    if (fault != nullptr && fault[0] != 0) {
      std::printf("  a wait did not end: code %u, block %u, thread %u, parity %u\n", fault[0],
                  fault[1], fault[2], fault[3]);
    }
    failed = true;
  }
  std::fflush(stdout);
  return failed ? 1 : 0;
}

/// Runs this program again with --case; true if that ends well in time.
bool run_apart(const std::string& name, char** argv) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child < 0) throw std::runtime_error("fork failed");
  if (child == 0) {
    std::vector<std::string> words = {argv[0], "--case", name};
    if (settings.quick) words.push_back("--quick");
    if (!settings.out.empty()) {
      words.push_back("--out");
      words.push_back(settings.out);
    }
    std::vector<char*> pointers;
    for (std::string& word : words) pointers.push_back(word.data());
    pointers.push_back(nullptr);
    execv("/proc/self/exe", pointers.data());
    _exit(127);
  }
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(kCaseSeconds);
  int status = 0;
  for (;;) {
    const pid_t done = waitpid(child, &status, WNOHANG);
    if (done == child) break;
    if (std::chrono::steady_clock::now() > end) {
      kill(child, SIGKILL);
      waitpid(child, &status, 0);
      std::printf("  FAILED %s: killed after %d s\n", name.c_str(), kCaseSeconds);
      return false;
    }
    usleep(10000);
  }
  if (WIFEXITED(status)) return WEXITSTATUS(status) == 0;
  std::printf("  FAILED %s: signal %d\n", name.c_str(), WTERMSIG(status));
  return false;
}

}  // namespace
}  // namespace gradus::bench

int main(int argc, char** argv) {
  using namespace gradus::bench;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--quick") {
      settings.quick = true;
    } else if (word == "--only" && i + 1 < argc) {
      settings.only = argv[++i];
    } else if (word == "--out" && i + 1 < argc) {
      settings.out = argv[++i];
    } else if (word == "--case" && i + 1 < argc) {
      settings.single = argv[++i];
    } else {
      std::fprintf(stderr, "usage: %s [--quick] [--only TEXT] [--out FILE]\n", argv[0]);
      return 2;
    }
  }
  int bad = 0, ran = 0;
  for (const Case& one : cases()) {
    if (!settings.single.empty()) {
      if (one.name == settings.single) return run_case(one);
      continue;
    }
    if (one.name.find(settings.only) == std::string::npos) continue;
    std::printf("%s\n", one.name.c_str());
    ++ran;
    if (!run_apart(one.name, argv)) ++bad;
  }
  std::printf("%d cases, %d failed\n", ran, bad);
  return bad == 0 && ran > 0 ? 0 : 1;
}
