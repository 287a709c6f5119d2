#include "core/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "core/posix_io.h"

namespace gradus {

AtomicFile::AtomicFile(const std::filesystem::path& path) : path_(path) {
  // O_EXCL keeps two writers of one destination apart; a leftover of a killed process with the
  // same id only costs another attempt.
  for (int attempt = 0; descriptor_ < 0; ++attempt) {
    temporary_ = path_;
    temporary_ += fmt::format(".{}-{}.tmp", ::getpid(), attempt);
    descriptor_ = ::open(temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ < 0 && errno != EEXIST) fail("create");
  }
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::exchange(other.temporary_, {})),
      descriptor_(std::exchange(other.descriptor_, -1)),
      size_(other.size_) {}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::fail(const char* action) const {
  throw IoError("{}: cannot {}: {}", path_.string(), action, std::strerror(errno));
}

void AtomicFile::write_at(int64_t offset, std::string_view bytes) {
  if (!write_fully(descriptor_, offset, bytes)) fail("write");
}

void AtomicFile::write(std::string_view bytes) {
  write_at(size_, bytes);
  size_ += static_cast<int64_t>(bytes.size());
}

void AtomicFile::overwrite(int64_t offset, std::string_view bytes) { write_at(offset, bytes); }

void AtomicFile::sync() {
  if (::fsync(descriptor_) != 0) fail("sync");
  // A network file system may report a failed write as late as close.
  if (::close(std::exchange(descriptor_, -1)) != 0) fail("close");
}

void AtomicFile::publish() {
  if (descriptor_ >= 0) sync();
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail("rename into place");
  temporary_.clear();
  sync_folder(path_.has_parent_path() ? path_.parent_path() : std::filesystem::path("."));
}

}  // namespace gradus
