#include "core/folder_lock.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <ctime>
#include <system_error>
#include <thread>
#include <utility>

#include "core/error.h"
#include "core/posix_io.h"
#include "core/printable_text.h"

namespace gradus {
namespace fs = std::filesystem;
namespace {

constexpr const char* kLockName = ".lock";
/// The holder writes who it is as soon as it has the lock.
constexpr std::chrono::milliseconds kUntilItIsWritten{50};

std::string this_process() {
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0) host[0] = '?';
  return fmt::format("process {} on {} since {:%Y-%m-%d %H:%M:%S} UTC\n", ::getpid(), host.data(),
                     fmt::gmtime(std::time(nullptr)));
}

/// What the holder wrote: its first line, as far as it can be printed.
std::string holder(int descriptor) {
  std::this_thread::sleep_for(kUntilItIsWritten);
  std::array<char, 512> bytes{};
  const ssize_t count = ::pread(descriptor, bytes.data(), bytes.size(), 0);
  std::string text(bytes.data(), static_cast<size_t>(std::max<ssize_t>(count, 0)));
  text.resize(std::min(text.find('\n'), text.size()));
  return text.empty() ? "another process" : printable(text);
}

/// flock, however often a signal interrupts it; the reason it failed, or 0.
int lock(int descriptor) {
  while (::flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EINTR) return errno;
  }
  return 0;
}

/// Whether the path still names the open file: its last holder may have removed it meanwhile.
bool same_file(const fs::path& path, int descriptor) {
  struct stat named {};
  struct stat open {};
  return ::stat(path.c_str(), &named) == 0 && ::fstat(descriptor, &open) == 0 &&
         named.st_dev == open.st_dev && named.st_ino == open.st_ino;
}

}  // namespace

FolderLock::FolderLock(const fs::path& folder, std::string_view what)
    : folder_(folder), file_(folder / kLockName) {
  try {
    while (!take(what)) {
    }
  } catch (...) {
    if (descriptor_ >= 0) ::close(descriptor_);
    remove_made_folders();
    throw;
  }
}

FolderLock::~FolderLock() {
  // The file goes while it is locked: who opened it meanwhile sees that it is no longer the one.
  ::unlink(file_.c_str());
  ::flock(descriptor_, LOCK_UN);  // a child that was forked may have a copy of the descriptor
  ::close(descriptor_);
  remove_made_folders();
}

bool FolderLock::take(std::string_view what) {
  make_folder(what);
  descriptor_ = ::open(file_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor_ < 0) {
    const int reason = errno;
    std::error_code ignored;
    if (reason == ENOENT && !fs::exists(folder_, ignored)) return false;
    throw IoError("{} {}: cannot make its lock {}: {}", what, folder_.string(), file_.string(),
                  std::strerror(reason));
  }
  const int reason = lock(descriptor_);
  if (reason == EWOULDBLOCK) {
    throw IoError(
        "{} {} is in use by {}: wait until that has ended, or name another folder ({} is its lock)",
        what, folder_.string(), holder(descriptor_), file_.string());
  }
  if (reason != 0) {
    unguarded_ = fmt::format(
        "{} {} is not guarded against other processes: its file system has no locks ({})", what,
        folder_.string(), std::strerror(reason));
    return true;
  }
  if (!same_file(file_, descriptor_)) {
    ::close(std::exchange(descriptor_, -1));
    return false;
  }
  // Where even this does not fit on the disk, a refusal cannot say who; the lock holds.
  if (::ftruncate(descriptor_, 0) == 0) write_fully(descriptor_, 0, this_process());
  return true;
}

void FolderLock::make_folder(std::string_view what) {
  std::vector<fs::path> missing;  // innermost first
  std::error_code error;
  for (fs::path path = folder_; !path.empty() && !fs::exists(path, error) && !error;
       path = path.parent_path()) {
    if (path.has_filename()) missing.push_back(path);  // not the end of "folder/"
  }
  if (!error) fs::create_directories(folder_, error);
  if (std::error_code ignored; error && fs::is_symlink(folder_, ignored)) {
    throw IoError("cannot create {} {}: it is a link that leads to no folder", what,
                  folder_.string());
  }
  if (error) throw IoError("cannot create {} {}: {}", what, folder_.string(), error.message());
  for (auto path = missing.rbegin(); path != missing.rend(); ++path) {
    if (std::ranges::find(made_, *path) == made_.end()) made_.push_back(*path);
  }
}

void FolderLock::remove_made_folders() noexcept {
  for (auto path = made_.rbegin(); path != made_.rend(); ++path) ::rmdir(path->c_str());
}

}  // namespace gradus
