#include "client_cache.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr int64_t kPage = 4096;
constexpr std::chrono::microseconds kMostDelay{200};
using Page = std::array<char, kPage>;

struct CachedPage {
  Page bytes{};
  bool dirty = false;
};

// The process's cache: what stands in front of C functions has nowhere else to look.
struct State {
  std::mutex mutex;
  bool active = false;
  gradus::test::ClientCache::Faults faults;
  int64_t writes = 0;
  int64_t pages_written_back = 0;
  std::map<int, std::map<int64_t, CachedPage>> files;  // by descriptor
  std::mt19937 rng{static_cast<unsigned>(::getpid())};
};

State& state() {
  static State instance;
  return instance;
}

bool is_file_of_tensors(int descriptor) {
  std::array<char, 4096> name{};
  const std::string link = "/proc/self/fd/" + std::to_string(descriptor);
  if (::readlink(link.c_str(), name.data(), name.size() - 1) <= 0) return false;
  return std::string(name.data()).ends_with(".safetensors");
}

CachedPage& page_of(State& s, int descriptor, int64_t number) {
  const auto [found, fresh] = s.files[descriptor].try_emplace(number);
  CachedPage& page = found->second;
  if (fresh) {
    // Beyond the file's end there are zeros.
    (void)::syscall(SYS_pread64, descriptor, page.bytes.data(), kPage, number * kPage);
  }
  return page;
}

int64_t size_of_file(int descriptor) {
  struct stat status {};
  return ::fstat(descriptor, &status) == 0 ? status.st_size : 0;
}

void write_back(State& s, int descriptor) {
  std::vector<int64_t> dirty;
  for (const auto& [number, page] : s.files[descriptor]) {
    if (page.dirty) dirty.push_back(number);
  }
  std::ranges::shuffle(dirty, s.rng);
  for (const int64_t number : dirty) {
    CachedPage& page = s.files[descriptor][number];
    Page bytes = page.bytes;
    if (s.pages_written_back++ == s.faults.flip) bytes[0] = static_cast<char>(bytes[0] ^ 1);
    const int64_t length = std::min(kPage, size_of_file(descriptor) - number * kPage);
    (void)::syscall(SYS_pwrite64, descriptor, bytes.data(), length, number * kPage);
    page.dirty = false;
    std::this_thread::sleep_for(kMostDelay * (s.rng() % 16) / 16);
  }
}

}  // namespace

namespace gradus::test {

ClientCache::ClientCache(const Faults& faults) {
  const std::lock_guard lock(state().mutex);
  state().active = true;
  state().faults = faults;
  state().writes = 0;
  state().pages_written_back = 0;
}

ClientCache::~ClientCache() {
  const std::lock_guard lock(state().mutex);
  state().active = false;
  state().files.clear();
}

}  // namespace gradus::test

extern "C" {

ssize_t pwrite(int descriptor, const void* bytes, size_t count, off_t offset) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  if (!s.active || !is_file_of_tensors(descriptor)) {
    return ::syscall(SYS_pwrite64, descriptor, bytes, count, offset);
  }
  if (s.writes++ == s.faults.full) {
    errno = ENOSPC;
    return -1;
  }
  const char* from = static_cast<const char*>(bytes);
  for (int64_t at = offset; at < offset + static_cast<int64_t>(count);) {
    const int64_t end = std::min((at / kPage + 1) * kPage, offset + static_cast<int64_t>(count));
    CachedPage& page = page_of(s, descriptor, at / kPage);
    std::memcpy(page.bytes.data() + at % kPage, from + (at - offset),
                static_cast<size_t>(end - at));
    page.dirty = true;
    at = end;
  }
  return static_cast<ssize_t>(count);
}

int posix_fallocate(int descriptor, off_t offset, off_t length) {
  if (::ftruncate(descriptor, offset + length) != 0) return errno;
  State& s = state();
  const std::lock_guard lock(s.mutex);
  if (!s.active || !is_file_of_tensors(descriptor)) return 0;
  for (int64_t page = 0; page * kPage < offset + length; ++page) {
    page_of(s, descriptor, page).dirty = true;
  }
  return 0;
}

int fsync(int descriptor) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  if (s.active && is_file_of_tensors(descriptor)) {
    if (s.faults.fsync_fails) {
      errno = EIO;
      return -1;
    }
    write_back(s, descriptor);
  }
  return static_cast<int>(::syscall(SYS_fsync, descriptor));
}

int close(int descriptor) {
  State& s = state();
  {
    const std::lock_guard lock(s.mutex);
    if (s.files.contains(descriptor)) {
      write_back(s, descriptor);
      s.files.erase(descriptor);
    }
  }
  return static_cast<int>(::syscall(SYS_close, descriptor));
}

}  // extern "C"
