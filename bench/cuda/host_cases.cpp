// What the host's side of a step costs: launches, products, events, graphs, copies. These figures
// decide how a step is built: how many kernels it may have before the host is the slower one,
// whether a graph is worth it, and what a copy of a verdict or a batch costs.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench/cuda/harness.h"
#include "bench/cuda/host_kernels.h"
#include "kernels/cuda/matmul.h"

namespace gradus::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kKernels = 200;  // of a step of a small model

double microseconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double, std::micro>(to - from).count();
}

Timing timing_of(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  return {samples[samples.size() / 2], samples.front(), static_cast<int>(samples.size())};
}

struct Stream {
  Stream() { GRADUS_BENCH_CUDA(cudaStreamCreateWithFlags(&value, cudaStreamNonBlocking)); }
  ~Stream() { cudaStreamDestroy(value); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  void synchronize() const { GRADUS_BENCH_CUDA(cudaStreamSynchronize(value)); }
  cudaStream_t value = nullptr;
};

struct Event {
  Event() { GRADUS_BENCH_CUDA(cudaEventCreateWithFlags(&value, cudaEventDisableTiming)); }
  ~Event() { cudaEventDestroy(value); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t value = nullptr;
};

struct Pinned {
  explicit Pinned(size_t bytes) { GRADUS_BENCH_CUDA(cudaMallocHost(&data, bytes)); }
  ~Pinned() { cudaFreeHost(data); }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  void* data = nullptr;
};

class Bench {
 public:
  explicit Bench(Report& report)
      : report_(report), samples_(report.options().quick ? 5 : 31), data_(1024), memory_(kBytes) {
    data_.zero();
  }

  void run() {
    report_.heading("the host's time for a call (the stream is never full)");
    report_.attempt("launches", [&] { launches(); });
    report_.attempt("products", [&] { products(); });
    report_.attempt("events", [&] { events(); });
    report_.heading("kernels on the device, one after the other");
    report_.attempt("back to back", [&] { back_to_back(); });
    report_.attempt("graph", [&] { graph(); });
    report_.attempt("ping pong", [&] { ping_pong(); });
    report_.heading("there and back: a call and the wait for it");
    report_.attempt("round trips", [&] { round_trips(); });
    report_.heading("copies");
    report_.attempt("copies", [&] { copies(); });
    report_.heading("allocation");
    report_.attempt("allocation", [&] { allocation(); });
  }

 private:
  static constexpr size_t kBytes = size_t{64} << 20;
  static constexpr int kCalls = 200;  // in a sample: fewer than a stream holds

  void line(const std::string& what, const Timing& timing, double bytes = 0.0,
            const std::string& note = "") {
    Measurement m;
    m.operation = m.kernel = what;
    m.shape = "-";
    m.dtype = "-";
    m.timing = timing;
    m.bytes = bytes;
    m.note = note;
    report_.add(m);
  }

  /// The host's time of one call, of kCalls in a row.
  Timing host_time(const std::function<void(int)>& call,
                   const std::function<void()>& finish) const {
    std::vector<double> samples;
    for (int sample = -2; sample < samples_; ++sample) {
      const auto began = Clock::now();
      for (int i = 0; i < kCalls; ++i) call(i);
      const auto ended = Clock::now();
      finish();
      if (sample >= 0) samples.push_back(microseconds(began, ended) / kCalls);
    }
    return timing_of(samples);
  }

  /// The time from the beginning of `body`, which waits for its work, to its end.
  Timing whole_time(const std::function<void()>& body) const {
    std::vector<double> samples;
    for (int sample = -2; sample < samples_; ++sample) {
      const auto began = Clock::now();
      body();
      if (sample >= 0) samples.push_back(microseconds(began, Clock::now()));
    }
    return timing_of(samples);
  }

