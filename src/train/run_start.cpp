#include "train/run_start.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <random>
#include <system_error>
#include <thread>
#include <utility>

#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/checkpoint_writer.h"
#include "core/atomic_file.h"
#include "core/counted.h"
#include "core/error.h"
#include "core/rng.h"
#include "parallel/gather_values.h"

namespace gradus {
namespace {

/// What ranks must have in common to start.
struct Start {
  int64_t step = -1;        ///< of the checkpoint; -1: none
  uint64_t checkpoint = 0;  ///< what it says of itself, as a hash
  int64_t tokens = 0;
  int64_t validation = -1;
  uint64_t training_text = 0;    ///< of the shards, in order
  uint64_t validation_text = 0;  ///< 0: none
  uint64_t tokenizer = 0;

  bool operator==(const Start&) const = default;
};

/// Within one run folder the newest step is the run: steps beyond an older one would be taken for
/// its continuation.
void refuse_going_back(const Checkpoint& checkpoint, const Config& config) {
  if (!belongs_to_run(checkpoint, config)) return;
  const std::filesystem::path checkpoints =
      std::filesystem::path(config.run.dir) / kCheckpointsName;
  const std::vector<std::filesystem::path> folders = list_step_folders(checkpoints);
  const int64_t newest = folders.empty() ? 0 : step_of(folders.front()).value_or(0);
  if (newest > checkpoint.step()) {
    throw ConfigError(
        "checkpoint.resume goes back to step {} of {}, which goes on to step {}: set another "
        "run.dir to branch off, or remove the later folders of {}",
        checkpoint.step(), config.run.dir, newest, checkpoints.string());
  }
}

bool is_same(const std::filesystem::path& a, const std::filesystem::path& b) {
  std::error_code error;
  return std::filesystem::equivalent(a, b, error);
}

/// What checkpoint.resume: PATH means. Where the path is not in the run's own folder, it says where
/// the run starts, and holds no longer once the run has checkpoints of its own.
Checkpoint start_or_go_on(const Config& config, std::vector<std::string>& refused,
                          std::vector<std::string>& remarks) {
  const std::filesystem::path run = config.run.dir;
  const std::filesystem::path checkpoints = run / kCheckpointsName;
  const std::filesystem::path given = config.checkpoint.resume.path;
  std::error_code error;
  std::filesystem::path place = std::filesystem::weakly_canonical(given, error);
  if (!place.has_filename()) place = place.parent_path();
  const bool whole_run = is_same(place, run) || is_same(place, checkpoints);
  const bool own = whole_run || is_same(place.parent_path(), checkpoints);
  if (whole_run || !own) {
    if (std::optional<Checkpoint> newest = find_latest(run, refused)) {
      if (!own) {
        remarks.push_back(fmt::format(
            "checkpoint.resume: {} is where a run starts, and {} has checkpoints of its own: it "
            "goes on from its newest, of step {} (to start from there again, set another "
            "run.dir{})",
            given.string(), run.string(), newest->step(),
            std::filesystem::exists(given, error) ? "" : "; there is nothing at that path now"));
      }
      return *std::move(newest);
    }
  }
  Checkpoint checkpoint = open_checkpoint(given, refused);
  refuse_going_back(checkpoint, config);
  return checkpoint;
}

constexpr int kAttempts = 20;
constexpr std::chrono::milliseconds kBetweenAttempts{100};

constexpr std::string_view kMarkPrefix = ".shared-";

/// A number that no earlier run can have left.
uint64_t draw_mark() {
  std::random_device system;
  return (static_cast<uint64_t>(system()) << 32) | system();
}

std::filesystem::path mark_path(const std::filesystem::path& run, uint64_t mark) {
  return run / fmt::format("{}{:016x}", kMarkPrefix, mark);
}

/// Leaves a file in run.dir for the other ranks to see, and removes those of killed processes.
void leave_mark(const std::filesystem::path& run, uint64_t mark) {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(run, ignored)) {
    if (entry.path().filename().string().starts_with(kMarkPrefix)) {
      std::filesystem::remove(entry.path(), ignored);
    }
  }
  AtomicFile(mark_path(run, mark)).publish();
}

/// Opening a folder makes the client of a network file system ask the server what is in it.
void list_afresh(const std::filesystem::path& folder) {
  std::error_code ignored;
  std::filesystem::directory_iterator(folder.empty() ? "." : folder, ignored);
}

bool sees(const std::filesystem::path& run, uint64_t mark) {
  // A network file system may remember for a while that a file or a folder was not there.
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    std::error_code ignored;
    if (std::filesystem::exists(mark_path(run, mark), ignored)) return true;
    list_afresh(run.parent_path());
    list_afresh(run);
    std::this_thread::sleep_for(kBetweenAttempts);
  }
  return false;
}

}  // namespace

void check_run_folder(const Config& config) {
  const std::filesystem::path run = config.run.dir;
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(run, error);
  if (error == std::errc::not_a_directory ||
      (std::filesystem::exists(status) && !std::filesystem::is_directory(status))) {
    throw IoError("run.dir {} cannot be a folder: it, or what it lies in, is a file; set another",
                  run.string());
  }
  if (const auto whole = std::filesystem::weakly_canonical(run, error);
      whole.has_root_path() && whole == whole.root_path()) {
    throw IoError("run.dir {} is the root of the file system: name a folder of the run's own",
                  run.string());
  }
}

