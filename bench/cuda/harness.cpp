#include "bench/cuda/harness.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <utility>

#include "core/rng.h"

namespace gradus::bench {
namespace {

constexpr size_t kFlushBytes = size_t{256} << 20;  // several times the L2 of any card

/// Escapes what JSON asks to be escaped.
std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else if (static_cast<unsigned char>(c) >= 0x20) {
      out += c;
    }
  }
  return out + "\"";
}

std::string number(double value) {
  if (!std::isfinite(value)) return "null";
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.6g", value);
  return text.data();
}

/// Characters on the screen: bytes that do not continue a UTF-8 sequence.
int width_of(const std::string& text) {
  return static_cast<int>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0u) != 0x80u;
  }));
}

void print_padded(const std::string& text, int width) {
  std::printf("%s%*s", text.c_str(), std::max(1, width - width_of(text)), "");
}

std::string first_lines_of(const char* command) {
  FILE* pipe = popen(command, "r");
  if (pipe == nullptr) return "";
  std::string text;
  std::array<char, 512> line{};
  while (std::fgets(line.data(), line.size(), pipe) != nullptr) text += line.data();
  pclose(pipe);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

double elapsed_us(cudaEvent_t start, cudaEvent_t stop) {
  float milliseconds = 0.0f;
  GRADUS_BENCH_CUDA(cudaEventElapsedTime(&milliseconds, start, stop));
  return static_cast<double>(milliseconds) * 1e3;
}

class Event {
 public:
  Event() { GRADUS_BENCH_CUDA(cudaEventCreate(&event_)); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace

void check_cuda(cudaError_t status, const char* statement, const char* file, int line) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": " + statement +
                           " gives " + cudaGetErrorName(status) + ": " +
                           cudaGetErrorString(status));
}

DeviceMemory::DeviceMemory(size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  GRADUS_BENCH_CUDA(cudaMalloc(&data_, bytes));
  poison();
}

DeviceMemory::~DeviceMemory() {
  if (data_ != nullptr) cudaFree(data_);
}

DeviceMemory::DeviceMemory(DeviceMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void DeviceMemory::poison() {
  if (bytes_ != 0) GRADUS_BENCH_CUDA(cudaMemset(data_, 0xFF, bytes_));
}

std::vector<double> random_normal(int64_t count, uint64_t seed, double deviation, double mean) {
  std::vector<double> values(static_cast<size_t>(count));
  const uint64_t key = rng_key(seed, 0);
  for (int64_t i = 0; i < count; i += 4) {
    const auto words = philox4x32(key, 0, static_cast<uint64_t>(i / 4));
    for (int64_t j = 0; j < 4 && i + j < count; ++j) {
      // The sum of four uniform bytes and their word, Irwin-Hall: within 4 deviations, no log.
      const uint32_t word = words[static_cast<size_t>(j)];
      double sum = static_cast<double>(word) * 0x1p-32;
      for (uint32_t mixed = word * 0x9E3779B1u, k = 0; k < 3; ++k) {
        mixed = (mixed ^ (mixed >> 15)) * 0x85EBCA6Bu;
        sum += static_cast<double>(mixed) * 0x1p-32;
      }
      values[static_cast<size_t>(i + j)] = mean + deviation * (sum - 2.0) * std::sqrt(3.0);
    }
  }
  return values;
}

void repeat_over(void* data, size_t period, size_t bytes) {
  char* bytes_at = static_cast<char*>(data);
  for (size_t done = period; done < bytes;) {
    const size_t more = std::min(done, bytes - done);
    GRADUS_BENCH_CUDA(cudaMemcpy(bytes_at + done, bytes_at, more, cudaMemcpyDeviceToDevice));
    done += more;
  }
}

Timing time_launches(cudaStream_t stream, const std::function<void(int)>& run,
                     const TimingOptions& options) {
  const Event start;
  const Event stop;
  DeviceMemory flush(options.flush_l2 ? kFlushBytes : 0);
  const int launches = options.flush_l2 ? 1 : options.launches;
  int turn = 0;
  for (int i = 0; i < options.warmup; ++i) run(turn++);
  std::vector<double> samples;
  for (int sample = 0; sample < options.samples; ++sample) {
    if (options.flush_l2) {
      GRADUS_BENCH_CUDA(cudaMemsetAsync(flush.data(), sample, flush.bytes(), stream));
    }
    GRADUS_BENCH_CUDA(cudaEventRecord(start.get(), stream));
    for (int i = 0; i < launches; ++i) run(turn++);
    GRADUS_BENCH_CUDA(cudaEventRecord(stop.get(), stream));
    GRADUS_BENCH_CUDA(cudaEventSynchronize(stop.get()));
    samples.push_back(elapsed_us(start.get(), stop.get()) / launches);
  }
  if (samples.empty()) return {};
  std::sort(samples.begin(), samples.end());
  return {samples[samples.size() / 2], samples.front(), static_cast<int>(samples.size())};
}

int turns_for(int64_t bytes_of_one_set) {
  constexpr int64_t kEnough = int64_t{200} << 20;
  return static_cast<int>(
      std::clamp<int64_t>(kEnough / std::max<int64_t>(1, bytes_of_one_set) + 1, 1, 64));
}

Errors compare(const std::vector<double>& got, const std::vector<double>& want) {
  Errors errors;
  if (got.size() != want.size()) throw std::runtime_error("compare: sizes differ");
  double difference = 0.0;
  double magnitude = 0.0;
  double most_difference = 0.0;
  double most = 0.0;
  for (size_t i = 0; i < want.size(); ++i) {
    if (!std::isfinite(got[i])) {
      errors.nonfinite += std::isfinite(want[i]) ? 1 : 0;
      continue;
    }
    const double d = std::fabs(got[i] - want[i]);
    difference += d * d;
    magnitude += want[i] * want[i];
    most_difference = std::max(most_difference, d);
    most = std::max(most, std::fabs(want[i]));
  }
  errors.norm = magnitude > 0.0 ? std::sqrt(difference / magnitude) : std::sqrt(difference);
  errors.largest = most > 0.0 ? most_difference / most : most_difference;
  return errors;
}

Options parse_options(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const bool more = i + 1 < argc;
    if (word == "--quick") {
      options.quick = true;
    } else if (word == "--check") {
      options.check = true;
    } else if (word == "--tiny") {
      options.tiny = true;
      options.check = true;
    } else if (word == "--only" && more) {
      options.only = argv[++i];
    } else if (word == "--out" && more) {
      options.out = argv[++i];
    } else {
      std::fprintf(stderr, "usage: %s [--quick] [--check] [--tiny] [--only TEXT] [--out FILE]\n",
                   argv[0]);
      std::exit(2);
    }
  }
  return options;
}

std::string describe_card() {
  int device = 0;
  GRADUS_BENCH_CUDA(cudaGetDevice(&device));
  cudaDeviceProp properties{};
  GRADUS_BENCH_CUDA(cudaGetDeviceProperties(&properties, device));
  int driver = 0;
  int runtime = 0;
  GRADUS_BENCH_CUDA(cudaDriverGetVersion(&driver));
  GRADUS_BENCH_CUDA(cudaRuntimeGetVersion(&runtime));
  std::string text = std::string(properties.name) + ", sm_" + std::to_string(properties.major) +
                     std::to_string(properties.minor) + ", " +
                     std::to_string(properties.multiProcessorCount) + " SMs, L2 " +
                     std::to_string(properties.l2CacheSize >> 20) + " MiB, memory " +
                     std::to_string(properties.totalGlobalMem >> 20) + " MiB, driver's CUDA " +
                     std::to_string(driver) + ", runtime " + std::to_string(runtime);
  const std::string now = first_lines_of(
      "nvidia-smi "
      "--query-gpu=driver_version,clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw,"
      "power.limit --format=csv,noheader 2>/dev/null");
  if (!now.empty()) {
    text += "\nnow (driver, SM clock, its most, memory clock, °C, power, limit): " + now;
  }
  return text;
}

double memcpy_bandwidth() {
  constexpr int64_t kBytes = int64_t{1} << 30;
  const DeviceMemory from(kBytes);
  const DeviceMemory to(kBytes);
  const Timing timing =
      time_launches(nullptr,
                    [&](int) {
                      GRADUS_BENCH_CUDA(cudaMemcpyAsync(to.data(), from.data(), kBytes,
                                                        cudaMemcpyDeviceToDevice, nullptr));
                    },
                    {.samples = 20, .launches = 1});
  return 2.0 * static_cast<double>(kBytes) / (timing.median_us * 1e-6);
}

Report::Report(std::string program, Options options)
    : program_(std::move(program)), options_(std::move(options)), card_(describe_card()) {
  std::printf("%s\n%s\n", program_.c_str(), card_.c_str());
}

void Report::set_bandwidth(double bytes_per_second, const std::string& how) {
  bandwidth_ = bytes_per_second;
  std::printf("roofline: %.0f GB/s read and written (%s)\n", bytes_per_second * 1e-9, how.c_str());
}

void Report::set_throughput(double flops_per_second, const std::string& how) {
  throughput_ = flops_per_second;
  std::printf("roofline: %.1f TF/s (%s)\n", flops_per_second * 1e-12, how.c_str());
}

void Report::heading(const std::string& text) {
  std::printf("\n%s\n", text.c_str());
  print_padded("shape", 20);
  print_padded("dtype", 7);
  print_padded("kernel", 48);
  std::printf("%10s %10s %9s %9s %7s  %9s %9s\n", "median µs", "min µs", "GB/s", "TF/s", "share",
              "‖error‖", "max");
}

void Report::add(const Measurement& m) {
  measurements_.push_back(m);
  print_padded(m.shape, 20);
  print_padded(m.dtype, 7);
  print_padded(m.kernel, 48);
  const double seconds = m.timing.median_us * 1e-6;
  const bool timed = m.timing.samples > 0;
  const auto column = [](bool shown, const char* format, int width, double value) {
    shown ? static_cast<void>(std::printf(format, value))
          : static_cast<void>(std::printf("%*s", width, "-"));
    std::printf(" ");
  };
  column(timed, "%9.2f", 9, m.timing.median_us);
  column(timed, "%9.2f", 9, m.timing.min_us);
  column(timed && m.bytes > 0, "%9.0f", 9, m.bytes / seconds * 1e-9);
  column(timed && m.flops > 0, "%9.1f", 9, m.flops / seconds * 1e-12);
  const double share_of_bytes = bandwidth_ > 0 ? m.bytes / seconds / bandwidth_ : 0.0;
  const double share_of_flops = throughput_ > 0 ? m.flops / seconds / throughput_ : 0.0;
  const double share = std::max(share_of_bytes, share_of_flops);
  column(timed && share > 0, "%6.1f%%", 7, share * 100);
  if (m.checked) {
    std::printf(" %9.2e %9.2e %s", m.errors.norm, m.errors.largest, m.passed ? "ok" : "FAILED");
    if (m.errors.nonfinite != 0) {
      std::printf(" (%lld not finite)", static_cast<long long>(m.errors.nonfinite));
    }
  }
  if (!m.note.empty()) std::printf("  %s", m.note.c_str());
  std::printf("\n");
  std::fflush(stdout);
}

void Report::fail(const std::string& name, const std::string& why) {
  failures_.emplace_back(name, why);
  std::printf("FAILED %s: %s\n", name.c_str(), why.c_str());
  std::fflush(stdout);
}

void Report::attempt(const std::string& name, const std::function<void()>& body) {
  if (lost_) return fail(name, "not run: the device was lost before");
  try {
    body();
  } catch (const std::exception& error) {
    fail(name, error.what());
    // An error of a launch goes away when it is read; one of a running kernel stays for good.
    cudaGetLastError();
    lost_ = cudaDeviceSynchronize() != cudaSuccess;
  }
}

int Report::finish() {
  int64_t bad = static_cast<int64_t>(failures_.size());
  for (const Measurement& m : measurements_) bad += m.passed ? 0 : 1;
  if (!options_.out.empty()) {
    FILE* file = std::fopen(options_.out.c_str(), "w");
    if (file == nullptr) {
      std::fprintf(stderr, "cannot write %s\n", options_.out.c_str());
      return 1;
    }
    std::fprintf(file, "{\n \"program\": %s,\n \"card\": %s,\n \"bandwidth\": %s,\n",
                 quoted(program_).c_str(), quoted(card_).c_str(), number(bandwidth_).c_str());
    std::fprintf(file, " \"throughput\": %s,\n \"measurements\": [", number(throughput_).c_str());
    const char* comma = "";
    for (const Measurement& m : measurements_) {
      std::fprintf(file,
                   "%s\n  {\"operation\": %s, \"shape\": %s, \"dtype\": %s, \"kernel\": %s, "
                   "\"median_us\": %s, \"min_us\": %s, \"samples\": %d, \"bytes\": %s, "
                   "\"flops\": %s, \"checked\": %s, \"error_norm\": %s, \"error_largest\": %s, "
                   "\"nonfinite\": %lld, \"passed\": %s, \"note\": %s}",
                   comma, quoted(m.operation).c_str(), quoted(m.shape).c_str(),
                   quoted(m.dtype).c_str(), quoted(m.kernel).c_str(),
                   number(m.timing.median_us).c_str(), number(m.timing.min_us).c_str(),
                   m.timing.samples, number(m.bytes).c_str(), number(m.flops).c_str(),
                   m.checked ? "true" : "false", number(m.errors.norm).c_str(),
                   number(m.errors.largest).c_str(), static_cast<long long>(m.errors.nonfinite),
                   m.passed ? "true" : "false", quoted(m.note).c_str());
      comma = ",";
    }
    std::fprintf(file, "\n ],\n \"failures\": [");
    comma = "";
    for (const auto& [name, why] : failures_) {
      std::fprintf(file, "%s\n  {\"name\": %s, \"why\": %s}", comma, quoted(name).c_str(),
                   quoted(why).c_str());
      comma = ",";
    }
    std::fprintf(file, "\n ]\n}\n");
    std::fclose(file);
  }
  std::printf("\n%zu measured, %lld failed\n", measurements_.size(), static_cast<long long>(bad));
  return bad == 0 ? 0 : 1;
}

}  // namespace gradus::bench
