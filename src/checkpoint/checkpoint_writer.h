#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/manifest.h"
#include "checkpoint/tensor_piece.h"

namespace gradus {

inline constexpr std::string_view kModelFile = "model.safetensors";
inline constexpr std::string_view kOptimizerFile = "optimizer.safetensors";
inline constexpr std::string_view kStateFile = "state.json";
inline constexpr std::string_view kConfigFile = "config.yaml";
inline constexpr std::string_view kTokenizerFile = "tokenizer.json";

struct SaveResult {
  std::filesystem::path path;                  ///< RUN/checkpoints/step-00000500
  int64_t bytes = 0;                           ///< of all its files
  std::vector<std::filesystem::path> removed;  ///< older checkpoints
  std::vector<std::string> warnings;           ///< older checkpoints that could not be removed
};

/// Writes a checkpoint into a hidden folder beside its final place. Until commit() nothing looks
/// like a checkpoint, and a failure or destruction removes the folder and leaves earlier
/// checkpoints untouched. With several ranks one holds the writer, all write the tensor files in
/// folder() (SafetensorsWriter), and it commits when all have finished. Throws IoError (path and
/// the system's reason), CheckpointError.
class CheckpointWriter {
 public:
  /// Creates RUN/checkpoints at need and removes what killed processes left in it.
  CheckpointWriter(const std::filesystem::path& run, int64_t step);
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;
  ~CheckpointWriter();

  const std::filesystem::path& folder() const { return folder_; }
  /// A file of tensors in folder(), and what was to be written to it.
  void add_tensors(std::string_view name, FileRecord record);
  /// Writes a small file and puts it on stable storage.
  void add_file(const std::string& name, std::string_view bytes);
  /// state.json: a JSON object; `step` and `format_version` are added. Numbers that JSON does not
  /// have (NaN, infinities) are refused: use step_state_to_json and the like.
  void add_state(nlohmann::json state);
  /// Compares every file with what was to be written to it, and lists that in the manifest; makes
  /// all of it durable; moves the folder into place; removes checkpoints beyond the newest `keep`.
  SaveResult commit(int64_t keep);

 private:
  std::filesystem::path destination_;
  std::filesystem::path folder_;  ///< empty once committed
  Manifest manifest_;             ///< from memory, never from what a disk gives back
};

/// What one process saves by itself. Tensors are views; they are not copied.
struct CheckpointContents {
  int64_t step = 0;
  nlohmann::json state;                      ///< see CheckpointWriter::add_state
  std::map<std::string, std::string> files;  ///< further files by name: config.yaml, tokenizer.json
  std::vector<NamedTensor> model;
  std::vector<NamedTensor> optimizer;  ///< none: the checkpoint holds weights only
};

SaveResult save_checkpoint(const std::filesystem::path& run, const CheckpointContents& contents,
                           int64_t keep);

}  // namespace gradus
