#include <gtest/gtest.h>

#include <set>
#include <string>

#include "core/error.h"
#include "parallel/mesh.h"

namespace gradus {
namespace {

std::string refusal(int ranks, int64_t tp, int64_t pp, int64_t cp, std::optional<int64_t> dp) {
  try {
    const MeshShape shape = resolve_mesh(ranks, tp, pp, cp, dp);
    return "accepted as " + to_string(shape);
  } catch (const ConfigError& error) {
    return error.what();
  }
}

TEST(MeshShape, DataParallelRanksAreWhatIsLeft) {
  EXPECT_EQ(resolve_mesh(1, 1, 1, 1, std::nullopt), (MeshShape{1, 1, 1, 1}));
  EXPECT_EQ(resolve_mesh(8, 2, 2, 1, std::nullopt), (MeshShape{2, 2, 1, 2}));
  EXPECT_EQ(resolve_mesh(24, 2, 3, 2, std::nullopt), (MeshShape{3, 2, 2, 2}));
  EXPECT_EQ(resolve_mesh(6, 3, 1, 1, 2), (MeshShape{1, 2, 1, 3}));
}

TEST(MeshShape, RefusalsSpellOutTheArithmeticAndTheWaysOut) {
  EXPECT_EQ(refusal(8, 3, 1, 1, std::nullopt),
            "8 ranks cannot be divided into parallel.tp 3 × parallel.pp 1: use tp 1, 2, 4 or 8");
  EXPECT_EQ(refusal(12, 4, 2, 1, std::nullopt),
            "12 ranks cannot be divided into parallel.tp 4 × parallel.pp 2: use tp 1, 2, 3 or 6");
  EXPECT_EQ(refusal(1, 2, 1, 1, std::nullopt),
            "1 rank cannot be divided into parallel.tp 2 × parallel.pp 1: use tp 1");
  EXPECT_EQ(refusal(8, 2, 3, 1, std::nullopt),
            "8 ranks cannot be divided into parallel.tp 2 × parallel.pp 3: use factors of 8 (1, 2, "
            "4 or 8) whose "
            "product divides it, or another number of ranks");
  EXPECT_EQ(refusal(8, 2, 1, 3, std::nullopt),
            "8 ranks cannot be divided into parallel.tp 2 × parallel.pp 1 × parallel.cp 3: use "
            "factors of 8 (1, 2, 4 or 8) "
            "whose product divides it, or another number of ranks");
  EXPECT_EQ(refusal(8, 2, 1, 1, 3),
            "parallel.pp 1 × parallel.dp 3 × parallel.cp 1 × parallel.tp 2 = 6 ranks asked "
            "for, 8 started: use dp 4 (or auto), or start 6 ranks");
  EXPECT_EQ(refusal(8, 0, 1, 1, std::nullopt), "parallel.tp is 0, and must be at least 1");
  EXPECT_EQ(refusal(8, 1, 1, 1, -1), "parallel.dp is -1, and must be at least 1");
}

TEST(MeshShape, SizesThatDoNotDivideNameThoseThatDo) {
  EXPECT_NO_THROW(require_divisible("model.heads", 12, "tp", 4));
  try {
    require_divisible("model.heads", 12, "tp", 8);
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(),
                 "model.heads 12 are not divisible by tp 8: use tp 1, 2, 3, 4, 6 or 12");
  }
}

TEST(MeshShape, RanksAndCoordinatesAreInverse) {
  const MeshShape shape{3, 2, 2, 5};
  std::set<int> seen;
  for (int rank = 0; rank < shape.size(); ++rank) {
    const MeshCoordinates at = coordinates_of(shape, rank);
    EXPECT_EQ(rank_of(shape, at), rank);
    EXPECT_EQ(rank, ((at.pp * 2 + at.dp) * 2 + at.cp) * 5 + at.tp);
    seen.insert(rank_of(shape, at));
  }
  EXPECT_EQ(seen.size(), 60u);
  EXPECT_EQ(coordinates_of(shape, 1), (MeshCoordinates{0, 0, 0, 1}));
  EXPECT_EQ(coordinates_of(shape, 20), (MeshCoordinates{1, 0, 0, 0}));
}

}  // namespace
}  // namespace gradus
