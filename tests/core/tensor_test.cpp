#include "core/tensor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "core/error.h"
#include "support/tensors.h"

namespace gradus {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;

/// A contiguous fp32 tensor whose elements are their own row-major numbers.
class Numbered {
 public:
  explicit Numbered(const Shape& shape, const char* name = "numbered")
      : elements_(static_cast<size_t>(shape.numel())),
        tensor_(elements_.data(), DType::fp32, Device::cpu, shape, name) {
    std::iota(elements_.begin(), elements_.end(), 0.0f);
  }
  const Tensor& operator*() const { return tensor_; }
  const Tensor* operator->() const { return &tensor_; }

 private:
  std::vector<float> elements_;
  Tensor tensor_;
};

TEST(Shape, SizesAndNegativeAxes) {
  const Shape shape{2, 3, 5};
  EXPECT_EQ(shape.rank(), 3);
  EXPECT_EQ(shape.numel(), 30);
  EXPECT_EQ(shape[0], 2);
  EXPECT_EQ(shape[-1], 5);
  EXPECT_EQ(shape[-3], 2);
  EXPECT_EQ(shape.with(-2, 7), (Shape{2, 7, 5}));
  EXPECT_EQ(to_string(shape), "(2, 3, 5)");
  EXPECT_EQ(Shape{}.numel(), 0) << "an undefined tensor has no element";
  EXPECT_EQ((Shape{4, 0}).numel(), 0);
  EXPECT_EQ((Shape{int64_t{1} << 20, int64_t{1} << 20}).numel(), int64_t{1} << 40);
}

TEST(Shape, EqualityComparesRankAndSizes) {
  EXPECT_EQ((Shape{2, 3}), (Shape{2, 3}));
  EXPECT_FALSE((Shape{2, 3}) == (Shape{3, 2}));
  EXPECT_FALSE((Shape{2, 3}) == (Shape{2, 3, 1}));
  EXPECT_FALSE((Shape{2, 0}) == (Shape{2}));
}

TEST(Shape, RefusesMoreAxesThanThereAre) {
  EXPECT_NO_THROW((Shape{1, 2, 3, 4, 5}));
  EXPECT_THAT(([] { return Shape{1, 2, 3, 4, 5, 6}; }),
              ThrowsMessage<ShapeError>(HasSubstr("at most 5 axes, 6")));
}

TEST(Tensor, ContiguousViewOfMemory) {
  const Numbered t({2, 3, 5});
  EXPECT_TRUE(t->defined());
  EXPECT_TRUE(t->contiguous());
  EXPECT_EQ(t->stride(0), 15);
  EXPECT_EQ(t->stride(1), 5);
  EXPECT_EQ(t->stride(-1), 1);
  EXPECT_EQ(t->bytes(), 120);
  EXPECT_EQ(describe(*t), "numbered fp32 (2, 3, 5)");
  EXPECT_EQ(describe(t->named("")), "fp32 (2, 3, 5)");
}

TEST(Tensor, UndefinedStandsForNotGiven) {
  const Tensor none;
  EXPECT_FALSE(none.defined());
  EXPECT_EQ(none.numel(), 0);
  EXPECT_EQ(none.data(), nullptr);
  EXPECT_EQ(describe(none), "(undefined)");
  EXPECT_FALSE(ConstTensor(none).defined());
}

TEST(Tensor, PlannedTensorsHaveShapeAndNoMemory) {
  const Tensor planned(nullptr, DType::bf16, Device::cpu, {4, 6});
  EXPECT_TRUE(planned.defined());
  // Arithmetic on a null pointer would make an address out of nothing.
  EXPECT_EQ(planned.slice(0, 2, 2).data(), nullptr);
  EXPECT_EQ(planned.slice(0, 2, 2).bytes(), 24);
}

TEST(Tensor, TypedAccessChecksTheDtype) {
  const Numbered t({3}, "weights");
  EXPECT_EQ(t->as<float>()[2], 2.0f);
  EXPECT_THAT([&] { t->as<bf16>(); },
              ThrowsMessage<ShapeError>("tensor weights fp32 (3) was read as bf16"));
  EXPECT_THROW(t->as<double>(), ShapeError);
  EXPECT_THROW(t->as<int32_t>(), ShapeError);
}

TEST(Tensor, ConstViewsShareMemory) {
  const Numbered t({2, 2});
  const ConstTensor view = t->transpose(0, 1);
  test::set_value(*t, 1, 42.0);
  EXPECT_EQ(test::get_value(view, 2), 42.0);
  EXPECT_EQ(view.stride(0), 1);
  EXPECT_STREQ(view.name(), "numbered");
  static_assert(!std::is_convertible_v<ConstTensor, Tensor>, "a view must not shed its const");
}

TEST(Tensor, SliceOfEveryAxis) {
  const Numbered t({2, 3, 5});
  EXPECT_THAT(test::values(t->slice(0, 1, 1).slice(1, 1, 2).slice(2, 3, 2)),
              ElementsAre(23, 24, 28, 29));
  EXPECT_THAT(test::values(t->slice(-1, 4, 1)), ElementsAre(4, 9, 14, 19, 24, 29));
  EXPECT_TRUE(t->slice(0, 1, 1).contiguous());
  EXPECT_FALSE(t->slice(1, 0, 2).contiguous());
  EXPECT_FALSE(t->slice(2, 0, 4).contiguous());
  EXPECT_EQ(t->slice(1, 3, 0).numel(), 0);
  EXPECT_EQ(t->slice(1, 0, 3).shape(), t->shape());
}

TEST(Tensor, SliceOutsideTheTensorIsRefused) {
  const Numbered t({2, 3});
  EXPECT_THAT(
      [&] { t->slice(1, 1, 3); },
      ThrowsMessage<ShapeError>("tensor numbered fp32 (2, 3) has no elements [1, 4) on axis 1"));
  EXPECT_THROW(t->slice(1, -1, 1), ShapeError);
  EXPECT_THROW(t->slice(1, 0, -1), ShapeError);
  EXPECT_THROW(t->slice(2, 0, 1), ShapeError);
  EXPECT_THROW(t->slice(-3, 0, 1), ShapeError);
}

TEST(Tensor, SplitOfAnAxis) {
  const Numbered t({2, 6});
  const Tensor split = t->split(1, 3);
  EXPECT_EQ(split.shape(), (Shape{2, 3, 2}));
  EXPECT_TRUE(split.contiguous());
  EXPECT_EQ(test::values(split), test::values(*t));
  // Of a strided axis: heads inside a packed row.
  const Tensor heads = t->slice(1, 2, 4).split(-1, 2);
  EXPECT_EQ(heads.shape(), (Shape{2, 2, 2}));
  EXPECT_EQ(heads.stride(0), 6);
  EXPECT_THAT(test::values(heads), ElementsAre(2, 3, 4, 5, 8, 9, 10, 11));
  // Of an outer axis the others keep their places.
  EXPECT_EQ(t->split(0, 2).shape(), (Shape{2, 1, 6}));
  EXPECT_EQ(test::values(t->split(0, 2)), test::values(*t));
}

TEST(Tensor, SplitThatDoesNotDivideIsRefused) {
  const Numbered t({2, 6});
  EXPECT_THAT([&] { t->split(1, 4); },
              ThrowsMessage<ShapeError>(
                  "axis 1 of tensor numbered fp32 (2, 6) cannot be split into 4 parts"));
  EXPECT_THROW(t->split(1, 0), ShapeError);
  EXPECT_THROW(t->split(1, -2), ShapeError);
  EXPECT_THROW(t->split(2, 1), ShapeError);
  const Numbered full({1, 1, 1, 1, 2});
  EXPECT_THROW(full->split(4, 2), ShapeError) << "a sixth axis";
}

TEST(Tensor, ReshapeKeepsTheElementsInOrder) {
  const Numbered t({2, 3, 4});
  const Tensor flat = t->reshape({-1});
  EXPECT_EQ(flat.shape(), (Shape{24}));
  EXPECT_EQ(flat.data(), t->data());
  EXPECT_EQ(t->reshape({6, -1}).shape(), (Shape{6, 4}));
  EXPECT_EQ(t->reshape({-1, 2, 3}).shape(), (Shape{4, 2, 3}));
  EXPECT_EQ(test::values(t->reshape({4, 6})), test::values(*t));
  EXPECT_EQ(t->reshape({4, 6}).stride(0), 6);
}

TEST(Tensor, ReshapeOfTensorsWithoutElements) {
  const Numbered t({0, 4});
  EXPECT_EQ(t->reshape({-1, 2}).shape(), (Shape{0, 2}));
  EXPECT_EQ(t->reshape({0, -1}).shape(), (Shape{0, 0}));
  // Whatever the strides, there is nothing that could lie in another order.
  const Numbered full({3, 4});
  EXPECT_EQ(full->slice(1, 0, 0).reshape({0}).shape(), (Shape{0}));
}

TEST(Tensor, ReshapeThatDoesNotFitIsRefused) {
  const Numbered t({2, 3});
  EXPECT_THAT([&] { t->reshape({4}); },
              ThrowsMessage<ShapeError>("tensor numbered fp32 (2, 3) cannot be reshaped to (4)"));
  EXPECT_THROW(t->reshape({-1, 4}), ShapeError);
  EXPECT_THROW(t->reshape({-1, -1}), ShapeError);
  EXPECT_THROW(t->reshape({-2, -3}), ShapeError);
  EXPECT_THROW(t->reshape({-1, -3}), ShapeError);
  const Numbered empty({0, 3});
  EXPECT_THROW(empty->reshape({-1, -1}), ShapeError);
  EXPECT_THAT([&] { t->transpose(0, 1).reshape({6}); },
              ThrowsMessage<ShapeError>(HasSubstr("(3, 2) is not contiguous")));
}

TEST(Tensor, TransposeSwapsAxes) {
  const Numbered t({2, 3});
  EXPECT_EQ(t->transpose(0, 1).shape(), (Shape{3, 2}));
  EXPECT_THAT(test::values(t->transpose(0, 1)), ElementsAre(0, 3, 1, 4, 2, 5));
  EXPECT_EQ(test::values(t->transpose(-1, 0).transpose(0, 1)), test::values(*t));
  EXPECT_FALSE(t->transpose(0, 1).contiguous());
  EXPECT_TRUE(t->transpose(1, 1).contiguous());
  const Numbered cube({2, 2, 2});
  EXPECT_THAT(test::values(cube->transpose(0, 2)), ElementsAre(0, 4, 2, 6, 1, 5, 3, 7));
  EXPECT_THROW(t->transpose(0, 2), ShapeError);
  EXPECT_THROW(t->transpose(-3, 0), ShapeError);
}

TEST(Tensor, AxesOfSizeOneDoNotDecideContiguity) {
  const Numbered t({3, 4});
  EXPECT_TRUE(t->slice(1, 1, 1).slice(0, 2, 1).contiguous()) << "one element";
  EXPECT_FALSE(t->slice(1, 1, 1).contiguous()) << "a column";
  EXPECT_TRUE(t->slice(0, 1, 1).transpose(0, 1).contiguous()) << "a row as a column";
  const Numbered ones({1, 4, 1});
  EXPECT_TRUE(ones->transpose(0, 1).contiguous());
  EXPECT_TRUE(ones->transpose(1, 2).contiguous());
  EXPECT_THAT(test::values(ones->transpose(1, 2).reshape({2, 2})), ElementsAre(0, 1, 2, 3));
  // One sequence cut to its first tokens, as generation does.
  EXPECT_TRUE(Numbered({1, 5, 2})->slice(1, 0, 3).contiguous());
  EXPECT_FALSE(Numbered({2, 5, 2})->slice(1, 0, 3).contiguous());
}

}  // namespace
}  // namespace gradus
