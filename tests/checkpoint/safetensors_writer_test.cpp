#include "checkpoint/safetensors_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "checkpoint/random_bytes.h"
#include "checkpoint/safetensors.h"
#include "core/error.h"
#include "support/temp_dir.h"
#include "support/tensors.h"

namespace gradus {
namespace {

using test::RandomBytes;
using testing::HasSubstr;

constexpr DType kAll[] = {DType::u8,   DType::bf16, DType::i32,
                          DType::fp64, DType::fp16, DType::fp32};

std::vector<std::byte> bytes_of(const SafetensorsFile& file, const std::string& name) {
  const auto bytes = file.bytes(*file.find(name));
  return {bytes.begin(), bytes.end()};
}

template <typename Action>
std::string error_of(Action&& action) {
  try {
    action();
  } catch (const CheckpointError& error) {
    return error.what();
  }
  return "";
}

TEST(SafetensorsWriter, WritesTheBytesThatTheFormatSays) {
  const test::TempDir dir;
  const float w[2] = {1.0f, -2.0f};
  const bf16 b[3] = {bf16(1.0f), bf16(2.0f), bf16(3.0f)};
  const std::vector<NamedTensor> tensors = {
      {"b\"1", DType::bf16, {3}, {ConstTensorPiece::whole({b, DType::bf16, Device::cpu, {3}})}},
      {"w", DType::fp32, {2, 1}, {ConstTensorPiece::whole({w, DType::fp32, Device::cpu, {2, 1}})}},
  };
  write_safetensors(dir / "f", tensors, {{"format", "pt"}});
  // The wider type comes first, so that both are aligned.
  const std::string header = R"({"__metadata__":{"format":"pt"},)"
                             R"("w":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
                             R"("b\"1":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]}})";
  const std::string data("\x00\x00\x80\x3f\x00\x00\x00\xc0\x80\x3f\x00\x40\x40\x40", 14);
  EXPECT_EQ(test::read_file(dir / "f"), test::safetensors_bytes(header, data));
}

TEST(SafetensorsWriter, EveryTypeAndOddShapesComeBackBitForBit) {
  const test::TempDir dir;
  std::mt19937_64 rng(test::test_seed());
  const Shape shapes[] = {{1}, {1, 1}, {0}, {3, 0, 2}, {7}, {5, 3}, {2, 3, 5, 7}, {1, 2, 3, 4, 5}};
  std::vector<RandomBytes> values;
  std::vector<NamedTensor> tensors;
  values.reserve(std::size(kAll) * std::size(shapes));
  for (const DType dtype : kAll) {
    for (const Shape& shape : shapes) {
      values.emplace_back(rng, shape, dtype);
      tensors.push_back({fmt::format("{} {}", to_string(dtype), to_string(shape)),
                         dtype,
                         shape,
                         {ConstTensorPiece::whole(values.back().tensor())}});
    }
  }
  write_safetensors(dir / "f", tensors);

  const SafetensorsFile file = SafetensorsFile::open(dir / "f");
  ASSERT_EQ(file.entries().size(), tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const ConstTensor read = file.tensor(tensors[i].name);
    EXPECT_EQ(read.dtype(), tensors[i].dtype);
    EXPECT_EQ(read.shape(), tensors[i].shape);
    EXPECT_EQ(bytes_of(file, tensors[i].name), values[i].bytes()) << tensors[i].name;
  }
}

