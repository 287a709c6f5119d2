#pragma once

#include <cstdint>
#include <filesystem>

#include "checkpoint/checkpoint_writer.h"
#include "checkpoint/safetensors_writer.h"
#include "core/executor.h"
#include "parallel/communicator.h"

namespace gradus {

/// save_checkpoint of several ranks. Each gives the same names, dtypes and shapes, and the pieces
/// that it has; the first rank's state and files are saved, and its result says what was.
/// Collective over world, and over on every rank only when the checkpoint is in place.
///
/// Ranks may lie on machines that each keep pages of a shared file and write them back whole and
/// late, as the clients of NFS do. So a file is cut into blocks of whole pages, every block is put
/// together and written by one rank, which gets what others have of it by message, and its checksum
/// is that of the bytes in that rank's memory.
///
/// Where one rank fails, all of them throw what the lowest that did has to say (IoError, or
/// CheckpointError for what no disk is to blame for), the folder is removed, and earlier
/// checkpoints are as they were.
SaveResult save_together(const std::filesystem::path& run, const CheckpointContents& contents,
                         int64_t keep, Executor& x, Communicator& world,
                         int64_t block_bytes = kBlockBytes);

}  // namespace gradus
