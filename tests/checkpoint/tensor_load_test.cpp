#include "checkpoint/tensor_load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "checkpoint/random_bytes.h"
#include "checkpoint/safetensors_writer.h"
#include "core/error.h"
#include "support/temp_dir.h"
#include "support/tensors.h"

namespace gradus {
namespace {

using test::TensorPool;
using testing::HasSubstr;

/// As a checkpoint is loaded: nothing is written unless names, shapes and types fit.
void load_tensors(const SafetensorsFile& file, std::span<const TensorDestination> destinations) {
  std::vector<std::string> problems;
  check_tensors(file, destinations, problems);
  throw_problems(file.path(), problems);
  copy_tensors(file, destinations);
}

class TensorLoad : public testing::Test {
 protected:
  SafetensorsFile saved(const std::vector<NamedTensor>& tensors) {
    write_safetensors(dir_ / "f", tensors);
    return SafetensorsFile::open(dir_ / "f");
  }
  static NamedTensor whole(const std::string& name, const Tensor& t) {
    return {name, t.dtype(), t.shape(), {ConstTensorPiece::whole(t)}};
  }
  static std::string refusal(const SafetensorsFile& file,
                             const std::vector<TensorDestination>& destinations) {
    try {
      load_tensors(file, destinations);
    } catch (const CheckpointError& error) {
      return error.what();
    }
    return "";
  }

  test::TempDir dir_;
  TensorPool pool_;
};

TEST_F(TensorLoad, ConvertsBetweenPrecisions) {
  const Tensor source = pool_.normal({5, 7}, DType::fp32);
  const SafetensorsFile file = saved({whole("w", source)});
  for (const DType dtype : {DType::fp64, DType::fp32, DType::bf16}) {
    const Tensor into = pool_.poisoned({5, 7}, dtype);
    load_tensors(file, std::vector<TensorDestination>{{"w", {5, 7}, {TensorPiece::whole(into)}}});
    EXPECT_EQ(test::values(into), test::values(pool_.copy(source, dtype))) << to_string(dtype);
  }
  pool_.check_guards();
}

TEST_F(TensorLoad, FillsBoxesRangesAndPaddedRows) {
  const Tensor source = pool_.normal({6, 5}, DType::fp32);
  const SafetensorsFile file = saved({whole("w", source)});

  const Tensor columns = pool_.poisoned({6, 2}, DType::fp32);
  const Tensor range = pool_.poisoned({9}, DType::fp32);
  const Tensor padded = pool_.zeros({8, 5}, DType::fp32);
  const Tensor turned = pool_.poisoned({5, 6}, DType::fp32);
  load_tensors(file, std::vector<TensorDestination>{
                         {"w",
                          {6, 5},
                          {TensorPiece::box({0, 3}, columns), TensorPiece::range(8, range),
                           TensorPiece::whole(padded.slice(0, 0, 6)),
                           TensorPiece::whole(turned.transpose(0, 1))}}});
  EXPECT_EQ(test::values(columns), test::values(source.slice(1, 3, 2)));
  EXPECT_EQ(test::values(range), test::values(source.reshape({-1}).slice(0, 8, 9)));
  EXPECT_EQ(test::values(padded.slice(0, 0, 6)), test::values(source));
  EXPECT_THAT(test::values(padded.slice(0, 6, 2)), testing::Each(0.0));
  EXPECT_EQ(test::values(turned.transpose(0, 1)), test::values(source));
  pool_.check_guards();
}

TEST_F(TensorLoad, TensorsReadInSeveralPartsComeBackWhole) {
  const Shape shape{1231, 2003};  // 2.5 million elements
  test::RandomBytes source(pool_.rng(), shape, DType::fp32);
  const SafetensorsFile file = saved({whole("w", source.tensor())});
  test::RandomBytes all(pool_.rng(), shape, DType::fp32);
  test::RandomBytes columns(pool_.rng(), {1231, 2000}, DType::fp32);
  load_tensors(
      file, std::vector<TensorDestination>{
                {"w",
                 shape,
                 {TensorPiece::whole(all.tensor()), TensorPiece::box({0, 2}, columns.tensor())}}});
  EXPECT_EQ(all.bytes(), source.bytes());
  const ConstTensor expected = source.tensor().slice(1, 2, 2000);
  for (int64_t row = 0; row < 1231; ++row) {
    ASSERT_EQ(std::memcmp(columns.tensor().slice(0, row, 1).data(),
                          expected.slice(0, row, 1).data(), 2000 * sizeof(float)),
              0)
        << row;
  }
}

TEST_F(TensorLoad, TensorsHeldElsewhereNeedNoPieces) {
  const SafetensorsFile file = saved({whole("here", pool_.normal({3}, DType::fp32)),
                                      whole("there", pool_.normal({4}, DType::fp32))});
  const Tensor here = pool_.poisoned({3}, DType::fp32);
  load_tensors(file, std::vector<TensorDestination>{{"here", {3}, {TensorPiece::whole(here)}},
                                                    {"there", {4}, {}}});
  EXPECT_EQ(test::values(here), test::values(file.tensor("here")));
}

TEST_F(TensorLoad, EveryProblemIsListedAndNothingIsWritten) {
  const SafetensorsFile file = saved({whole("fits", pool_.normal({3}, DType::fp32)),
                                      whole("shape", pool_.normal({4, 2}, DType::fp32)),
                                      whole("type", pool_.integers({2}, 0, 9)),
                                      whole("extra", pool_.normal({1}, DType::fp32))});
  const Tensor fits = pool_.zeros({3}, DType::fp32);
  const Tensor shape = pool_.zeros({2, 4}, DType::fp32);
  const Tensor type = pool_.zeros({2}, DType::fp32);
  const std::string message = refusal(file, {{"fits", {3}, {TensorPiece::whole(fits)}},
                                             {"shape", {2, 4}, {TensorPiece::whole(shape)}},
                                             {"type", {2}, {TensorPiece::whole(type)}},
                                             {"lacking", {5}, {}}});
  EXPECT_THAT(message, HasSubstr((dir_ / "f").string()));
  EXPECT_THAT(message, HasSubstr("4 tensors do not fit; nothing was loaded"));
  EXPECT_THAT(message, HasSubstr("shape: has shape (4, 2) in the file, expected (2, 4)"));
  EXPECT_THAT(message, HasSubstr("type: is I32 in the file, which cannot be read as fp32"));
  EXPECT_THAT(message, HasSubstr("lacking: is missing from the file, expected shape (5)"));
  EXPECT_THAT(message, HasSubstr("extra: is in the file with shape (1), but not expected"));
  EXPECT_THAT(test::values(fits), testing::Each(0.0));
}

TEST_F(TensorLoad, DestinationsThatDoNotFitTheirOwnTensorAreRefused) {
  const SafetensorsFile file = saved({whole("w", pool_.normal({4}, DType::fp32))});
  const Tensor into = pool_.zeros({3}, DType::fp32);
  EXPECT_THAT(refusal(file, {{"w", {4}, {TensorPiece::range(2, into)}}}),
              HasSubstr("w: a piece covers [2, 5) of axis 0, which has 4"));
  EXPECT_THAT(refusal(file, {{"w", {4}, {}}, {"w", {4}, {}}}), HasSubstr("w: is asked for twice"));
}

TEST_F(TensorLoad, ForeignFilesNeedNoAlignment) {
  const float values[2] = {1.5f, -2.0f};
  std::string data(1, '\7');
  data.append(reinterpret_cast<const char*>(values), sizeof values);
  const std::string header = R"({"byte":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                             R"("w":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}})";
  const SafetensorsFile file = SafetensorsFile::open(
      test::write_file(dir_ / "foreign", test::safetensors_bytes(header, data)));
  const Tensor into = pool_.poisoned({2}, DType::fp64);
  load_tensors(file, std::vector<TensorDestination>{{"w", {2}, {TensorPiece::whole(into)}},
                                                    {"byte", {1}, {}}});
  EXPECT_EQ(test::values(into), (std::vector<double>{1.5, -2.0}));
}