TEST(SafetensorsWriter, PiecesOfAllKindsInAnyOrderMakeOneTensor) {
  const test::TempDir dir;
  std::mt19937_64 rng(test::test_seed());
  for (const DType dtype : kAll) {
    RandomBytes whole(rng, {13, 11}, dtype);
    const Tensor t = whole.tensor();
    const Tensor flat = t.reshape({-1});
    std::vector<ConstTensorPiece> pieces = {
        ConstTensorPiece::box({0, 0}, t.slice(0, 0, 4)),                 // rows
        ConstTensorPiece::box({4, 0}, t.slice(0, 4, 3).slice(1, 0, 5)),  // columns
        ConstTensorPiece::box({4, 5}, t.slice(0, 4, 3).slice(1, 5, 6)),  // the others
        ConstTensorPiece::range(77, flat.slice(0, 77, 30)),              // not whole rows
        ConstTensorPiece::range(107, flat.slice(0, 107, 36)),
        ConstTensorPiece::range(50, flat.slice(0, 50, 0)),  // nothing
    };
    std::ranges::shuffle(pieces, rng);
    const auto path = dir / fmt::format("{}", to_string(dtype));
    write_safetensors(path, std::vector<NamedTensor>{{"t", dtype, {13, 11}, pieces}});
    EXPECT_EQ(bytes_of(SafetensorsFile::open(path), "t"), whole.bytes()) << to_string(dtype);
  }
}

TEST(SafetensorsWriter, RunsBelowAndAboveTheBufferArriveInPlace) {
  const test::TempDir dir;
  std::mt19937_64 rng(test::test_seed());
  // 3 MiB: column pieces go through the buffer many times over, the row piece past it.
  RandomBytes whole(rng, {1024, 768}, DType::fp32);
  const Tensor t = whole.tensor();
  const std::vector<ConstTensorPiece> pieces = {
      ConstTensorPiece::box({512, 300}, t.slice(0, 512, 512).slice(1, 300, 468)),
      ConstTensorPiece::box({0, 0}, t.slice(0, 0, 512)),
      ConstTensorPiece::box({512, 0}, t.slice(0, 512, 512).slice(1, 0, 300)),
  };
  write_safetensors(dir / "f", std::vector<NamedTensor>{{"t", DType::fp32, {1024, 768}, pieces}});
  EXPECT_EQ(bytes_of(SafetensorsFile::open(dir / "f"), "t"), whole.bytes());
}

TEST(SafetensorsWriter, RanksThatJoinWriteTheirSharesOfOneFile) {
  const test::TempDir dir;
  std::mt19937_64 rng(test::test_seed());
  RandomBytes column_cut(rng, {6, 8}, DType::fp32);
  RandomBytes flat_cut(rng, {5, 5}, DType::fp64);
  const std::vector<TensorDeclaration> declared = {{"column_cut", DType::fp32, {6, 8}},
                                                   {"flat_cut", DType::fp64, {5, 5}}};
  SafetensorsWriter first = SafetensorsWriter::create(dir / "f", declared);
  SafetensorsWriter second = SafetensorsWriter::join(dir / "f", declared);
  const Tensor columns = column_cut.tensor();
  const Tensor flat = flat_cut.tensor().reshape({-1});
  second.write("flat_cut", ConstTensorPiece::range(13, flat.slice(0, 13, 12)));
  first.write("column_cut", ConstTensorPiece::box({0, 0}, columns.slice(1, 0, 4)));
  second.write("column_cut", ConstTensorPiece::box({0, 4}, columns.slice(1, 4, 4)));
  first.write("flat_cut", ConstTensorPiece::range(0, flat.slice(0, 0, 13)));
  EXPECT_EQ(first.numel_declared(), 6 * 8 + 5 * 5);
  EXPECT_EQ(first.numel_written() + second.numel_written(), first.numel_declared());
  first.finish(SafetensorsWriter::Coverage::slices);
  second.finish(SafetensorsWriter::Coverage::slices);

  const SafetensorsFile file = SafetensorsFile::open(dir / "f");
  EXPECT_EQ(bytes_of(file, "column_cut"), column_cut.bytes());
  EXPECT_EQ(bytes_of(file, "flat_cut"), flat_cut.bytes());
}

TEST(SafetensorsWriter, JoiningAFileOfOtherTensorsIsRefused) {
  const test::TempDir dir;
  const std::vector<TensorDeclaration> declared = {{"a", DType::fp32, {6, 8}}};
  const SafetensorsWriter first = SafetensorsWriter::create(dir / "f", declared);
  for (const TensorDeclaration& other :
       {TensorDeclaration{"a", DType::fp32, {8, 6}}, TensorDeclaration{"b", DType::fp32, {6, 8}},
        TensorDeclaration{"a", DType::i32, {6, 8}}}) {
    EXPECT_THAT(error_of([&] {
                  SafetensorsWriter::join(dir / "f", {&other, 1});
                }),
                HasSubstr("all ranks must declare the same"));
  }
  EXPECT_THROW(SafetensorsWriter::join(dir / "missing", declared), IoError);
}

