#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

namespace gradus {

/// A regular file, open for reading. Its bytes are fetched by calls, never through a mapping: a
/// file that shrinks, a disk that fails and a server that forgot the file are errors of a call,
/// where a mapping would end the process with SIGBUS. A file that is replaced by rename stays
/// readable as it was.
class InputFile {
 public:
  /// Throws IoError when the file is missing, cannot be opened or is not a regular file. Does not
  /// wait for the writer of a FIFO.
  explicit InputFile(const std::filesystem::path& path);
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&& other) noexcept;
  ~InputFile();

  const std::filesystem::path& path() const { return path_; }
  /// Bytes, when it was opened.
  int64_t size() const { return size_; }

  /// Fills out with the bytes from offset on. Throws IoError, with file, offset and sizes, when the
  /// system refuses and when the file ends before. Allocates only to throw. Safe from several
  /// threads at once.
  void read(int64_t offset, std::span<char> out) const;

  /// What shows that a file was written to.
  struct Stamp {
    int64_t size = 0;
    int64_t modified_ns = 0;  ///< since the epoch of the file system
    bool operator==(const Stamp&) const = default;
  };
  /// As of now. Throws IoError.
  Stamp stamp() const;

  /// What two names of one file have in common, and no other file.
  struct Identity {
    uint64_t device = 0;
    uint64_t inode = 0;
    // Clang-tidy takes the 0 that a defaulted comparison is made with for a null pointer.
    // NOLINTNEXTLINE(modernize-use-nullptr)
    auto operator<=>(const Identity&) const = default;
  };
  Identity identity() const { return identity_; }

 private:
  [[noreturn]] void fail(int64_t offset, const std::string& reason) const;

  std::filesystem::path path_;
  int descriptor_ = -1;
  int64_t size_ = 0;
  Identity identity_;
};

/// The whole of a file that is small by nature. Throws IoError, also when it has more than `limit`
/// bytes.
std::string read_small_file(const std::filesystem::path& path, int64_t limit = int64_t{256} << 20);

}  // namespace gradus
