#include "checkpoint/output_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "core/posix_io.h"

namespace gradus {

OutputFile::OutputFile(const std::filesystem::path& path, Open open) : path_(path) {
  const int flags = open == Open::create ? O_RDWR | O_CREAT | O_EXCL : O_RDWR;
  descriptor_ = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail(open == Open::create ? "create" : "open for writing", errno);
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}

OutputFile::~OutputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void OutputFile::fail(const char* action, int reason) const {
  throw IoError("{}: cannot {}: {}", path_.string(), action, std::strerror(reason));
}

void OutputFile::allocate(int64_t size) {
  if (size == 0) return;
  int reason = EINTR;
  while (reason == EINTR) reason = ::posix_fallocate(descriptor_, 0, size);
  if (reason != 0) fail("allocate its bytes on disk", reason);
}

void OutputFile::write(int64_t offset, std::string_view bytes) {
  if (!write_fully(descriptor_, offset, bytes)) fail("write", errno);
}

void OutputFile::finish() {
  if (::fsync(descriptor_) != 0) fail("sync", errno);
  // A network file system may report a failed write as late as close.
  if (::close(std::exchange(descriptor_, -1)) != 0) fail("close", errno);
}

}  // namespace gradus
