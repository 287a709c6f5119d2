#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

namespace gradus {

/// A file of a checkpoint being written. Every member throws IoError with path and reason, a full
/// disk's among them.
class OutputFile {
 public:
  enum class Open : uint8_t {
    create,    ///< the file must not exist
    existing,  ///< made by another rank
  };
  OutputFile(const std::filesystem::path& path, Open open);
  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&&) = delete;
  ~OutputFile();

  const std::filesystem::path& path() const { return path_; }
  /// Gives the file its size and its blocks on disk, so that a full disk shows before any work.
  void allocate(int64_t size);
  void write(int64_t offset, std::string_view bytes);
  /// Puts everything on stable storage and closes.
  void finish();

 private:
  [[noreturn]] void fail(const char* action, int reason) const;

  std::filesystem::path path_;
  int descriptor_ = -1;
};

}  // namespace gradus
