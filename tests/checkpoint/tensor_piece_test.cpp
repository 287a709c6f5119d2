#include "checkpoint/tensor_piece.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "support/tensors.h"

namespace gradus {
namespace {

using testing::HasSubstr;

struct Element {
  int64_t logical;
  int64_t memory;
  bool operator==(const Element&) const = default;
};

std::vector<Element> elements_of(const ConstTensorPiece& piece, const Shape& shape) {
  std::vector<Element> elements;
  for_each_run(piece, shape, [&](int64_t logical, int64_t memory, int64_t count) {
    for (int64_t i = 0; i < count; ++i) elements.push_back({logical + i, memory + i});
  });
  return elements;
}

/// One element after another, by its index on each axis.
std::vector<Element> expected_elements(const ConstTensorPiece& piece, const Shape& shape) {
  const ConstTensor& data = piece.data;
  std::vector<Element> elements;
  for (int64_t i = 0; i < data.numel(); ++i) {
    Element element{0, 0};
    int64_t rest = i;
    int64_t stride = 1;
    for (int axis = data.rank() - 1; axis >= 0; --axis) {
      const int64_t index = rest % data.size(axis);
      rest /= data.size(axis);
      element.logical += (piece.begin[axis] + index) * stride;
      element.memory += index * data.stride(axis);
      stride *= data.rank() == shape.rank() ? shape[axis] : shape.numel();
    }
    elements.push_back(element);
  }
  return elements;
}

int count_runs(const ConstTensorPiece& piece, const Shape& shape) {
  int runs = 0;
  for_each_run(piece, shape, [&](int64_t, int64_t, int64_t) { ++runs; });
  return runs;
}

ConstTensor unbacked(const Shape& shape) { return {nullptr, DType::fp32, Device::cpu, shape}; }

TEST(ForEachRun, EqualsElementByElementForRandomBoxesOfRandomStrides) {
  std::mt19937_64 rng(test::test_seed());
  const auto draw = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(rng);
  };
  std::vector<float> memory(4096);
  for (int round = 0; round < 2000; ++round) {
    const int rank = static_cast<int>(draw(1, 4));
    std::vector<int64_t> logical(rank);
    std::vector<int64_t> box(rank);
    std::vector<int64_t> held(rank);
    ConstTensorPiece piece;
    for (int axis = 0; axis < rank; ++axis) {
      logical[axis] = draw(1, 5);
      box[axis] = draw(0, 8) == 0 ? 0 : draw(1, logical[axis]);
      piece.begin[axis] = draw(0, logical[axis] - box[axis]);
      held[axis] = box[axis] + draw(0, 2);
    }
    const int swap_a = static_cast<int>(draw(0, rank - 1));
    const int swap_b = static_cast<int>(draw(0, rank - 1));
    std::swap(held[swap_a], held[swap_b]);
    Tensor data(memory.data(), DType::fp32, Device::cpu, Shape(held));
    data = data.transpose(swap_a, swap_b);
    for (int axis = 0; axis < rank; ++axis) data = data.slice(axis, 0, box[axis]);
    piece.data = data;

    ASSERT_EQ(problem_of(piece, Shape(logical)), "");
    ASSERT_EQ(elements_of(piece, Shape(logical)), expected_elements(piece, Shape(logical)))
        << "round " << round;
  }
}

TEST(ForEachRun, RangeCoversFlatElements) {
  const ConstTensorPiece piece = ConstTensorPiece::range(5, unbacked({7}));
  EXPECT_EQ(elements_of(piece, {3, 4}), expected_elements(piece, {3, 4}));
  EXPECT_EQ(count_runs(piece, {3, 4}), 1);
}

TEST(ForEachRun, RunsAreAsLongAsStridesAllow) {
  EXPECT_EQ(count_runs(ConstTensorPiece::whole(unbacked({5, 4, 3})), {5, 4, 3}), 1);
  EXPECT_EQ(count_runs(ConstTensorPiece::box({2, 0}, unbacked({3, 4})), {5, 4}), 1) << "rows";
  EXPECT_EQ(count_runs(ConstTensorPiece::box({0, 2}, unbacked({5, 2})), {5, 4}), 5) << "columns";
  EXPECT_EQ(count_runs(ConstTensorPiece::whole(unbacked({4, 5}).transpose(0, 1)), {5, 4}), 20);
  EXPECT_EQ(count_runs(ConstTensorPiece::whole(unbacked({5, 0})), {5, 0}), 0);
}

TEST(ProblemOf, NamesWhatDoesNotFit) {
  EXPECT_THAT(problem_of({}, {2, 3}), HasSubstr("undefined"));
  EXPECT_THAT(problem_of(ConstTensorPiece::whole(unbacked({2, 3, 1})), {2, 3}),
              HasSubstr("neither a box of it nor a range"));
  EXPECT_THAT(problem_of(ConstTensorPiece::box({1, 0}, unbacked({2, 3})), {2, 3}),
              HasSubstr("[1, 3) of axis 0, which has 2"));
  EXPECT_THAT(problem_of(ConstTensorPiece::box({0, -1}, unbacked({2, 3})), {2, 3}),
              HasSubstr("[-1, 2) of axis 1"));
  EXPECT_THAT(problem_of(ConstTensorPiece::range(4, unbacked({3})), {2, 3}),
              HasSubstr("[4, 7) of its elements, which has 6"));
  const ConstTensor on_device(nullptr, DType::fp32, Device::cuda, {2, 3});
  EXPECT_THAT(problem_of(ConstTensorPiece::whole(on_device), {2, 3}), HasSubstr("lies on cuda"));
}

/// Rank `rank` of `tp` of a parameter whose rows are padded to `padded_rows`.
Parameter share_of(const ParamSpec& spec, int64_t rank, int64_t tp) {
  Parameter parameter;
  parameter.spec = spec;
  const Shape padded = spec.padded_rows > 0 ? spec.shape.with(0, spec.padded_rows) : spec.shape;
  const int axis = spec.cut == TpCut::columns ? 1 : 0;
  const int64_t share = spec.cut == TpCut::none ? padded[axis] : padded[axis] / tp;
  if (spec.cut != TpCut::none) parameter.row_begin = rank * share;
  parameter.value = Tensor(nullptr, DType::fp32, Device::cpu, padded.with(axis, share));
  return parameter;
}

TEST(PiecesOf, PartsOfAllRanksCoverTheLogicalTensorOnce) {
  const std::vector<ParamSpec> specs = {
      {.name = "whole", .shape = {6, 5}},
      {.name = "rows", .shape = {6, 5}, .cut = TpCut::rows},
      {.name = "columns", .shape = {5, 6}, .cut = TpCut::columns},
      {.name = "bias", .shape = {6}, .cut = TpCut::rows},
      {.name = "vocabulary", .shape = {5, 3}, .cut = TpCut::rows, .padded_rows = 12},
  };
  for (const ParamSpec& spec : specs) {
    for (const int64_t tp : {1, 2, 3}) {
      const int64_t held = spec.cut == TpCut::none ? 1 : tp;  // the first speaks for all
      for (const int64_t part : {1, 2, 4, 7, 1000}) {         // elements of each replica's share
        std::vector<int> times(static_cast<size_t>(spec.shape.numel()));
        for (int64_t rank = 0; rank < held; ++rank) {
          const Parameter parameter = share_of(spec, rank, tp);
          for (int64_t first = 0; first < parameter.numel(); first += part) {
            const int64_t count = std::min(part, parameter.numel() - first);
            const Tensor values(nullptr, DType::fp32, Device::cpu, {count});
            for (const TensorPiece& piece : pieces_of(parameter, first, values)) {
              ASSERT_EQ(problem_of({piece.begin, piece.data}, spec.shape), "") << spec.name;
              for (const Element& e : elements_of({piece.begin, piece.data}, spec.shape)) {
                ++times[static_cast<size_t>(e.logical)];
              }
            }
          }
        }
        EXPECT_THAT(times, testing::Each(1))
            << spec.name << " over tp " << tp << " in parts of " << part;
      }
    }
  }
}

TEST(PiecesOf, PaddedRowsBelongToNoPiece) {
  const ParamSpec spec{.name = "vocabulary", .shape = {5, 3}, .padded_rows = 8};
  const Parameter parameter = share_of(spec, 0, 1);
  const Tensor all(nullptr, DType::fp32, Device::cpu, {24});
  EXPECT_EQ(pieces_of(parameter, 0, all).at(0).data.numel(), 15);
  EXPECT_TRUE(pieces_of(parameter, 15, all.slice(0, 15, 9)).empty());
  EXPECT_TRUE(pieces_of(parameter, 3, all.slice(0, 3, 0)).empty());
}

}  // namespace
}  // namespace gradus