  void launches() {
    const auto finish = [&] { a_.synchronize(); };
    line("launch of an empty kernel, <<<>>>",
         host_time([&](int) { launch_empty(a_.value); }, finish));
    line("launch of an empty kernel, cudaLaunchKernelEx",
         host_time([&](int) { launch_empty_ex(a_.value); }, finish));
    line(
        "cudaMemsetAsync of 4 KiB",
        host_time([&](int) { GRADUS_BENCH_CUDA(cudaMemsetAsync(data_.data(), 0, 4096, a_.value)); },
                  finish));
    line("cudaMemcpyAsync of 4 KiB on the device",
         host_time(
             [&](int) {
               GRADUS_BENCH_CUDA(cudaMemcpyAsync(memory_.data(), data_.data(), 4096,
                                                 cudaMemcpyDeviceToDevice, a_.value));
             },
             finish));
  }

  void products() {
    const auto finish = [&] { a_.synchronize(); };
    DeviceMemory workspace(cuda::kMatmulWorkspaceBytes);
    cuda::Matmul matmul({workspace.data(), workspace.bytes()});
    constexpr int64_t kSize = 256;
    DeviceBuffer<float> memory(4 * kSize * kSize);
    memory.zero();
    float* base = memory.data();
    const cuda::MatmulForward forward{.out = base,
                                      .in = base + kSize * kSize,
                                      .weight = base + 2 * kSize * kSize,
                                      .bias = base + 3 * kSize * kSize,
                                      .rows = kSize,
                                      .in_features = kSize,
                                      .out_features = kSize};
    line("Matmul::forward, bf16, BIAS: plan found, pointers set",
         host_time([&](int) { matmul.forward(forward, a_.value); }, finish));
    const cuda::MatmulBackwardWeight wgrad{.dweight = base,
                                           .dout = base + kSize * kSize,
                                           .in = base + 2 * kSize * kSize,
                                           .rows = kSize,
                                           .in_features = kSize,
                                           .out_features = kSize};
    line("Matmul::backward_weight, bf16 to fp32",
         host_time([&](int) { matmul.backward_weight(wgrad, a_.value); }, finish));
    const cuda::CublasLt library;
    const cuda::CublasLtCall call = cuda::column_major(wgrad);
    cuda::CublasLtPlan plan(call.product);
    const auto algorithm = plan.candidates(library, workspace.bytes(), 1).front();
    line("cublasLtMatmul alone", host_time(
                                     [&](int) {
                                       plan.run(library, algorithm, call.operands,
                                                {workspace.data(), workspace.bytes()}, a_.value);
                                     },
                                     finish));
    line("a plan and the heuristics' first, asked again", whole_time([&] {
           cuda::CublasLtPlan fresh(call.product);
           fresh.candidates(library, workspace.bytes(), 1);
         }));
  }

  void events() {
    const auto finish = [&] {
      a_.synchronize();
      b_.synchronize();
    };
    line("cudaEventRecord",
         host_time([&](int) { GRADUS_BENCH_CUDA(cudaEventRecord(event_.value, a_.value)); },
                   finish));
    line("cudaStreamWaitEvent, the event done",
         host_time([&](int) { GRADUS_BENCH_CUDA(cudaStreamWaitEvent(b_.value, event_.value, 0)); },
                   finish));
    line("record on one stream and wait on another",
         host_time(
             [&](int) {
               GRADUS_BENCH_CUDA(cudaEventRecord(event_.value, a_.value));
               GRADUS_BENCH_CUDA(cudaStreamWaitEvent(b_.value, event_.value, 0));
             },
             finish));
    line("cudaEventQuery, the event done",
         host_time([&](int) { GRADUS_BENCH_CUDA(cudaEventQuery(event_.value)); }, finish));
    line("cudaStreamSynchronize, the stream empty",
         host_time([&](int) { a_.synchronize(); }, finish));
  }