/// What two ranks of tp=2 saved, three ranks of tp=3 and one rank alone read.
TEST_F(TensorLoad, AnyCutReadsAnyOther) {
  const Tensor rows = pool_.normal({6, 4}, DType::fp32);
  const Tensor columns = pool_.normal({4, 6}, DType::fp32);
  std::vector<NamedTensor> tensors = {{"rows", DType::fp32, {6, 4}, {}},
                                      {"columns", DType::fp32, {4, 6}, {}}};
  for (int64_t r = 0; r < 2; ++r) {
    tensors[0].pieces.push_back(ConstTensorPiece::box({3 * r, 0}, rows.slice(0, 3 * r, 3)));
    tensors[1].pieces.push_back(ConstTensorPiece::box({0, 3 * r}, columns.slice(1, 3 * r, 3)));
  }
  write_safetensors(dir_ / "f", tensors);
  const SafetensorsFile file = SafetensorsFile::open(dir_ / "f");
  for (const int64_t tp : {1, 3}) {
    const int64_t share = 6 / tp;
    for (int64_t r = 0; r < tp; ++r) {
      const Tensor my_rows = pool_.poisoned({share, 4}, DType::fp32);
      const Tensor my_columns = pool_.poisoned({4, share}, DType::fp32);
      load_tensors(file, std::vector<TensorDestination>{
                             {"rows", {6, 4}, {TensorPiece::box({share * r, 0}, my_rows)}},
                             {"columns", {4, 6}, {TensorPiece::box({0, share * r}, my_columns)}}});
      EXPECT_EQ(test::values(my_rows), test::values(rows.slice(0, share * r, share)));
      EXPECT_EQ(test::values(my_columns), test::values(columns.slice(1, share * r, share)));
    }
  }
}

}  // namespace
}  // namespace gradus
