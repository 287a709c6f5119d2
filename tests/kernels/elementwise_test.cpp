#include "kernels/elementwise.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "core/error.h"
#include "support/tensors.h"

namespace gradus {
namespace {

using test::TensorPool;

// Sizes that no vector divides, one, and more than a thread's share.
constexpr int64_t kSizes[] = {1, 3, 7, 16, 17, 131, 1000, 40000, 70001};
constexpr DType kDTypes[] = {DType::fp64, DType::fp32, DType::bf16};

TEST(Elementwise, FillCopyAddOnEverySizeAndDType) {
  Executor x(Device::cpu, 2);
  for (const int64_t n : kSizes) {
    for (const DType to : kDTypes) {
      for (const DType from : kDTypes) {
        TensorPool pool;
        const Tensor in = pool.normal({n}, from);
        const Tensor out = pool.poisoned({n}, to);
        copy(x, out, in);
        ASSERT_EQ(test::values(out), test::values(pool.copy(in, to))) << n;
        if (to == from) {
          add(x, out, in);
          const Tensor expected = pool.poisoned({n}, to);
          for (int64_t i = 0; i < n; ++i) {
            const double value = test::get_value(in, i);
            test::set_value(expected, i, value + value);
          }
          ASSERT_EQ(test::values(out), test::values(expected)) << n;
        }
        fill(x, out, 2.5);
        ASSERT_EQ(test::values(out), std::vector<double>(static_cast<size_t>(n), 2.5));
        pool.check_guards();
      }
    }
  }
}

TEST(Elementwise, AllFiniteSeesEachElement) {
  Executor x(Device::cpu, 2);
  const double bad[] = {std::nan(""), std::numeric_limits<double>::infinity(),
                        -std::numeric_limits<double>::infinity()};
  for (const DType dtype : kDTypes) {
    for (const int64_t n : {1, 7, 33}) {
      TensorPool pool;
      const Tensor t = pool.normal({n}, dtype);
      ASSERT_TRUE(all_finite(x, t));
      for (int64_t i = 0; i < n; ++i) {
        const double kept = test::get_value(t, i);
        for (const double value : bad) {
          test::set_value(t, i, value);
          ASSERT_FALSE(all_finite(x, t)) << "element " << i << " of " << n;
        }
        test::set_value(t, i, kept);
      }
    }
  }
}

TEST(Elementwise, RoundsToNearestEvenAndKeepsNan) {
  Executor x(Device::cpu, 1);
  TensorPool pool;
  const Tensor in = pool.poisoned({4}, DType::fp32);
  test::set_value(in, 0, 1.0 + 1.0 / 256);  // a tie, to even (down)
  test::set_value(in, 1, 1.0 + 3.0 / 256);  // a tie, to even (up)
  test::set_value(in, 2, 3.4028235e38);     // past the largest bf16
  test::set_value(in, 3, std::nan(""));
  const Tensor out = pool.poisoned({4}, DType::bf16);
  copy(x, out, in);
  EXPECT_EQ(test::get_value(out, 0), 1.0);
  EXPECT_EQ(test::get_value(out, 1), 1.0 + 4.0 / 256);
  EXPECT_TRUE(std::isinf(test::get_value(out, 2)));
  EXPECT_TRUE(std::isnan(test::get_value(out, 3)));
}

TEST(Elementwise, RefusesWhatDoesNotFit) {
  Executor x(Device::cpu, 1);
  TensorPool pool;
  const Tensor a = pool.normal({4, 4}, DType::fp32, 1.0, "a");
  EXPECT_THROW(add(x, a, pool.normal({3}, DType::fp32)), ShapeError);
  EXPECT_THROW(add(x, a, pool.normal({4, 4}, DType::bf16)), ShapeError);
  EXPECT_THROW(copy(x, a, pool.normal({3}, DType::fp32)), ShapeError);
  EXPECT_THROW(fill(x, a.transpose(0, 1), 0.0), ShapeError);
  EXPECT_THROW(fill(x, Tensor(), 0.0), ShapeError);
}

TEST(Elementwise, NamesTheTensorThatIsMissing) {
  Executor x(Device::cpu, 1);
  TensorPool pool;
  const Tensor a = pool.normal({4, 4}, DType::fp32, 1.0, "a");
  const Tensor none;
  const Tensor planned(nullptr, DType::fp32, Device::cpu, {4, 4}, "planned");
  const auto refusal = [](const std::function<void()>& call) -> std::string {
    try {
      call();
    } catch (const ShapeError& error) {
      return error.what();
    }
    return "nothing was refused";
  };
  using testing::HasSubstr;
  EXPECT_THAT(refusal([&] { fill(x, none, 0.0); }), HasSubstr("fill: out is missing"));
  EXPECT_THAT(refusal([&] { copy(x, none, a); }), HasSubstr("copy: out is missing"));
  EXPECT_THAT(refusal([&] { copy(x, a, none); }), HasSubstr("copy: in is missing"));
  EXPECT_THAT(refusal([&] { copy_strided(x, none, none); }),
              HasSubstr("copy_strided: out is missing"));
  EXPECT_THAT(refusal([&] { copy_strided(x, a, none); }), HasSubstr("copy_strided: in is missing"));
  EXPECT_THAT(refusal([&] { add(x, none, none); }), HasSubstr("add: out is missing"));
  EXPECT_THAT(refusal([&] { add(x, a, none); }), HasSubstr("add: in is missing"));
  EXPECT_THAT(refusal([&] { scale(x, none, 1.0); }), HasSubstr("scale: inout is missing"));
  EXPECT_THAT(refusal([&] { all_finite(x, none); }), HasSubstr("all_finite: in is missing"));
  EXPECT_THAT(refusal([&] { copy_strided(x, a, planned); }),
              HasSubstr("copy_strided: in planned fp32 (4, 4) has no memory"));
}

}  // namespace
}  // namespace gradus
