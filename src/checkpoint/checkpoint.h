#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/safetensors.h"
#include "checkpoint/tensor_piece.h"

namespace gradus {

/// What a checkpoint is opened for, and so what of it is read and verified.
enum class CheckpointUse : uint8_t {
  training,   ///< everything
  inference,  ///< all but the optimizer's state
};

/// A checkpoint that was found whole: the manifest is intact and every file that is used has the
/// size and checksum it lists. Other files of its folder are not opened.
class Checkpoint {
 public:
  /// Opens a step folder. Throws CheckpointError, with the folder, the file and what is wrong, when
  /// it is damaged; UnknownFormat (checkpoint/manifest.h) when a newer version wrote it; IoError
  /// when something of it is there and cannot be read, of which nobody knows whether it is damaged.
  static Checkpoint open(const std::filesystem::path& folder,
                         CheckpointUse use = CheckpointUse::training);

  const std::filesystem::path& path() const { return path_; }
  int64_t step() const { return step_; }
  /// state.json as the run saved it.
  const nlohmann::json& state() const { return state_; }
  /// The bytes of state.json, config.yaml or tokenizer.json. Throws CheckpointError when there is
  /// none.
  const std::string& file(std::string_view name) const;

  const SafetensorsFile& model() const { return *model_; }
  /// Null when the checkpoint holds weights only, or was opened for inference.
  const SafetensorsFile* optimizer() const { return optimizer_ ? &*optimizer_ : nullptr; }

  /// Copies weights and optimizer state out, converting between floating-point types. Each file
  /// must hold exactly the tensors named (every rank names all of them, with the pieces that it
  /// holds, if any). Throws one CheckpointError with every difference in names, shapes and types of
  /// both files before anything is written, and one for the first element that is not as its
  /// destination says.
  void load(std::span<const TensorDestination> model,
            std::span<const TensorDestination> optimizer) const;
  /// Throws as load does where the names and shapes of the weights are not these.
  void check_model(std::span<const TensorDestination> model) const;
  /// As load, of the weights alone.
  void load_model(std::span<const TensorDestination> model) const;

 private:
  Checkpoint() = default;
  void read(CheckpointUse use);

  std::filesystem::path path_;
  int64_t step_ = 0;
  nlohmann::json state_;
  std::map<std::string, std::string, std::less<>> files_;
  std::optional<SafetensorsFile> model_;
  std::optional<SafetensorsFile> optimizer_;
};

/// The newest whole checkpoint in RUN/checkpoints; nothing when there is no checkpoint at all.
/// Appends one line for each newer one that is damaged, and how: warn of them. Throws
/// CheckpointError when there are checkpoints but none is whole, for starting afresh beside them is
/// the user's decision; and as Checkpoint::open where a newer one may be whole but cannot be used,
/// for work would be done again beside it.
std::optional<Checkpoint> find_latest(const std::filesystem::path& run,
                                      std::vector<std::string>& refused,
                                      CheckpointUse use = CheckpointUse::training);

/// The checkpoint that a user means by PATH: a step folder, or the newest whole one of a run's
/// folder or of its `checkpoints`. Throws CheckpointError that says what is there instead.
Checkpoint open_checkpoint(const std::filesystem::path& path, std::vector<std::string>& refused,
                           CheckpointUse use = CheckpointUse::training);

}  // namespace gradus
