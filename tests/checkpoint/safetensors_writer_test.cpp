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

TEST(SafetensorsWriter, RunsBelowAndAboveABlockArriveInPlace) {
  const test::TempDir dir;
  std::mt19937_64 rng(test::test_seed());
  // 3 MiB: columns are many runs a block, the rows one of several blocks.
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

TEST(SafetensorsWriter, WritersOfDifferentBlocksMakeOneFile) {
  const test::TempDir dir;
  std::mt19937_64 rng(test::test_seed());
  constexpr int64_t kBlock = 16;
  RandomBytes cut(rng, {6, 8}, DType::fp32);
  const std::vector<NamedTensor> tensors = {
      {"cut", DType::fp32, {6, 8}, {ConstTensorPiece::whole(cut.tensor())}}};
  const SafetensorsLayout layout(dir / "f", tensors);
  const std::vector<FileRun> runs = layout.runs_of(tensors, true);
  SafetensorsWriter::create(layout);
  SafetensorsWriter odd(layout, kBlock);
  SafetensorsWriter even(layout, kBlock);
  std::vector<BlockHash> hashes;
  for (int64_t block = 0; block < blocks_of(layout.size(), kBlock); ++block) {
    SafetensorsWriter& writer = block % 2 == 0 ? even : odd;
    hashes.push_back(writer.write(block, runs_within(runs, block * kBlock, (block + 1) * kBlock)));
  }
  odd.finish();
  even.finish();
  EXPECT_EQ(bytes_of(SafetensorsFile::open(dir / "f"), "cut"), cut.bytes());
  EXPECT_EQ(record_of_blocks(layout.size(), kBlock, hashes), record_of_file(dir / "f", kBlock));
}

TEST(SafetensorsWriter, ItsRecordIsThatOfTheFileInBlocks) {
  const test::TempDir dir;
  std::mt19937_64 rng(test::test_seed());
  // With the header before it, three blocks and a bit.
  RandomBytes values(rng, {1024, 768}, DType::fp32);
  const FileRecord record = write_safetensors(
      dir / "f", std::vector<NamedTensor>{
                     {"t", DType::fp32, {1024, 768}, {ConstTensorPiece::whole(values.tensor())}}});
  EXPECT_EQ(record, record_of_file(dir / "f", kBlockBytes));
  EXPECT_EQ(record.block_bytes, kBlockBytes);
}

TEST(SafetensorsWriter, RefusesDeclarationsThatTheFormatDoesNotHold) {
  const test::TempDir dir;
  const auto write = [&](const std::vector<NamedTensor>& tensors) {
    return error_of([&] { write_safetensors(dir / "f", tensors); });
  };
  EXPECT_THAT(write({{"a", DType::fp32, {1}, {}}, {"a", DType::fp32, {1}, {}}}),
              HasSubstr("'a' is declared twice"));
  EXPECT_THAT(write({{"__metadata__", DType::fp32, {1}, {}}}), HasSubstr("no tensor can be named"));
  EXPECT_THAT(write({{"a", DType::fp32, {}, {}}}), HasSubstr("'a' has no shape"));
  EXPECT_THAT(write({{"\xff", DType::fp32, {1}, {}}}), HasSubstr("not valid UTF-8"));
  EXPECT_FALSE(std::filesystem::exists(dir / "f"));
}

TEST(SafetensorsWriter, RefusesPiecesThatDoNotFit) {
  const test::TempDir dir;
  std::mt19937_64 rng(test::test_seed());
  RandomBytes values(rng, {4, 4}, DType::fp32);
  RandomBytes other(rng, {4, 3}, DType::i32);
  const auto write = [&](const Tensor& data) {
    return error_of([&] {
      write_safetensors(
          dir / "f",
          std::vector<NamedTensor>{{"a", DType::fp32, {4, 3}, {ConstTensorPiece::whole(data)}}});
    });
  };
  EXPECT_THAT(write(values.tensor()), HasSubstr("'a' fp32 (4, 3): a piece covers [0, 4)"));
  EXPECT_THAT(write(other.tensor()), HasSubstr("a piece of it is i32"));
  EXPECT_FALSE(std::filesystem::exists(dir / "f"));
}

TEST(SafetensorsWriter, FindsHolesAndOverlaps) {
  const test::TempDir dir;
  std::mt19937_64 rng(test::test_seed());
  RandomBytes values(rng, {4, 4}, DType::fp32);
  const Tensor t = values.tensor();
  const auto write = [&](const std::vector<ConstTensorPiece>& pieces) {
    std::filesystem::remove(dir / "f");
    return error_of([&] {
      write_safetensors(dir / "f", std::vector<NamedTensor>{{"a", DType::fp32, {4, 4}, pieces}});
    });
  };
  EXPECT_THAT(write({ConstTensorPiece::box({1, 0}, t.slice(0, 1, 3))}),
              HasSubstr("tensor 'a', element 0 was given by nobody"));
  EXPECT_THAT(write({ConstTensorPiece::box({0, 0}, t.slice(0, 0, 3))}),
              HasSubstr("tensor 'a', element 12 was given by nobody"));
  // As many elements as there are, and yet not each of them.
  EXPECT_THAT(write({ConstTensorPiece::box({2, 0}, t.slice(0, 2, 2)),
                     ConstTensorPiece::box({1, 0}, t.slice(0, 1, 2)),
                     ConstTensorPiece::box({0, 0}, t.slice(0, 0, 1))}),
              HasSubstr("tensor 'a', element 8 was given twice"));
}

TEST(SafetensorsWriter, AnExistingFileIsNotOverwritten) {
  const test::TempDir dir;
  test::write_file(dir / "f", "precious");
  try {
    write_safetensors(dir / "f", {});
    FAIL();
  } catch (const IoError& error) {
    EXPECT_THAT(error.what(), HasSubstr((dir / "f").string() + ": cannot create: File exists"));
  }
  EXPECT_EQ(test::read_file(dir / "f"), "precious");
}

}  // namespace
}  // namespace gradus