TEST(SafetensorsWriter, RefusesDeclarationsThatTheFormatDoesNotHold) {
  const test::TempDir dir;
  const auto create = [&](std::vector<TensorDeclaration> declared) {
    std::filesystem::remove(dir / "f");
    return error_of([&] { SafetensorsWriter::create(dir / "f", declared); });
  };
  EXPECT_THAT(create({{"a", DType::fp32, {1}}, {"a", DType::fp32, {1}}}),
              HasSubstr("'a' is declared twice"));
  EXPECT_THAT(create({{"__metadata__", DType::fp32, {1}}}), HasSubstr("no tensor can be named"));
  EXPECT_THAT(create({{"a", DType::fp32, {}}}), HasSubstr("'a' has no shape"));
  EXPECT_THAT(create({{"\xff", DType::fp32, {1}}}), HasSubstr("not valid UTF-8"));
}

TEST(SafetensorsWriter, RefusesPiecesThatDoNotFit) {
  const test::TempDir dir;
  std::mt19937_64 rng(test::test_seed());
  RandomBytes values(rng, {4, 4}, DType::fp32);
  RandomBytes other(rng, {4, 3}, DType::i32);
  SafetensorsWriter writer = SafetensorsWriter::create(
      dir / "f", std::vector<TensorDeclaration>{{"a", DType::fp32, {4, 3}}});
  const auto write = [&](const char* name, const Tensor& data) {
    return error_of([&] { writer.write(name, ConstTensorPiece::whole(data)); });
  };
  EXPECT_THAT(write("b", values.tensor()), HasSubstr("'b' was not declared"));
  EXPECT_THAT(write("a", values.tensor()), HasSubstr("'a' fp32 (4, 3): a piece covers [0, 4)"));
  EXPECT_THAT(write("a", other.tensor()), HasSubstr("a piece of it is i32"));
  EXPECT_EQ(writer.numel_written(), 0);
}

TEST(SafetensorsWriter, FinishFindsHolesAndOverlaps) {
  const test::TempDir dir;
  std::mt19937_64 rng(test::test_seed());
  RandomBytes values(rng, {4, 4}, DType::fp32);
  const Tensor t = values.tensor();
  const std::vector<TensorDeclaration> declared = {{"a", DType::fp32, {4, 4}}};
  {
    SafetensorsWriter writer = SafetensorsWriter::create(dir / "hole", declared);
    writer.write("a", ConstTensorPiece::box({1, 0}, t.slice(0, 1, 3)));
    EXPECT_THAT(error_of([&] { writer.finish(); }), HasSubstr("12 of its 16 elements"));
  }
  {
    // As many elements as there are, and yet not each of them.
    SafetensorsWriter writer = SafetensorsWriter::create(dir / "overlap", declared);
    writer.write("a", ConstTensorPiece::box({2, 0}, t.slice(0, 2, 2)));
    writer.write("a", ConstTensorPiece::box({1, 0}, t.slice(0, 1, 2)));
    EXPECT_THAT(error_of([&] { writer.finish(SafetensorsWriter::Coverage::slices); }),
                HasSubstr("element 8 was written twice"));
  }
}

TEST(SafetensorsWriter, AnExistingFileIsNotOverwritten) {
  const test::TempDir dir;
  test::write_file(dir / "f", "precious");
  try {
    SafetensorsWriter::create(dir / "f", {});
    FAIL();
  } catch (const IoError& error) {
    EXPECT_THAT(error.what(), HasSubstr((dir / "f").string() + ": cannot create: File exists"));
  }
  EXPECT_EQ(test::read_file(dir / "f"), "precious");
}

}  // namespace
}  // namespace gradus
