#include "checkpoint/checkpoint_folder.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>

#include "checkpoint/manifest.h"
#include "core/error.h"
#include "core/posix_io.h"

namespace gradus {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kStepPrefix = "step-";

void rename_or_throw(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) {
    throw IoError("{}: cannot rename to {}: {}", from.string(), to.string(), std::strerror(errno));
  }
}

void remove_or_throw(const fs::path& folder) {
  std::error_code error;
  fs::remove_all(folder, error);
  if (error) throw IoError("{}: cannot remove: {}", folder.string(), error.message());
}

/// By its manifest and the sizes of its files; checksums are for those who read it.
bool looks_whole(const fs::path& folder) {
  try {
    check_sizes(folder, read_manifest(folder));
    return true;
  } catch (const Error&) {
    return false;  // one that cannot be read is not counted on
  }
}

/// What has a checkpoint's name may be one unless it is known not to be a folder: a link that leads
/// nowhere, or what cannot be looked at, may hold the run's newest step.
bool may_be_folder(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  return fs::is_directory(status) || !fs::status_known(status) || !fs::exists(status);
}

std::vector<fs::path> list(const fs::path& folder) {
  std::error_code error;
  std::vector<fs::path> paths;
  fs::directory_iterator entries(folder, error);
  for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
    paths.push_back(entries->path());
  }
  if (error && error != std::errc::no_such_file_or_directory) {
    throw IoError("{}: cannot list folder: {}", folder.string(), error.message());
  }
  return paths;
}

}  // namespace

std::string step_folder_name(int64_t step) { return fmt::format("{}{:08}", kStepPrefix, step); }

std::optional<int64_t> step_of(const fs::path& folder) {
  const std::string name = folder.filename().string();
  if (!name.starts_with(kStepPrefix)) return std::nullopt;
  int64_t step = -1;
  std::from_chars(name.data() + kStepPrefix.size(), name.data() + name.size(), step);
  if (step < 0 || name != step_folder_name(step)) return std::nullopt;
  return step;
}

std::vector<fs::path> list_step_folders(const fs::path& checkpoints) {
  std::vector<fs::path> folders;
  for (const fs::path& path : list(checkpoints)) {
    if (step_of(path) && may_be_folder(path)) folders.push_back(path);
  }
  std::ranges::sort(folders, std::greater<>(), [](const fs::path& f) { return *step_of(f); });
  return folders;
}

fs::path hidden_sibling(const fs::path& folder, std::string_view label) {
  return folder.parent_path() /
         fmt::format(".{}.{}-{}", folder.filename().string(), label, ::getpid());
}

void remove_leftovers(const fs::path& checkpoints) {
  for (const fs::path& path : list(checkpoints)) {
    if (path.filename().string().starts_with(fmt::format(".{}", kStepPrefix))) {
      remove_or_throw(path);
    }
  }
}

void move_into_place(const fs::path& folder, const fs::path& destination) {
  std::error_code ignored;
  if (!fs::exists(destination, ignored)) {
    rename_or_throw(folder, destination);
    sync_folder(destination.parent_path());
    return;
  }
  // A folder that is not empty cannot be renamed over; the two change places instead.
  if (::renameat2(AT_FDCWD, folder.c_str(), AT_FDCWD, destination.c_str(), RENAME_EXCHANGE) == 0) {
    sync_folder(destination.parent_path());
    remove_or_throw(folder);
    return;
  }
  if (errno != EINVAL && errno != ENOSYS) {
    throw IoError("{}: cannot exchange with {}: {}", folder.string(), destination.string(),
                  std::strerror(errno));
  }
  // The file system cannot exchange. A crash between these two leaves older checkpoints only.
  const fs::path replaced = hidden_sibling(destination, "replaced");
  rename_or_throw(destination, replaced);
  rename_or_throw(folder, destination);
  sync_folder(destination.parent_path());
  remove_or_throw(replaced);
}

void remove_old_checkpoints(const fs::path& checkpoints, int64_t step, int64_t keep,
                            std::vector<fs::path>& removed, std::vector<std::string>& warnings) {
  int64_t whole = 1;  // the one of `step`
  for (const fs::path& folder : list_step_folders(checkpoints)) {
    if (*step_of(folder) >= step) continue;
    if (whole < keep) {
      whole += looks_whole(folder) ? 1 : 0;
      continue;
    }
    try {
      const fs::path aside = hidden_sibling(folder, "deleted");
      rename_or_throw(folder, aside);
      remove_or_throw(aside);
      removed.push_back(folder);
    } catch (const IoError& error) {
      warnings.push_back(error.what());
    }
  }
}

}  // namespace gradus
