#include "core/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/posix_io.h"

namespace gradus {

namespace {

/// "12-0" of "train.bin.12-0.tmp".
bool is_process_and_attempt(std::string_view text) {
  const size_t dash = text.find('-');
  if (dash == 0 || dash == std::string_view::npos || dash + 1 == text.size()) return false;
  const auto digit = [](char c) { return c >= '0' && c <= '9'; };
  return std::ranges::all_of(text.substr(0, dash), digit) &&
         std::ranges::all_of(text.substr(dash + 1), digit);
}

constexpr std::string_view kSuffix = ".tmp";

}  // namespace

void AtomicFile::remove_leftovers(const std::filesystem::path& path) {
  const std::string prefix = path.filename().string() + ".";
  std::error_code error;
  std::vector<std::filesystem::path> leftovers;
  for (std::filesystem::directory_iterator entry(path.parent_path(), error), end;
       !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.size() <= prefix.size() + kSuffix.size() || !name.starts_with(prefix) ||
        !name.ends_with(kSuffix)) {
      continue;
    }
    const std::string_view middle =
        std::string_view(name).substr(prefix.size(), name.size() - prefix.size() - kSuffix.size());
    if (is_process_and_attempt(middle)) leftovers.push_back(entry->path());
  }
  for (const std::filesystem::path& leftover : leftovers) {
    if (!error) std::filesystem::remove(leftover, error);
  }
  if (error) {
    throw IoError("{}: cannot remove what an interrupted writer left: {}", path.string(),
                  error.message());
  }
}

AtomicFile::AtomicFile(const std::filesystem::path& path) : path_(path) {
  // O_EXCL keeps two writers of one destination apart; a leftover of a killed process with the
  // same id only costs another attempt.
  for (int attempt = 0; descriptor_ < 0; ++attempt) {
    temporary_ = path_;
    temporary_ += fmt::format(".{}-{}{}", ::getpid(), attempt, kSuffix);
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
