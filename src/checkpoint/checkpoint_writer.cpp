#include "checkpoint/checkpoint_writer.h"

#include <cmath>
#include <system_error>
#include <utility>

#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/manifest.h"
#include "checkpoint/output_file.h"
#include "checkpoint/safetensors_format.h"
#include "checkpoint/safetensors_writer.h"
#include "core/error.h"
#include "core/posix_io.h"
#include "core/printable_text.h"

namespace gradus {
namespace fs = std::filesystem;
namespace {

void create_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw IoError("{}: cannot create folder: {}", folder.string(), error.message());
}

}  // namespace

CheckpointWriter::CheckpointWriter(const fs::path& run, int64_t step) {
  manifest_.step = step;
  if (step < 0) throw CheckpointError("step {} cannot be saved: steps count from 0", step);
  const fs::path checkpoints = run / kCheckpointsName;
  create_folder(checkpoints);
  sync_folder(run);
  remove_leftovers(checkpoints);
  destination_ = checkpoints / step_folder_name(step);
  folder_ = hidden_sibling(destination_, "partial");
  create_folder(folder_);
}

CheckpointWriter::~CheckpointWriter() {
  std::error_code ignored;  // what stays is hidden, and the next save removes it
  if (!folder_.empty()) fs::remove_all(folder_, ignored);
}

void CheckpointWriter::add_tensors(std::string_view name, FileRecord record) {
  manifest_.files[std::string(name)] = std::move(record);
}

void CheckpointWriter::add_file(const std::string& name, std::string_view bytes) {
  if (name.empty() || name.front() == '.' || name.find('/') != std::string::npos ||
      name == kManifestName) {
    throw CheckpointError("a checkpoint cannot hold a file named '{}'", printable(name));
  }
  OutputFile file(folder_ / name, OutputFile::Open::create);
  file.write(0, bytes);
  file.finish();
  manifest_.files[name] = record_of(bytes);
}

void CheckpointWriter::add_state(nlohmann::json state) {
  if (state.is_null()) state = nlohmann::json::object();
  if (!state.is_object()) throw CheckpointError("{} must be a JSON object", kStateFile);
  const nlohmann::json flat = state.flatten();
  for (const auto& [place, value] : flat.items()) {
    if (value.is_number_float() && !std::isfinite(value.get<double>())) {
      throw CheckpointError("{}: {} is {}, which JSON cannot hold", kStateFile, place,
                            value.get<double>());
    }
  }
  for (const char* key : {"step", "format_version"}) {
    if (state.contains(key)) throw CheckpointError("{}: '{}' is reserved", kStateFile, key);
  }
  state["step"] = manifest_.step;
  state["format_version"] = kCheckpointFormatVersion;
  try {
    add_file(std::string(kStateFile), state.dump(2) + "\n");
  } catch (const nlohmann::json::exception& error) {
    throw CheckpointError("{}: {}", kStateFile, error.what());
  }
}

SaveResult CheckpointWriter::commit(int64_t keep) {
  if (keep < 1) throw CheckpointError("at least 1 checkpoint must be kept, not {}", keep);
  SaveResult result;
  result.path = destination_;
  try {
    for (const auto& [name, record] : manifest_.files) {
      result.bytes += record.size;
      check_record(name, record_of_file(folder_ / name, record.block_bytes), manifest_);
    }
  } catch (const CheckpointError& error) {
    // The disk's fault, or the network's on the way to it: another try may go well.
    throw IoError("{}: right after it was written: {}", folder_.string(), error.what());
  }
  const std::string text = to_text(manifest_);
  result.bytes += static_cast<int64_t>(text.size());
  OutputFile file(folder_ / kManifestName, OutputFile::Open::create);
  file.write(0, text);
  file.finish();
  sync_folder(folder_);
  move_into_place(folder_, destination_);
  folder_.clear();
  remove_old_checkpoints(destination_.parent_path(), manifest_.step, keep, result.removed,
                         result.warnings);
  return result;
}

SaveResult save_checkpoint(const fs::path& run, const CheckpointContents& contents, int64_t keep) {
  CheckpointWriter writer(run, contents.step);
  const auto write = [&](std::string_view name, const std::vector<NamedTensor>& tensors) {
    writer.add_tensors(name, write_safetensors(writer.folder() / name, tensors));
  };
  write(kModelFile, contents.model);
  if (!contents.optimizer.empty()) write(kOptimizerFile, contents.optimizer);
  writer.add_state(contents.state);
  for (const auto& [name, bytes] : contents.files) writer.add_file(name, bytes);
  return writer.commit(keep);
}

}  // namespace gradus