  /// Device time of one of many kernels whose launches are all in the stream before the first runs.
  Timing device_time(int kernels, const std::function<void()>& body) const {
    cudaEvent_t start = nullptr;
    cudaEvent_t stop = nullptr;
    GRADUS_BENCH_CUDA(cudaEventCreate(&start));
    GRADUS_BENCH_CUDA(cudaEventCreate(&stop));
    std::vector<double> samples;
    for (int sample = -2; sample < samples_; ++sample) {
      launch_wait(3000000, a_.value);  // longer than the host takes to launch the rest
      GRADUS_BENCH_CUDA(cudaEventRecord(start, a_.value));
      body();
      GRADUS_BENCH_CUDA(cudaEventRecord(stop, a_.value));
      a_.synchronize();
      float milliseconds = 0.0f;
      GRADUS_BENCH_CUDA(cudaEventElapsedTime(&milliseconds, start, stop));
      if (sample >= 0) samples.push_back(static_cast<double>(milliseconds) * 1e3 / kernels);
    }
    cudaEventDestroy(start);
    cudaEventDestroy(stop);
    return timing_of(samples);
  }

  void back_to_back() {
    line("empty kernel, of " + std::to_string(kKernels), device_time(kKernels, [&] {
           for (int i = 0; i < kKernels; ++i) launch_empty(a_.value);
         }));
    line("small kernel, of " + std::to_string(kKernels), device_time(kKernels, [&] {
           for (int i = 0; i < kKernels; ++i) launch_small(data_.data(), a_.value);
         }));
    line("small kernel and an event's record and wait", device_time(kKernels, [&] {
           for (int i = 0; i < kKernels; ++i) {
             launch_small(data_.data(), a_.value);
             GRADUS_BENCH_CUDA(cudaEventRecord(event_.value, a_.value));
             GRADUS_BENCH_CUDA(cudaStreamWaitEvent(a_.value, event_.value, 0));
           }
         }));
  }

  void graph() {
    const auto body = [&] {
      for (int i = 0; i < kKernels; ++i) launch_small(data_.data(), a_.value);
    };
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t instance = nullptr;
    GRADUS_BENCH_CUDA(cudaStreamBeginCapture(a_.value, cudaStreamCaptureModeThreadLocal));
    body();
    GRADUS_BENCH_CUDA(cudaStreamEndCapture(a_.value, &graph));
    const auto began = Clock::now();
    GRADUS_BENCH_CUDA(cudaGraphInstantiate(&instance, graph, 0));
    const double made = microseconds(began, Clock::now());
    const std::string kernels = std::to_string(kKernels) + " small kernels";
    line(kernels + " by the stream: all of it", whole_time([&] {
           body();
           a_.synchronize();
         }));
    line(kernels + " by a graph: all of it", whole_time([&] {
           GRADUS_BENCH_CUDA(cudaGraphLaunch(instance, a_.value));
           a_.synchronize();
         }),
         0.0, "instantiated in " + std::to_string(static_cast<int>(made)) + " us");
    std::vector<double> host;
    for (int sample = -2; sample < samples_; ++sample) {
      const auto from = Clock::now();
      GRADUS_BENCH_CUDA(cudaGraphLaunch(instance, a_.value));
      const auto to = Clock::now();
      a_.synchronize();
      if (sample >= 0) host.push_back(microseconds(from, to));
    }
    line("cudaGraphLaunch: the host's time", timing_of(host));
    line("small kernel of a graph, on the device",
         device_time(kKernels, [&] { GRADUS_BENCH_CUDA(cudaGraphLaunch(instance, a_.value)); }));
    cudaGraphExecDestroy(instance);
    cudaGraphDestroy(graph);
  }

  /// Kernels that take turns on two streams, each waiting for the one before.
  void ping_pong() {
    Event to_a;
    Event to_b;
    line("small kernel, two streams in turn", device_time(kKernels, [&] {
           for (int i = 0; i < kKernels; i += 2) {
             launch_small(data_.data(), a_.value);
             GRADUS_BENCH_CUDA(cudaEventRecord(to_b.value, a_.value));
             GRADUS_BENCH_CUDA(cudaStreamWaitEvent(b_.value, to_b.value, 0));
             launch_small(data_.data(), b_.value);
             GRADUS_BENCH_CUDA(cudaEventRecord(to_a.value, b_.value));
             GRADUS_BENCH_CUDA(cudaStreamWaitEvent(a_.value, to_a.value, 0));
           }
         }));
  }

