#include "support/tensors.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "core/error.h"

namespace gradus::test {
namespace {

constexpr int64_t kGuardBytes = 256;
constexpr std::byte kGuard{0xA5};
constexpr int32_t kPoisonedInteger = 0x7ABCDEF0;

void write(DType dtype, std::byte* p, double value) {
  switch (dtype) {
    case DType::fp64:
      std::memcpy(p, &value, 8);
      return;
    case DType::fp32: {
      const float f = static_cast<float>(value);
      std::memcpy(p, &f, 4);
      return;
    }
    case DType::bf16: {
      const bf16 b(static_cast<float>(value));
      std::memcpy(p, &b, 2);
      return;
    }
    case DType::i32: {
      const int32_t i = std::isnan(value) ? kPoisonedInteger : static_cast<int32_t>(value);
      std::memcpy(p, &i, 4);
      return;
    }
    case DType::fp16:
    case DType::u8:
      break;
  }
  throw ShapeError("tests do not write {}", to_string(dtype));
}

double read(DType dtype, const std::byte* p) {
  switch (dtype) {
    case DType::fp64: {
      double value;
      std::memcpy(&value, p, 8);
      return value;
    }
    case DType::fp32: {
      float value;
      std::memcpy(&value, p, 4);
      return value;
    }
    case DType::bf16: {
      bf16 value;
      std::memcpy(&value, p, 2);
      return static_cast<float>(value);
    }
    case DType::i32: {
      int32_t value;
      std::memcpy(&value, p, 4);
      return value;
    }
    case DType::fp16:
    case DType::u8:
      break;
  }
  throw ShapeError("tests do not read {}", to_string(dtype));
}

int64_t element_offset(const ConstTensor& tensor, int64_t i) {
  int64_t offset = 0;
  for (int axis = tensor.rank() - 1; axis >= 0; --axis) {
    offset += i % tensor.size(axis) * tensor.stride(axis);
    i /= tensor.size(axis);
  }
  return offset * size_of(tensor.dtype());
}

}  // namespace

uint64_t test_seed() {
  static const uint64_t seed = [] {
    const char* text = std::getenv("GRADUS_TEST_SEED");
    const uint64_t value =
        text != nullptr ? std::strtoull(text, nullptr, 10) : std::random_device{}();
    std::printf("GRADUS_TEST_SEED=%llu\n", static_cast<unsigned long long>(value));
    return value;
  }();
  return seed;
}

struct TensorPool::Block {
  std::byte* memory = nullptr;
  int64_t bytes = 0;
  std::string name;

  ~Block() { std::free(memory); }
};

TensorPool::TensorPool(uint64_t stream) : rng_(test_seed() * 1000003 + stream) {}
TensorPool::~TensorPool() = default;

Tensor TensorPool::poisoned(const Shape& shape, DType dtype, const char* name) {
  auto block = std::make_unique<Block>();
  block->bytes = shape.numel() * size_of(dtype);
  block->name = name;
  const int64_t total = (block->bytes + 2 * kGuardBytes + 63) / 64 * 64;
  block->memory = static_cast<std::byte*>(std::aligned_alloc(64, static_cast<size_t>(total)));
  std::fill(block->memory, block->memory + total, kGuard);
  const Tensor tensor(block->memory + kGuardBytes, dtype, Device::cpu, shape, block->name.c_str());
  blocks_.push_back(std::move(block));
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    set_value(tensor, i, std::numeric_limits<double>::quiet_NaN());
  }
  return tensor;
}

Tensor TensorPool::zeros(const Shape& shape, DType dtype, const char* name) {
  const Tensor tensor = poisoned(shape, dtype, name);
  for (int64_t i = 0; i < tensor.numel(); ++i) set_value(tensor, i, 0.0);
  return tensor;
}

Tensor TensorPool::normal(const Shape& shape, DType dtype, double std_dev, const char* name) {
  const Tensor tensor = poisoned(shape, dtype, name);
  std::normal_distribution<double> draw(0.0, std_dev);
  for (int64_t i = 0; i < tensor.numel(); ++i) set_value(tensor, i, draw(rng_));
  return tensor;
}

Tensor TensorPool::integers(const Shape& shape, int32_t low, int32_t high, const char* name) {
  const Tensor tensor = poisoned(shape, DType::i32, name);
  std::uniform_int_distribution<int32_t> draw(low, high);
  for (int64_t i = 0; i < tensor.numel(); ++i) set_value(tensor, i, draw(rng_));
  return tensor;
}

