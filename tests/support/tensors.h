#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace gradus::test {

/// The seed of a test program's random inputs: GRADUS_TEST_SEED, or drawn from the system. Printed
/// once, so that a failure can be run again.
uint64_t test_seed();

/// Owns the tensors of one test. Each lies between guard zones, which check_guards() inspects, and
/// starts poisoned with NaN (integers: with a huge value), so that what an operation forgets to
/// write shows.
class TensorPool {
 public:
  /// Draws from test_seed() and `stream`, so that every test has inputs of its own.
  explicit TensorPool(uint64_t stream = 0);
  ~TensorPool();

  Tensor poisoned(const Shape& shape, DType dtype, const char* name = "");
  Tensor zeros(const Shape& shape, DType dtype, const char* name = "");
  /// Normal numbers of the given standard deviation.
  Tensor normal(const Shape& shape, DType dtype, double std_dev = 1.0, const char* name = "");
  /// Integers in [low, high], i32.
  Tensor integers(const Shape& shape, int32_t low, int32_t high, const char* name = "");
  /// A copy of a tensor, converted to dtype (contiguous).
  Tensor copy(const ConstTensor& source, DType dtype);

  std::mt19937_64& rng() { return rng_; }

  /// Fails the test (with the tensor's name) when a guard zone was written.
  void check_guards() const;

 private:
  struct Block;
  std::mt19937_64 rng_;
  std::vector<std::unique_ptr<Block>> blocks_;
};

/// Every element as a double, in logical (row-major) order, whatever the dtype and strides.
std::vector<double> values(const ConstTensor& tensor);
/// Writes logical element i. For tests only: slow.
void set_value(const Tensor& tensor, int64_t i, double value);
double get_value(const ConstTensor& tensor, int64_t i);

/// max |actual - expected| / max |expected| (0 where both are all zero; inf where an element of
/// actual is not finite and expected is).
double relative_error(const ConstTensor& actual, const ConstTensor& expected);

/// Central differences of `loss` by each element of the fp64 tensor `at` (restored afterwards).
/// step: relative to max(1, |value|).
std::vector<double> central_differences(const std::function<double()>& loss, const Tensor& at,
                                        double step = 1e-5);

/// EXPECTs that the analytic fp64 gradient agrees with central differences: worst error over the
/// tensor's largest magnitude <= tolerance. Prints the error. A gradient that is zero by
/// mathematics is checked absolutely against zero_tolerance.
void expect_gradient(const std::string& name, const ConstTensor& analytic,
                     const std::vector<double>& numeric, double tolerance = 1e-6,
                     double zero_tolerance = 1e-8);

/// Σ weights · tensor: turns an output into a scalar loss whose gradient by the output is
/// `weights`.
double weighted_sum(const ConstTensor& tensor, const ConstTensor& weights);

}  // namespace gradus::test
