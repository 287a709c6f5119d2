#pragma once

#include <cstddef>
#include <filesystem>
#include <string_view>

namespace gradus {

/// A regular file mapped read-only for the life of the object. The file must not shrink meanwhile:
/// the kernel answers reads behind its end with SIGBUS. Gradus itself only ever replaces files by
/// rename, which leaves existing mappings whole.
class MappedFile {
 public:
  /// Throws IoError when the file is missing, is not a regular file or cannot be mapped.
  explicit MappedFile(const std::filesystem::path& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  const std::filesystem::path& path() const { return path_; }
  std::string_view bytes() const { return {data_, size_}; }

  /// Tells the kernel to read ahead: the file will be read once, front to back.
  void advise_sequential() const;
  /// Takes the pages of [offset, offset + size) out of this process. They stay in the page cache
  /// and come back when they are read.
  void drop_pages(size_t offset, size_t size) const;

 private:
  std::filesystem::path path_;
  const char* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace gradus
