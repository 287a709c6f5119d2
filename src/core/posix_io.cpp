#include "core/posix_io.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace gradus {

bool write_fully(int descriptor, int64_t offset, std::string_view bytes) noexcept {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(descriptor, bytes.data(), bytes.size(), offset);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    bytes.remove_prefix(static_cast<size_t>(written));
    offset += written;
  }
  return true;
}

void sync_folder(const std::filesystem::path& folder) {
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) {
    throw IoError("{}: cannot open folder: {}", folder.string(), std::strerror(errno));
  }
  const int result = ::fsync(descriptor);
  const int reason = errno;
  ::close(descriptor);
  // EINVAL: a file system without folders to sync has nothing that could be lost.
  if (result != 0 && reason != EINVAL) {
    throw IoError("{}: cannot sync folder: {}", folder.string(), std::strerror(reason));
  }
}

}  // namespace gradus
