#include "core/input_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <string>

#include "core/error.h"
#include "support/temp_dir.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

std::string read(const InputFile& file, int64_t offset, size_t count) {
  std::string bytes(count, '?');
  file.read(offset, bytes);
  return bytes;
}

class InputFileTest : public testing::Test {
 protected:
  test::TempDir dir_;
  fs::path path_ = test::write_file(dir_ / "file", "0123456789");
};

TEST_F(InputFileTest, ReadsAnyRange) {
  const InputFile file(path_);
  EXPECT_EQ(file.size(), 10);
  EXPECT_EQ(read(file, 0, 10), "0123456789");
  EXPECT_EQ(read(file, 7, 3), "789");
  EXPECT_EQ(read(file, 10, 0), "");
  EXPECT_EQ(read_small_file(path_), "0123456789");
}

TEST_F(InputFileTest, AFileThatShrinksIsAnErrorAndNoSignal) {
  const InputFile file(path_);
  fs::resize_file(path_, 4);
  EXPECT_EQ(read(file, 0, 4), "0123");
  EXPECT_THAT([&] { read(file, 2, 8); },
              ThrowsMessage<IoError>(
                  AllOf(HasSubstr(path_.string() + ": cannot read from byte 4 on"),
                        HasSubstr("6 bytes more"), HasSubstr("had 10 bytes when it was opened"))));
  fs::resize_file(path_, 0);
  EXPECT_THAT([&] { read(file, 0, 1); }, ThrowsMessage<IoError>(HasSubstr("from byte 0 on")));
}

TEST_F(InputFileTest, AReadThatTheSystemRefusesIsNamed) {
  const InputFile memory("/proc/self/mem");  // nothing is mapped at address 0
  EXPECT_THAT([&] { read(memory, 0, 8); },
              ThrowsMessage<IoError>(AllOf(HasSubstr("/proc/self/mem: cannot read from byte 0 on"),
                                           HasSubstr("Input/output error"))));
}

TEST_F(InputFileTest, AFileThatIsReplacedStaysReadableAsItWas) {
  const InputFile file(path_);
  const InputFile::Stamp stamp = file.stamp();
  fs::rename(test::write_file(dir_ / "other", "other text of another length"), path_);
  EXPECT_EQ(read(file, 0, 10), "0123456789");
  EXPECT_EQ(file.stamp(), stamp);
  EXPECT_NE(InputFile(path_).identity(), file.identity());
}

TEST_F(InputFileTest, AnythingWrittenShowsInTheStamp) {
  const InputFile file(path_);
  const InputFile::Stamp stamp = file.stamp();
  fs::last_write_time(path_, fs::last_write_time(path_) + std::chrono::seconds(1));
  EXPECT_NE(file.stamp(), stamp);
  EXPECT_EQ(file.stamp().size, stamp.size);
  fs::create_hard_link(path_, dir_ / "link");
  EXPECT_EQ(InputFile(dir_ / "link").identity(), file.identity());
}

TEST_F(InputFileTest, WhatIsNoRegularFileIsRefusedAtOnce) {
  ASSERT_EQ(::mkfifo((dir_ / "fifo").c_str(), 0600), 0);
  EXPECT_THAT(
      [&] { InputFile{dir_ / "fifo"}; },
      ThrowsMessage<IoError>(AllOf(HasSubstr("fifo: not a regular file"), HasSubstr("pipe"))));
  EXPECT_THAT([&] { InputFile{dir_.path()}; },
              ThrowsMessage<IoError>(HasSubstr("not a regular file but a folder")));
  EXPECT_THAT([&] { InputFile{"/dev/zero"}; }, ThrowsMessage<IoError>(HasSubstr("/dev/zero: not")));
  EXPECT_THAT([&] { InputFile{dir_ / "absent"}; },
              ThrowsMessage<IoError>(HasSubstr("cannot open: No such file")));
}

TEST_F(InputFileTest, ASmallFileHasALimit) {
  fs::resize_file(path_, uintmax_t{1} << 40);  // sparse
  EXPECT_THAT([&] { read_small_file(path_); },
              ThrowsMessage<IoError>(HasSubstr("1099511627776 bytes are more than the 268435456")));
}

}  // namespace
}  // namespace gradus
