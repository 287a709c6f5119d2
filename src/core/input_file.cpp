#include "core/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/counted.h"
#include "core/error.h"

namespace gradus {
namespace {

struct stat stat_of(int descriptor, const std::filesystem::path& path) {
  struct stat status = {};
  if (::fstat(descriptor, &status) != 0) {
    throw IoError("{}: cannot stat: {}", path.string(), std::strerror(errno));
  }
  return status;
}

}  // namespace

InputFile::InputFile(const std::filesystem::path& path) : path_(path) {
  // Without O_NONBLOCK opening a FIFO waits for its writer. It means nothing to regular files.
  descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0) throw IoError("{}: cannot open: {}", path.string(), std::strerror(errno));
  try {
    const struct stat status = stat_of(descriptor_, path_);
    if (!S_ISREG(status.st_mode)) {
      throw IoError("{}: not a regular file but {}", path.string(),
                    S_ISDIR(status.st_mode) ? "a folder" : "a pipe, socket or device");
    }
    size_ = status.st_size;
    identity_ = {.device = status.st_dev, .inode = status.st_ino};
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      size_(other.size_),
      identity_(other.identity_) {}

InputFile& InputFile::operator=(InputFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(size_, other.size_);
  std::swap(identity_, other.identity_);
  return *this;
}

InputFile::~InputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void InputFile::fail(int64_t offset, const std::string& reason) const {
  throw IoError("{}: cannot read from byte {} on: {}", path_.string(), offset, reason);
}

void InputFile::read(int64_t offset, std::span<char> out) const {
  while (!out.empty()) {
    const ssize_t count = ::pread(descriptor_, out.data(), out.size(), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(offset, std::strerror(errno));
    if (count == 0) {
      fail(offset,
           fmt::format(
               "the file ends there, and {} more {} expected; it had {} when it was opened: it "
               "was cut short or overwritten meanwhile",
               counted(std::ssize(out), "byte"), out.size() == 1 ? "was" : "were",
               counted(size_, "byte")));
    }
    out = out.subspan(static_cast<size_t>(count));
    offset += count;
  }
}

InputFile::Stamp InputFile::stamp() const {
  const struct stat status = stat_of(descriptor_, path_);
  return {.size = status.st_size,
          .modified_ns = int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec};
}

std::string read_small_file(const std::filesystem::path& path, int64_t limit) {
  const InputFile file(path);
  if (file.size() > limit) {
    throw IoError("{}: {} bytes are more than the {} that such a file may have", path.string(),
                  file.size(), limit);
  }
  std::string bytes(static_cast<size_t>(file.size()), '\0');
  file.read(0, bytes);
  return bytes;
}

}  // namespace gradus
