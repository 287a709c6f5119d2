#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace gradus {

/// RUN/checkpoints holds one folder a checkpoint, `step-00000500`. Folders on their way in or out
/// have names that start with a dot (`.step-00000500.partial-PID`), so that nothing takes them for
/// a checkpoint.
inline constexpr std::string_view kCheckpointsName = "checkpoints";

std::string step_folder_name(int64_t step);
/// The step of a folder's name; nothing when it is no checkpoint's name.
std::optional<int64_t> step_of(const std::filesystem::path& folder);

/// The step folders in RUN/checkpoints, newest first; none when it does not exist. Says nothing of
/// their state. Throws IoError when it cannot be read.
std::vector<std::filesystem::path> list_step_folders(const std::filesystem::path& checkpoints);

/// A hidden sibling's path, of this process: FOLDER's name with a dot before and `.LABEL-PID`
/// behind.
std::filesystem::path hidden_sibling(const std::filesystem::path& folder, std::string_view label);

/// Removes what killed processes left behind: every hidden sibling. Throws IoError.
void remove_leftovers(const std::filesystem::path& checkpoints);

/// Puts `folder` in the place of `destination` in one step that a crash cannot split. An earlier
/// checkpoint there is removed afterwards. Throws IoError.
void move_into_place(const std::filesystem::path& folder, const std::filesystem::path& destination);

/// Removes checkpoints older than `step` until, with it, at most `keep` whole ones remain; newer
/// ones are left alone (they belong to a run that somebody went back from), and so are damaged ones
/// between those that are kept. A folder is renamed before it is emptied, so that no half of it is
/// ever taken for a checkpoint. Appends what was removed, and what could not be and why.
void remove_old_checkpoints(const std::filesystem::path& checkpoints, int64_t step, int64_t keep,
                            std::vector<std::filesystem::path>& removed,
                            std::vector<std::string>& warnings);

}  // namespace gradus
