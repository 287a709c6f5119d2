#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/rng.h"
#include "kernels/cuda/check.h"

namespace gradus::test {

/// Numbers about normally distributed, the same for a seed everywhere.
inline std::vector<double> random_numbers(int64_t count, uint64_t seed, double deviation = 1.0,
                                          double mean = 0.0) {
  std::vector<double> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    double sum = -2.0;
    for (const uint32_t word : philox4x32(rng_key(seed, 7), 0, static_cast<uint64_t>(i))) {
      sum += static_cast<double>(word) * 0x1p-32;
    }
    values[static_cast<size_t>(i)] = mean + deviation * std::sqrt(3.0) * sum;
  }
  return values;
}

/// An array on the device, of fp32, bf16, fp16, fp64 or i32, seen by the host as doubles. It begins
/// as NaNs, `offset` elements behind a boundary of 256 bytes, between guards that no kernel may
/// touch.
class DeviceArray {
 public:
  DeviceArray(DType dtype, int64_t count, int64_t offset = 0)
      : dtype_(dtype), count_(count), first_(kGuard + offset * size_of(dtype)) {
    GRADUS_CUDA_CHECK(cudaMalloc(&memory_, bytes()));
    std::vector<unsigned char> raw(bytes(), kGuardByte);
    std::fill_n(raw.begin() + first_, count_ * size_of(dtype_), static_cast<unsigned char>(0xFF));
    GRADUS_CUDA_CHECK(cudaMemcpy(memory_, raw.data(), raw.size(), cudaMemcpyHostToDevice));
  }
  DeviceArray(DType dtype, const std::vector<double>& values, int64_t offset = 0)
      : DeviceArray(dtype, static_cast<int64_t>(values.size()), offset) {
    upload(values);
  }
  ~DeviceArray() {
    download();  // looks at the guards
    cudaFree(memory_);
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  template <typename T = void>
  T* data() const {
    return reinterpret_cast<T*>(static_cast<unsigned char*>(memory_) + first_);
  }
  DType dtype() const { return dtype_; }

  void upload(const std::vector<double>& values) {
    std::vector<unsigned char> raw(values.size() * static_cast<size_t>(size_of(dtype_)));
    for (size_t i = 0; i < values.size(); ++i) {
      switch (dtype_) {
        case DType::fp64:
          put(raw, i, values[i]);
          break;
        case DType::fp32:
          put(raw, i, static_cast<float>(values[i]));
          break;
        case DType::bf16:
          put(raw, i, bf16(static_cast<float>(values[i])));
          break;
        case DType::fp16:
          put(raw, i, __float2half_rn(static_cast<float>(values[i])));
          break;
        case DType::i32:
          put(raw, i, static_cast<int32_t>(values[i]));
          break;
        case DType::u8:
          put(raw, i, static_cast<uint8_t>(values[i]));
          break;
      }
    }
    GRADUS_CUDA_CHECK(cudaMemcpy(data(), raw.data(), raw.size(), cudaMemcpyHostToDevice));
  }

  std::vector<double> download() const {
    std::vector<unsigned char> raw(bytes());
    GRADUS_CUDA_CHECK(cudaMemcpy(raw.data(), memory_, raw.size(), cudaMemcpyDeviceToHost));
    const auto end = static_cast<size_t>(first_ + count_ * size_of(dtype_));
    for (size_t i = 0; i < raw.size(); ++i) {
      const bool guard = i < static_cast<size_t>(first_) || i >= end;
      if (guard && raw[i] != kGuardByte) {
        ADD_FAILURE() << "a guard was written, at byte " << static_cast<int64_t>(i) - first_;
        break;
      }
    }
    std::vector<double> values(static_cast<size_t>(count_));
    const unsigned char* from = raw.data() + first_;
    for (size_t i = 0; i < values.size(); ++i) {
      switch (dtype_) {
        case DType::fp64:
          values[i] = get<double>(from, i);
          break;
        case DType::fp32:
          values[i] = static_cast<double>(get<float>(from, i));
          break;
        case DType::bf16:
          values[i] = static_cast<double>(static_cast<float>(get<bf16>(from, i)));
          break;
        case DType::fp16:
          values[i] = static_cast<double>(__half2float(get<__half>(from, i)));
          break;
        case DType::i32:
          values[i] = get<int32_t>(from, i);
          break;
        case DType::u8:
          values[i] = get<uint8_t>(from, i);
          break;
      }
    }
    return values;
  }

 private:
  static constexpr int64_t kGuard = 256;
  static constexpr unsigned char kGuardByte = 0xA5;

  size_t bytes() const { return static_cast<size_t>(first_ + count_ * size_of(dtype_) + kGuard); }
  template <typename T>
  static void put(std::vector<unsigned char>& raw, size_t i, T value) {
    std::memcpy(raw.data() + i * sizeof(T), &value, sizeof(T));
  }
  template <typename T>
  static T get(const unsigned char* from, size_t i) {
    T value;
    std::memcpy(&value, from + i * sizeof(T), sizeof(T));
    return value;
  }

  DType dtype_;
  int64_t count_;
  int64_t first_;
  void* memory_ = nullptr;
};

/// One rounding to the dtype, of a value's magnitude; for fp32 the error of a short sum.
inline double rounding_of(DType dtype) {
  return dtype == DType::bf16 ? 0x1p-8 : dtype == DType::fp16 ? 0x1p-11 : 2e-6;
}

/// |got - want| <= tolerance · (|want| + the largest |want| · `floor`), everywhere, NaN where NaN
/// is.
inline void expect_close(const std::vector<double>& got, const std::vector<double>& want,
                         double tolerance, const std::string& what, double floor = 0.05) {
  ASSERT_EQ(got.size(), want.size()) << what;
  double largest = 0.0;
  for (const double value : want) largest = std::max(largest, std::fabs(value));
  for (size_t i = 0; i < want.size(); ++i) {
    if (std::isnan(want[i]) && std::isnan(got[i])) continue;
    if (got[i] == want[i]) continue;
    const double bound = tolerance * (std::fabs(want[i]) + floor * largest) + 1e-30;
    if (!(std::fabs(got[i] - want[i]) <= bound)) {
      ADD_FAILURE() << what << "[" << i << "] is " << got[i] << ", not " << want[i];
      return;
    }
  }
}

/// A pair of dtypes of residual stream and activations.
struct Precisions {
  DType residual;
  DType activation;
};
inline constexpr Precisions kPrecisions[] = {{DType::fp32, DType::fp32},
                                             {DType::fp32, DType::bf16},
                                             {DType::fp32, DType::fp16},
                                             {DType::bf16, DType::bf16},
                                             {DType::fp16, DType::fp16}};
inline std::string to_text(const Precisions& p) {
  return std::string(to_string(p.residual)) + "/" + std::string(to_string(p.activation));
}

/// Whether dropout keeps an element of row n = b T + t, by core/rng.h.
inline bool kept(const Dropout& dropout, int64_t row, int64_t positions, int64_t column) {
  if (!dropout.active()) return true;
  const auto words =
      philox4x32(dropout.key, static_cast<uint64_t>(dropout.first_sample + row / positions),
                 static_cast<uint64_t>(dropout.first_position + row % positions) << 32 |
                     static_cast<uint64_t>(column / 4));
  return words[static_cast<size_t>(column % 4)] >= dropout.threshold();
}

}  // namespace gradus::test
