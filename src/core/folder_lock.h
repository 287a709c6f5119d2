#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace gradus {

/// Keeps other processes from working in a folder while it lives: holds FOLDER/.lock with flock,
/// which the system gives back when the process ends, however it ends. What a killed process left
/// of the file means nothing. Children and programs started from this one do not keep the lock.
class FolderLock {
 public:
  /// Makes the folder at need and takes its lock. what: the folder as the user knows it, for
  /// messages: "run.dir". Throws IoError when another process holds it, with that one's id, host
  /// and time of starting, and when the folder or the file cannot be made.
  FolderLock(const std::filesystem::path& folder, std::string_view what);
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;
  /// Removes the file, and the folders that were made for it and are still empty.
  ~FolderLock();

  /// Why the folder is not guarded, for a warning: the file system has no locks. Empty: it is.
  const std::string& unguarded() const { return unguarded_; }

 private:
  /// False: the file or folder was removed under it, and all of this has to be done again.
  bool take(std::string_view what);
  void make_folder(std::string_view what);
  void remove_made_folders() noexcept;

  std::filesystem::path folder_;
  std::filesystem::path file_;
  std::vector<std::filesystem::path> made_;  ///< outermost first
  std::string unguarded_;
  int descriptor_ = -1;
};

}  // namespace gradus
