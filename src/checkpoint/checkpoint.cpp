#include "checkpoint/checkpoint.h"

#include <utility>

#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/checkpoint_writer.h"
#include "checkpoint/manifest.h"
#include "checkpoint/tensor_load.h"
#include "core/error.h"
#include "core/mapped_file.h"

namespace gradus {
namespace fs = std::filesystem;
namespace {

/// The newest whole one of `folders` (newest first). Throws when none is.
Checkpoint newest_whole(const fs::path& checkpoints, const std::vector<fs::path>& folders,
                        std::vector<std::string>& refused, CheckpointUse use) {
  std::vector<std::string> reasons;
  for (const fs::path& folder : folders) {
    try {
      Checkpoint checkpoint = Checkpoint::open(folder, use);
      refused.insert(refused.end(), reasons.begin(), reasons.end());
      return checkpoint;
    } catch (const CheckpointError& error) {
      reasons.push_back(error.what());
    }
  }
  throw CheckpointError(
      "{}: none of its {} checkpoints is whole:\n  {}\nMove them away, or start afresh in another "
      "folder",
      checkpoints.string(), folders.size(), fmt::join(reasons, "\n  "));
}

}  // namespace

Checkpoint Checkpoint::open(const fs::path& folder, CheckpointUse use) {
  Checkpoint checkpoint;
  checkpoint.path_ = folder;
  try {
    const Manifest manifest = read_manifest(folder);
    checkpoint.step_ = manifest.step;
    for (const std::string_view name : {kModelFile, kStateFile}) {
      if (!manifest.files.contains(std::string(name))) {
        throw CheckpointError("the manifest does not list {}", name);
      }
    }
    check_sizes(folder, manifest);
    for (const auto& [name, record] : manifest.files) {
      const fs::path path = folder / name;
      if (name == kModelFile || name == kOptimizerFile) {
        if (name == kOptimizerFile && use == CheckpointUse::inference) continue;
        check_record(name, record_of_file(path, record.block_bytes), manifest);
        (name == kModelFile ? checkpoint.model_ : checkpoint.optimizer_) =
            SafetensorsFile::open(path);
      } else {
        std::string bytes(MappedFile(path).bytes());
        check_record(name, record_of(bytes), manifest);
        checkpoint.files_.emplace(name, std::move(bytes));
      }
    }
    checkpoint.state_ = nlohmann::json::parse(checkpoint.file(kStateFile));
    if (const auto step = checkpoint.state_.at("step").get<int64_t>(); step != manifest.step) {
      throw CheckpointError("{} is of step {}, the manifest of step {}", kStateFile, step,
                            manifest.step);
    }
    if (const auto step = step_of(folder); step && *step != manifest.step) {
      throw CheckpointError("its files are of step {}: the folder was renamed", manifest.step);
    }
  } catch (const nlohmann::json::exception& error) {
    throw CheckpointError("{}: {}: {}", folder.string(), kStateFile, error.what());
  } catch (const Error& error) {
    throw CheckpointError("{}: {}", folder.string(), error.what());
  }
  return checkpoint;
}

bool Checkpoint::has_file(std::string_view name) const { return files_.contains(name); }

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

void Checkpoint::load_model(std::span<const TensorDestination> model) const {
  std::vector<std::string> problems;
  check_tensors(*model_, model, problems);
  throw_problems(path_, problems);
  copy_tensors(*model_, model);
}

std::optional<Checkpoint> find_latest(const fs::path& run, std::vector<std::string>& refused,
                                      CheckpointUse use) {
  const fs::path checkpoints = run / kCheckpointsName;
  const std::vector<fs::path> folders = list_step_folders(checkpoints);
  if (folders.empty()) return std::nullopt;
  return newest_whole(checkpoints, folders, refused, use);
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
    const std::vector<fs::path> folders = list_step_folders(checkpoints);
    if (!folders.empty()) return newest_whole(checkpoints, folders, refused, use);
  }
  throw CheckpointError("{}: holds no checkpoint: neither {} nor {}/{} nor {}", path.string(),
                        kManifestName, kCheckpointsName, step_folder_name(500),
                        step_folder_name(500));
}

}  // namespace gradus