Tensor TensorPool::copy(const ConstTensor& source, DType dtype) {
  const Tensor tensor = poisoned(source.shape(), dtype, source.name());
  for (int64_t i = 0; i < tensor.numel(); ++i) set_value(tensor, i, get_value(source, i));
  return tensor;
}

void TensorPool::check_guards() const {
  for (const auto& block : blocks_) {
    const auto intact = [&](const std::byte* from) {
      return std::all_of(from, from + kGuardBytes, [](std::byte b) { return b == kGuard; });
    };
    EXPECT_TRUE(intact(block->memory)) << block->name << ": written before its first element";
    EXPECT_TRUE(intact(block->memory + kGuardBytes + block->bytes))
        << block->name << ": written after its last element";
  }
}

std::vector<double> values(const ConstTensor& tensor) {
  std::vector<double> out(static_cast<size_t>(tensor.numel()));
  for (int64_t i = 0; i < tensor.numel(); ++i) out[static_cast<size_t>(i)] = get_value(tensor, i);
  return out;
}

void set_value(const Tensor& tensor, int64_t i, double value) {
  write(tensor.dtype(), tensor.data() + element_offset(tensor, i), value);
}

double get_value(const ConstTensor& tensor, int64_t i) {
  return read(tensor.dtype(), tensor.data() + element_offset(tensor, i));
}

double relative_error(const ConstTensor& actual, const ConstTensor& expected) {
  if (!(actual.shape() == expected.shape())) {
    throw ShapeError("compared {} with {}", describe(actual), describe(expected));
  }
  double worst = 0.0;
  double largest = 0.0;
  for (int64_t i = 0; i < actual.numel(); ++i) {
    const double a = get_value(actual, i);
    const double e = get_value(expected, i);
    if (a == e || (std::isnan(a) && std::isnan(e))) {
      if (std::isfinite(e)) largest = std::max(largest, std::abs(e));
      continue;
    }
    if (!std::isfinite(a) || !std::isfinite(e)) return std::numeric_limits<double>::infinity();
    worst = std::max(worst, std::abs(a - e));
    largest = std::max(largest, std::abs(e));
  }
  if (worst == 0.0) return 0.0;
  return largest == 0.0 ? std::numeric_limits<double>::infinity() : worst / largest;
}

std::vector<double> central_differences(const std::function<double()>& loss, const Tensor& at,
                                        double step) {
  std::vector<double> out(static_cast<size_t>(at.numel()));
  for (int64_t i = 0; i < at.numel(); ++i) {
    const double value = get_value(at, i);
    const double h = step * std::max(1.0, std::abs(value));
    set_value(at, i, value + h);
    const double up = loss();
    set_value(at, i, value - h);
    const double down = loss();
    set_value(at, i, value);
    out[static_cast<size_t>(i)] = (up - down) / (2.0 * h);
  }
  return out;
}

void expect_gradient(const std::string& name, const ConstTensor& analytic,
                     const std::vector<double>& numeric, double tolerance, double zero_tolerance) {
  const std::vector<double> ours = values(analytic);
  ASSERT_EQ(ours.size(), numeric.size()) << name;
  double worst = 0.0;
  double largest = 0.0;
  for (size_t i = 0; i < ours.size(); ++i) {
    ASSERT_TRUE(std::isfinite(ours[i])) << name << "[" << i << "] is " << ours[i];
    worst = std::max(worst, std::abs(ours[i] - numeric[i]));
    largest = std::max({largest, std::abs(ours[i]), std::abs(numeric[i])});
  }
  if (largest <= zero_tolerance) {
    std::printf("gradient %-40s zero by mathematics, |g| <= %.1e\n", name.c_str(), largest);
    return;
  }
  std::printf("gradient %-40s error %.1e\n", name.c_str(), worst / largest);
  EXPECT_LE(worst / largest, tolerance) << name;
}

double weighted_sum(const ConstTensor& tensor, const ConstTensor& weights) {
  double sum = 0.0;
  for (int64_t i = 0; i < tensor.numel(); ++i) sum += get_value(tensor, i) * get_value(weights, i);
  return sum;
}

}  // namespace gradus::test
