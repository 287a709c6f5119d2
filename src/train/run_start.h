#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "core/executor.h"
#include "parallel/communicator.h"
#include "train/config.h"
#include "train/run_data.h"

namespace gradus {

// What is looked at, and refused, before a run trains: its folder, the checkpoint that it goes on
// from, and whether all ranks start from the same.

/// Throws IoError where run.dir cannot be a folder. Does not make it: the run may yet be refused.
void check_run_folder(const Config& config);

/// The checkpoint that a run goes on from; nothing: it starts afresh. A path is where a run starts
/// that has no checkpoints yet: started again by the same command it goes on from its own newest
/// one. remarks: a line for each checkpoint that was passed over, and one where a path was. Throws
/// ConfigError, CheckpointError, IoError.
std::optional<Checkpoint> checkpoint_to_resume(const Config& config,
                                               std::vector<std::string>& remarks);

/// A run's folder holds its configuration, by which it can be started again; of a folder that was
/// copied or moved it names another folder. file: the configuration, whose run.dir nobody has
/// replaced. Throws ConfigError where it lies in a run's folder that is not run.dir.
void refuse_copied_record(const std::filesystem::path& file, const Config& config);

/// Whether the checkpoint is one of the run's own.
bool belongs_to_run(const Checkpoint& checkpoint, const Config& config);

/// Ranks that go on from different checkpoints, or read different data, would train on: sums over
/// ranks hide that they are of different things. Collective over world. Throws CheckpointError or
/// DataError, with the first rank that differs.
void refuse_different_starts(Executor& x, Communicator& world, const Config& config,
                             const std::optional<Checkpoint>& checkpoint, const RunData& data);

/// Makes run.dir at need. Throws IoError.
void make_run_folder(const Config& config);
/// Writes run.dir/config.yaml. Throws IoError.
void write_resolved_config(const Config& config);

/// Every rank writes its part of each checkpoint into the first rank's run.dir. Throws IoError, on
/// every rank, where some rank sees another folder under that name, whatever earlier runs have left
/// there. Collective over world, behind the first rank's make_run_folder.
void refuse_folders_apart(Executor& x, Communicator& world, const Config& config);

}  // namespace gradus
