#include "checkpoint/checkpoint.h"

#include <limits>
#include <utility>

#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/checkpoint_writer.h"
#include "checkpoint/manifest.h"
#include "checkpoint/tensor_load.h"
#include "core/error.h"
#include "core/input_file.h"
#include "core/json_fields.h"

namespace gradus {
namespace fs = std::filesystem;
namespace {

/// Of small files, which are kept in memory.
constexpr int64_t kMaxTextBytes = JsonLimits{}.bytes;

bool is_text(std::string_view name) {
  return name == kStateFile || name == kConfigFile || name == kTokenizerFile;
}

bool is_absent(const fs::path& path) {
  std::error_code error;
  return fs::symlink_status(path, error).type() == fs::file_type::not_found;
}

/// Whether a checkpoint vanished under its reader, as one does that its run rotates away.
bool was_removed(const fs::path& folder) {
  std::error_code error;
  return is_absent(folder) ||
         (fs::is_directory(folder, error) && is_absent(folder / kManifestName));
}

/// The newest whole one in RUN/checkpoints; nothing when there are none. A run that goes on beside
/// this may remove what was listed: that is passed over, and where nothing is left of it, it has
/// newer ones. Only damage makes it turn to an older one. Throws when there are some, and none is
/// whole.
std::optional<Checkpoint> newest_whole(const fs::path& checkpoints,
                                       std::vector<std::string>& refused, CheckpointUse use) {
  std::vector<fs::path> folders = list_step_folders(checkpoints);
  while (!folders.empty()) {
    std::vector<std::string> reasons;
    for (const fs::path& folder : folders) {
      try {
        Checkpoint checkpoint = Checkpoint::open(folder, use);
        refused.insert(refused.end(), reasons.begin(), reasons.end());
        return checkpoint;
      } catch (const UnknownFormat&) {
        throw;
      } catch (const CheckpointError& error) {
        if (!is_absent(folder)) reasons.push_back(error.what());
      }
    }
    std::vector<fs::path> now = list_step_folders(checkpoints);
    if (now == folders) {
      throw CheckpointError(
          "{}: none of its {} checkpoints is whole:\n  {}\nMove them away, or start afresh in "
          "another folder",
          checkpoints.string(), folders.size(), fmt::join(reasons, "\n  "));
    }
    folders = std::move(now);
  }
  return std::nullopt;
}

}  // namespace

Checkpoint Checkpoint::open(const fs::path& folder, CheckpointUse use) {
  Checkpoint checkpoint;
  checkpoint.path_ = folder;
  try {
    checkpoint.read(use);
  } catch (const UnknownFormat& error) {
    throw UnknownFormat(fmt::format("{}: {}", folder.string(), error.what()));
  } catch (const IoError& error) {
    if (was_removed(folder)) {
      throw CheckpointError("{}: was removed while it was read", folder.string());
    }
    throw IoError(
        "the checkpoint {} cannot be read, which does not mean that it is damaged: {}\nMake it "
        "readable, or move it away to go on without it",
        folder.string(), error.what());
  } catch (const Error& error) {
    throw CheckpointError("{}: {}", folder.string(), error.what());
  }
  return checkpoint;
}

void Checkpoint::read(CheckpointUse use) {
  std::error_code error;
  if (fs::is_symlink(path_, error) && !fs::exists(path_, error)) {
    throw IoError("{}: a link, and what it leads to is not there", path_.string());
  }
  const Manifest manifest = read_manifest(path_);
  step_ = manifest.step;
  for (const std::string_view name : {kModelFile, kStateFile}) {
    if (!manifest.files.contains(std::string(name))) {
      throw CheckpointError("the manifest does not list {}", name);
    }
  }
  check_sizes(path_, manifest);
  for (const auto& [name, record] : manifest.files) {
    const fs::path path = path_ / name;
    if (name == kModelFile || (name == kOptimizerFile && use == CheckpointUse::training)) {
      check_record(name, record_of_file(path, record.block_bytes), manifest);
      (name == kModelFile ? model_ : optimizer_) = SafetensorsFile::open(path);
    } else if (is_text(name)) {
      if (record.size > kMaxTextBytes) {
        throw CheckpointError("{} has {} bytes, expected at most {}", name, record.size,
                              kMaxTextBytes);
      }
      std::string bytes = read_small_file(path, kMaxTextBytes);
      check_record(name, record_of(bytes), manifest);
      files_.emplace(name, std::move(bytes));
    }
  }
  state_ = parse_json_or_throw<CheckpointError>(file(kStateFile), std::string(kStateFile));
  const std::string name(kStateFile);
  const int64_t step = JsonFields<CheckpointError>(state_, name)
                           .integer("step", 0, std::numeric_limits<int64_t>::max());
  if (step != manifest.step) {
    throw CheckpointError("{} is of step {}, the manifest of step {}", kStateFile, step,
                          manifest.step);
  }
  if (const auto named = step_of(path_); named && *named != manifest.step) {
    throw CheckpointError("its files are of step {}: the folder was renamed", manifest.step);
  }
}

const std::string& Checkpoint::file(std::string_view name) const {
  const auto found = files_.find(name);
  if (found == files_.end()) {
    throw CheckpointError("{}: the checkpoint has no {}", path_.string(), name);
  }
  return found->second;
}

void Checkpoint::load(std::span<const TensorDestination> model,
                      std::span<const TensorDestination> optimizer) const {
  if (!optimizer_ && !optimizer.empty()) {
    throw CheckpointError("{}: holds weights but no optimizer state to go on from", path_.string());
  }
  std::vector<std::string> problems;
  check_tensors(*model_, model, problems);
  if (optimizer_) check_tensors(*optimizer_, optimizer, problems);
  throw_problems(path_, problems);
  copy_tensors(*model_, model);
  if (optimizer_) copy_tensors(*optimizer_, optimizer);
}

void Checkpoint::check_model(std::span<const TensorDestination> model) const {
  std::vector<std::string> problems;
  check_tensors(*model_, model, problems);
  throw_problems(path_, problems);
}

void Checkpoint::load_model(std::span<const TensorDestination> model) const {
  check_model(model);
  copy_tensors(*model_, model);
}

std::optional<Checkpoint> find_latest(const fs::path& run, std::vector<std::string>& refused,
                                      CheckpointUse use) {
  return newest_whole(run / kCheckpointsName, refused, use);
}

Checkpoint open_checkpoint(const fs::path& given, std::vector<std::string>& refused,
                           CheckpointUse use) {
  // Completed by a shell, a folder's name ends with a slash, and its parent would be itself.
  const fs::path path = given.has_filename() ? given : given.parent_path();
  std::error_code ignored;
  if (!fs::exists(path, ignored)) {
    throw CheckpointError("{}: there is no such folder; give a run's folder or one of its {}/{}",
                          path.string(), kCheckpointsName, step_folder_name(500));
  }
  if (!fs::is_directory(path, ignored)) {
    throw CheckpointError("{}: a checkpoint is a folder; give the one that this file lies in",
                          path.string());
  }
  if (fs::exists(path / kManifestName, ignored) || step_of(path)) {
    return Checkpoint::open(path, use);
  }
  for (const fs::path& checkpoints : {path / kCheckpointsName, path}) {
    if (auto newest = newest_whole(checkpoints, refused, use)) return *std::move(newest);
  }
  throw CheckpointError("{}: holds no checkpoint: neither {} nor {}/{} nor {}", path.string(),
                        kManifestName, kCheckpointsName, step_folder_name(500),
                        step_folder_name(500));
}

}  // namespace gradus