std::optional<Checkpoint> checkpoint_to_resume(const Config& config,
                                               std::vector<std::string>& remarks) {
  const std::filesystem::path run = config.run.dir;
  std::vector<std::string> refused;
  std::optional<Checkpoint> checkpoint;
  switch (config.checkpoint.resume.mode) {
    case Resume::Mode::automatic:
      checkpoint = find_latest(run, refused);
      break;
    case Resume::Mode::from_path:
      checkpoint = start_or_go_on(config, refused, remarks);
      break;
    case Resume::Mode::never:
      if (!list_step_folders(run / kCheckpointsName).empty()) {
        throw ConfigError(
            "checkpoint.resume is never, and {} already holds checkpoints: set another run.dir, or "
            "remove that folder",
            run.string());
      }
      break;
  }
  for (const std::string& line : refused) remarks.push_back("not used: " + line);
  return checkpoint;
}

void refuse_copied_record(const std::filesystem::path& file, const Config& config) {
  std::error_code error;
  const std::filesystem::path folder = file.has_parent_path() ? file.parent_path() : ".";
  const bool record =
      file.filename() == kConfigFile && (std::filesystem::exists(folder / "metrics.jsonl", error) ||
                                         !list_step_folders(folder / kCheckpointsName).empty());
  if (!record || std::filesystem::equivalent(folder, config.run.dir, error)) return;
  throw ConfigError(
      "{} is the record of the run in {}, and says run.dir: {}: the folder was copied or moved. "
      "Add run.dir={} to go on in it, or run.dir={} if that is meant",
      file.string(), folder.string(), config.run.dir, folder.string(), config.run.dir);
}

bool belongs_to_run(const Checkpoint& checkpoint, const Config& config) {
  std::error_code error;
  // Of a link to a checkpoint, where that lies.
  return std::filesystem::equivalent(
      std::filesystem::canonical(checkpoint.path(), error).parent_path(),
      std::filesystem::path(config.run.dir) / kCheckpointsName, error);
}

void refuse_different_starts(Executor& x, Communicator& world, const Config& config,
                             const std::optional<Checkpoint>& checkpoint, const RunData& data) {
  const Start mine{
      .step = checkpoint ? checkpoint->step() : -1,
      .checkpoint =
          checkpoint ? rng_site(checkpoint->state().dump() + checkpoint->file("config.yaml")) : 0,
      .tokens = data.train.token_count(),
      .validation = data.val ? data.val->samples_per_epoch() : -1,
      .training_text = data.train.checksum(),
      .validation_text = data.val ? data.val->checksum() : 0,
      .tokenizer = data.tokenizer->hash()};
  const std::vector<Start> starts = gather_values(x, world, mine);
  const Start& first = starts.front();
  const auto other = std::ranges::find_if(starts, [&](const Start& s) { return s != first; });
  if (other == starts.end()) return;
  const auto rank = other - starts.begin();
  if (other->step != first.step || other->checkpoint != first.checkpoint) {
    const auto found = [](const Start& start) {
      return start.step < 0 ? std::string("none") : fmt::format("that of step {}", start.step);
    };
    throw CheckpointError(
        "the ranks do not go on from one checkpoint: rank 0 found {}, rank {} found {}{}; run.dir "
        "{} (or what checkpoint.resume names) must be a folder that all ranks share",
        found(first), rank, found(*other), other->step == first.step ? " of another run" : "",
        config.run.dir);
  }
  const bool other_text = other->tokens == first.tokens && other->validation == first.validation &&
                          (other->training_text != first.training_text ||
                           other->validation_text != first.validation_text);
  throw DataError(
      "the ranks read different data: rank 0 has {} of training text and {} of validation text, "
      "rank {} has {} and {}{}{}; give all of them the same data.train and data.val, in the same "
      "order",
      counted(first.tokens, "token"), counted(std::max<int64_t>(first.validation, 0), "sample"),
      rank, other->tokens, std::max<int64_t>(other->validation, 0),
      other_text ? ", of other content or order" : "",
      other->tokenizer == first.tokenizer ? "" : ", tokenized by another tokenizer");
}

void make_run_folder(const Config& config) {
  const std::filesystem::path run = config.run.dir;
  std::error_code error;
  std::filesystem::create_directories(run, error);
  if (error) throw IoError("cannot create run.dir {}: {}", run.string(), error.message());
}

void write_resolved_config(const Config& config) {
  AtomicFile file(std::filesystem::path(config.run.dir) / kConfigFile);
  file.write(to_yaml(config));
  file.publish();
}

void refuse_folders_apart(Executor& x, Communicator& world, const Config& config) {
  const std::filesystem::path run = config.run.dir;
  const bool first = world.rank() == 0;
  uint64_t mark = first ? draw_mark() : 0;
  if (first) leave_mark(run, mark);
  world.broadcast(x, Tensor(&mark, DType::u8, Device::cpu, {sizeof(mark)}), 0).wait(x);
  const std::vector<char> seen = gather_values(x, world, sees(run, mark) ? 'y' : 'n');
  if (first) {
    std::error_code ignored;  // the next start removes it
    std::filesystem::remove(mark_path(run, mark), ignored);
  }
  std::vector<int64_t> apart;
  for (size_t rank = 0; rank < seen.size(); ++rank) {
    if (seen[rank] == 'n') apart.push_back(static_cast<int64_t>(rank));
  }
  if (apart.empty()) return;
  throw IoError(
      "run.dir {} of {} {} is not the folder that rank 0 has made: it must be one that all ranks "
      "share",
      run.string(), plural(std::ssize(apart), "rank"), fmt::join(apart, ", "));
}

}  // namespace gradus
