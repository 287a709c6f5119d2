#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

namespace gradus::bench {

/// What the ladder programs share: memory on the device, data, time, errors, a table and its JSON.
/// Host code only, so that any compiler builds it.

/// Throws std::runtime_error with the statement, the error's name and the place.
void check_cuda(cudaError_t status, const char* statement, const char* file, int line);
#define GRADUS_BENCH_CUDA(statement) \
  ::gradus::bench::check_cuda((statement), #statement, __FILE__, __LINE__)

/// Device memory of `count` elements, poisoned, freed with its owner.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  explicit DeviceMemory(size_t bytes);
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept;
  DeviceMemory& operator=(DeviceMemory&& other) noexcept;
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  /// 0xFF in every byte: a NaN in every floating type.
  void poison();

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

template <typename T>
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(int64_t count)
      : memory_(static_cast<size_t>(count) * sizeof(T)), count_(count) {}
  explicit DeviceBuffer(const std::vector<T>& values)
      : DeviceBuffer(static_cast<int64_t>(values.size())) {
    upload(values);
  }
  T* data() const { return static_cast<T*>(memory_.data()); }
  int64_t count() const { return count_; }
  int64_t bytes() const { return count_ * static_cast<int64_t>(sizeof(T)); }
  void poison() { memory_.poison(); }
  void zero() { GRADUS_BENCH_CUDA(cudaMemset(data(), 0, memory_.bytes())); }
  void upload(const std::vector<T>& values) {
    GRADUS_BENCH_CUDA(
        cudaMemcpy(data(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> download() const { return download(0, count_); }
  std::vector<T> download(int64_t first, int64_t count) const {
    std::vector<T> values(static_cast<size_t>(count));
    GRADUS_BENCH_CUDA(cudaMemcpy(values.data(), data() + first, values.size() * sizeof(T),
                                 cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  DeviceMemory memory_;
  int64_t count_ = 0;
};

inline double to_double(double value) { return value; }
inline double to_double(float value) { return static_cast<double>(value); }
inline double to_double(__nv_bfloat16 value) {
  return static_cast<double>(__bfloat162float(value));
}
inline double to_double(__half value) { return static_cast<double>(__half2float(value)); }
template <typename T>
T from_double(double value) {
  return static_cast<T>(value);
}
template <>
inline __nv_bfloat16 from_double<__nv_bfloat16>(double value) {
  return __float2bfloat16_rn(static_cast<float>(value));
}
template <>
inline __half from_double<__half>(double value) {
  return __float2half_rn(static_cast<float>(value));
}
template <typename T>
std::vector<double> to_doubles(const std::vector<T>& values) {
  std::vector<double> wide(values.size());
  for (size_t i = 0; i < values.size(); ++i) wide[i] = to_double(values[i]);
  return wide;
}

/// Numbers in about a normal distribution of the given deviation and mean, the same for a seed on
/// any machine.
std::vector<double> random_normal(int64_t count, uint64_t seed, double deviation = 1.0,
                                  double mean = 0.0);
template <typename T>
std::vector<T> random_values(int64_t count, uint64_t seed, double deviation = 1.0,
                             double mean = 0.0) {
  const std::vector<double> wide = random_normal(count, seed, deviation, mean);
  std::vector<T> values(wide.size());
  for (size_t i = 0; i < wide.size(); ++i) values[i] = from_double<T>(wide[i]);
  return values;
}

/// Repeats the first `period` bytes over the rest of the buffer, on the device.
void repeat_over(void* data, size_t period, size_t bytes);

/// Fills a buffer of any size with random values: a prime number of them (1,000,003) is made on the
/// host and repeated, so that rows differ.
template <typename T>
void fill_random(DeviceBuffer<T>& buffer, uint64_t seed, double deviation = 1.0,
                 double mean = 0.0) {
  constexpr int64_t kPeriod = 1000003;
  const int64_t made = buffer.count() < kPeriod ? buffer.count() : kPeriod;
  buffer.upload(random_values<T>(made, seed, deviation, mean));
  repeat_over(buffer.data(), static_cast<size_t>(made) * sizeof(T),
              static_cast<size_t>(buffer.bytes()));
}

struct Timing {
  double median_us = 0.0;
  double min_us = 0.0;
  int samples = 0;
};
struct TimingOptions {
  int warmup = 3;         ///< launches before the first sample
  int samples = 25;       ///< of which median and minimum are taken
  int launches = 8;       ///< launches in a sample, one after the other
  bool flush_l2 = false;  ///< overwrite the L2 cache before each sample; then one launch a sample
};
/// Time of one launch by events on the stream. run(i) launches on the buffers of turn i, which goes
/// up by one each launch: with flush_l2 off, take buffers i % turns of more than the L2 in all.
Timing time_launches(cudaStream_t stream, const std::function<void(int)>& run,
                     const TimingOptions& options = {});

/// Sets of buffers to take in turn, so that what a launch reads is not in the L2 of before.
int turns_for(int64_t bytes_of_one_set);

struct Errors {
  double norm = 0.0;      ///< ‖got - want‖ / ‖want‖
  double largest = 0.0;   ///< max |got - want| / max |want|
  int64_t nonfinite = 0;  ///< values of `got` that are not finite where `want` is
  bool within(double norm_bound, double largest_bound) const {
    return nonfinite == 0 && norm <= norm_bound && largest <= largest_bound;
  }
};
Errors compare(const std::vector<double>& got, const std::vector<double>& want);
template <typename T>
Errors compare(const DeviceBuffer<T>& got, const std::vector<double>& want) {
  return compare(to_doubles(got.download(0, static_cast<int64_t>(want.size()))), want);
}

/// The command line: [--quick] [--check] [--tiny] [--only TEXT] [--out FILE].
struct Options {
  bool quick = false;  ///< fewer shapes and samples
  bool check = false;  ///< checks only, nothing is timed
  bool tiny = false;   ///< shapes that a simulator gets through; checks only
  std::string only;    ///< only cases whose name holds this text
  std::string out;     ///< JSON goes here
  bool wants(const std::string& name) const {
    return only.empty() || name.find(only) != std::string::npos;
  }
};
/// Prints the usage and exits with 2 on a word it does not know.
Options parse_options(int argc, char** argv);

/// One line of the table.
struct Measurement {
  std::string operation = {};  ///< layernorm_forward
  std::string shape = {};      ///< 16384x768
  std::string dtype = {};      ///< bf16
  std::string kernel = {};     ///< the rung: "3 warp per row, 128-bit"
  Timing timing = {};
  double bytes = 0.0;  ///< least bytes to and from memory; 0: no figure
  double flops = 0.0;  ///< 0: no figure
  Errors errors = {};
  bool checked = false;
  bool passed = true;
  std::string note = {};
};

/// Prints lines as they come, below a header with the card; keeps them for the JSON file.
class Report {
 public:
  Report(std::string program, Options options);
  const Options& options() const { return options_; }
  /// What the shares are of: bytes a second (read and written) and flops a second.
  void set_bandwidth(double bytes_per_second, const std::string& how);
  void set_throughput(double flops_per_second, const std::string& how);
  double bandwidth() const { return bandwidth_; }
  double throughput() const { return throughput_; }
  void heading(const std::string& text);
  void add(const Measurement& m);
  /// A case that could not be run: counts as failed, prints why.
  void fail(const std::string& name, const std::string& why);
  /// Runs the case, turning an exception into fail(); a sticky CUDA error ends the program's cases.
  void attempt(const std::string& name, const std::function<void()>& body);
  /// Writes JSON where --out asks for it, prints the verdict; the program's exit code.
  int finish();

 private:
  std::string program_;
  Options options_;
  std::vector<Measurement> measurements_;
  std::vector<std::pair<std::string, std::string>> failures_;
  std::string card_;
  double bandwidth_ = 0.0;
  double throughput_ = 0.0;
  bool lost_ = false;  ///< the CUDA context is unusable
};

/// Bytes a second, read and written, of a large device-to-device copy: the roofline that any
/// program can measure. A copy kernel may do better; take the larger.
double memcpy_bandwidth();

/// Name, driver, clocks and power of the device in use; one line each.
std::string describe_card();

}  // namespace gradus::bench
