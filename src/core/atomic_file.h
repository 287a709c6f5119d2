#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

namespace gradus {

/// A file that appears whole or not at all: written beside its destination under a temporary name,
/// fsynced, then renamed over it. Destroyed before publish(), it leaves nothing behind and the
/// destination untouched. Every member throws IoError with the destination's path and the reason.
class AtomicFile {
 public:
  /// Removes what killed writers of `path` left beside it. Nobody may be writing it. Throws
  /// IoError.
  static void remove_leftovers(const std::filesystem::path& path);

  explicit AtomicFile(const std::filesystem::path& path);
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();

  const std::filesystem::path& path() const { return path_; }

  /// Appends at the end.
  void write(std::string_view bytes);
  /// Overwrites bytes that were written before, without moving the end.
  void overwrite(int64_t offset, std::string_view bytes);
  /// Puts everything written on stable storage and closes the file. What a full disk has to say
  /// is said here at the latest, so that several files can be synced before the first is published.
  void sync();
  /// Renames the file to its destination, after sync() if that was not called, and makes the
  /// rename durable.
  void publish();

 private:
  [[noreturn]] void fail(const char* action) const;
  void write_at(int64_t offset, std::string_view bytes);

  std::filesystem::path path_;
  std::filesystem::path temporary_;  ///< empty once published
  int descriptor_ = -1;
  int64_t size_ = 0;
};

}  // namespace gradus