  void round_trips() {
    const Pinned pinned(4096);
    line("empty kernel, cudaStreamSynchronize", whole_time([&] {
           launch_empty(a_.value);
           a_.synchronize();
         }));
    for (const size_t bytes : {size_t{4}, size_t{4096}}) {
      const std::string size = std::to_string(bytes) + " bytes, ";
      line(size + "device to pinned, cudaStreamSynchronize", whole_time([&] {
             GRADUS_BENCH_CUDA(cudaMemcpyAsync(pinned.data, data_.data(), bytes,
                                               cudaMemcpyDeviceToHost, a_.value));
             a_.synchronize();
           }));
      line(size + "pinned to device, cudaStreamSynchronize", whole_time([&] {
             GRADUS_BENCH_CUDA(cudaMemcpyAsync(data_.data(), pinned.data, bytes,
                                               cudaMemcpyHostToDevice, a_.value));
             a_.synchronize();
           }));
    }
    line("4 bytes, device to pinned: the host's time",
         host_time(
             [&](int) {
               GRADUS_BENCH_CUDA(
                   cudaMemcpyAsync(pinned.data, data_.data(), 4, cudaMemcpyDeviceToHost, a_.value));
             },
             [&] { a_.synchronize(); }));
  }

  void copies() {
    const Pinned pinned(kBytes);
    std::memset(pinned.data, 1, kBytes);
    std::vector<char> pageable(kBytes, 1);
    const auto time = [&](void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
      return time_launches(
          a_.value,
          [&](int) { GRADUS_BENCH_CUDA(cudaMemcpyAsync(to, from, bytes, kind, a_.value)); },
          {.samples = samples_, .launches = 1});
    };
    for (const size_t mib : {size_t{1}, size_t{64}}) {
      const size_t bytes = mib << 20;
      const std::string size = std::to_string(mib) + " MiB ";
      const double moved = static_cast<double>(bytes);
      line(size + "pinned to device",
           time(memory_.data(), pinned.data, bytes, cudaMemcpyHostToDevice), moved);
      line(size + "device to pinned",
           time(pinned.data, memory_.data(), bytes, cudaMemcpyDeviceToHost), moved);
      line(size + "pageable to device",
           time(memory_.data(), pageable.data(), bytes, cudaMemcpyHostToDevice), moved);
      line(size + "device to pageable",
           time(pageable.data(), memory_.data(), bytes, cudaMemcpyDeviceToHost), moved);
    }
    DeviceMemory other(kBytes);
    line("64 MiB both ways at once, on two streams", whole_time([&] {
           GRADUS_BENCH_CUDA(cudaMemcpyAsync(memory_.data(), pinned.data, kBytes / 2,
                                             cudaMemcpyHostToDevice, a_.value));
           GRADUS_BENCH_CUDA(cudaMemcpyAsync(static_cast<char*>(pinned.data) + kBytes / 2,
                                             other.data(), kBytes / 2, cudaMemcpyDeviceToHost,
                                             b_.value));
           a_.synchronize();
           b_.synchronize();
         }),
         static_cast<double>(kBytes));
  }

  void allocation() {
    void* memory = nullptr;
    line("cudaMalloc and cudaFree of 1 GiB", whole_time([&] {
           GRADUS_BENCH_CUDA(cudaMalloc(&memory, size_t{1} << 30));
           GRADUS_BENCH_CUDA(cudaFree(memory));
         }));
    line("cudaMallocHost and cudaFreeHost of 64 MiB", whole_time([&] {
           GRADUS_BENCH_CUDA(cudaMallocHost(&memory, kBytes));
           GRADUS_BENCH_CUDA(cudaFreeHost(memory));
         }));
  }

  Report& report_;
  int samples_;
  Stream a_, b_;
  Event event_;
  DeviceBuffer<float> data_;
  DeviceMemory memory_;
};

int run(int argc, char** argv) {
  Report report("host_bench", parse_options(argc, argv));
  try {
    Bench(report).run();
  } catch (const std::exception& error) {
    report.fail("the bench", error.what());
  }
  return report.finish();
}

}  // namespace
}  // namespace gradus::bench

int main(int argc, char** argv) {
  try {
    return gradus::bench::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "host_bench: %s\n", error.what());
    return 1;
  }
}
