#include "train/save_together.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "core/error.h"
#include "parallel/gather_values.h"

namespace gradus {
namespace {

// Writing takes as long as it takes.
constexpr bool kUnwatched = false;

/// What went wrong on one of the ranks that save together becomes every rank's error.
class SavingRanks {
 public:
  SavingRanks(Executor& x, Communicator& world) : x_(x), world_(world) {}

  Executor& executor() { return x_; }
  Communicator& world() { return world_; }
  bool first() const { return world_.rank() == 0; }
  bool failed() const { return failure_.kind != Kind::none; }

  /// Whether agree() has thrown, on every rank.
  bool all_know() const { return all_know_; }
  /// Waits for all ranks, however long one writes.
  void meet() { world_.barrier(x_, kUnwatched).wait(x_); }

  /// Runs what touches files, and communicates with nobody, unless this rank has failed before.
  template <typename Body>
  void attempt(Body&& body) noexcept {
    if (failed()) return;
    try {
      body();
    } catch (const IoError& error) {
      note(Kind::io, error.what());
    } catch (const std::filesystem::filesystem_error& error) {
      note(Kind::io, error.what());
    } catch (const std::exception& error) {
      note(Kind::other, error.what());
    }
  }

  /// Waits for all ranks. Throws on all of them where one has failed.
  void agree() {
    meet();
    const std::vector<Failure> failures = gather_values(x_, world_, failure_);
    for (size_t rank = 0; rank < failures.size(); ++rank) {
      const Failure& failure = failures[rank];
      if (failure.kind == Kind::none) continue;
      all_know_ = true;
      const std::string text = fmt::format("rank {}: {}", rank, failure.text.data());
      if (failure.kind == Kind::io) throw IoError("{}", text);
      throw CheckpointError("{}", text);
    }
  }

 private:
  enum class Kind : int32_t { none, io, other };
  struct Failure {
    Kind kind = Kind::none;
    std::array<char, 1020> text{};
  };

  void note(Kind kind, std::string_view text) noexcept {
    failure_.kind = kind;
    text.copy(failure_.text.data(), failure_.text.size() - 1);
  }

  Executor& x_;
  Communicator& world_;
  Failure failure_;
  bool all_know_ = false;
};

/// The first rank's text, on every rank.
std::string broadcast_text(Executor& x, Communicator& world, std::string text) {
  int32_t size = static_cast<int32_t>(text.size());
  world.broadcast(x, Tensor(&size, DType::i32, Device::cpu, {1}), 0).wait(x);
  text.resize(static_cast<size_t>(size));
  world.broadcast(x, Tensor(text.data(), DType::u8, Device::cpu, {size}), 0).wait(x);
  return text;
}

/// Before each run of bytes in a message.
struct RunHeader {
  int64_t offset;
  int64_t bytes;
};

void pack(std::span<const FileRun> runs, int64_t begin, int64_t end, std::string& message) {
  message.clear();
  for (const FileRun& run : runs) {
    const int64_t from = std::max(run.offset, begin);
    const int64_t to = std::min(run.end(), end);
    if (from >= to) continue;
    const RunHeader header{from, to - from};
    message.append(reinterpret_cast<const char*>(&header), sizeof(header));
    message +=
        run.bytes.substr(static_cast<size_t>(from - run.offset), static_cast<size_t>(header.bytes));
  }
}

void unpack(std::string_view message, std::vector<FileRun>& runs) {
  while (!message.empty()) {
    RunHeader header{};
    std::memcpy(&header, message.data(), sizeof(header));
    runs.push_back(
        {header.offset, message.substr(sizeof(header), static_cast<size_t>(header.bytes))});
    message.remove_prefix(sizeof(header) + static_cast<size_t>(header.bytes));
  }
}

/// A file of tensors that all ranks write. Block b is rank b % size's. In a round as many blocks as
/// there are ranks (kMostBlocks at most) are exchanged and written.
class SharedFile {
 public:
  SharedFile(SavingRanks& ranks, const SafetensorsLayout& layout, std::vector<FileRun> runs,
             int64_t block_bytes)
      : ranks_(ranks), layout_(layout), runs_(std::move(runs)), block_bytes_(block_bytes) {}

  /// The record of the whole file, on every rank.
  FileRecord write();

 private:
  static constexpr int64_t kMostBlocks = 16;
  /// How much a rank has for each block of a round.
  struct Announcement {
    std::array<int64_t, kMostBlocks> bytes{};
    bool failed = false;
  };

  int64_t owner(int64_t block) const { return block % ranks_.world().size(); }
  int64_t blocks() const { return blocks_of(layout_.size(), block_bytes_); }
  /// False when some rank has failed: nobody goes on.
  bool write_round(int64_t first, int64_t count);
  void exchange(int64_t first, int64_t count, const std::vector<Announcement>& all);
  void write_block(int64_t block);
  std::vector<BlockHash> gather_hashes();

  SavingRanks& ranks_;
  const SafetensorsLayout& layout_;
  std::vector<FileRun> runs_;
  int64_t block_bytes_;
  std::optional<SafetensorsWriter> writer_;
  std::vector<BlockHash> hashes_;  // of this rank's blocks
  std::array<std::string, kMostBlocks> outgoing_;
  std::vector<std::string> incoming_;  // by rank, for this rank's block of the round
  std::vector<Transfer> transfers_;
  std::vector<FileRun> block_runs_;
};

FileRecord SharedFile::write() {
  ranks_.attempt([&] {
    if (ranks_.first()) SafetensorsWriter::create(layout_);
  });
  ranks_.agree();
  ranks_.attempt([&] { writer_.emplace(layout_, block_bytes_); });
  const int64_t at_once = std::min<int64_t>(ranks_.world().size(), kMostBlocks);
  for (int64_t first = 0; first < blocks(); first += at_once) {
    if (!write_round(first, std::min(at_once, blocks() - first))) break;
  }
  ranks_.attempt([&] { writer_->finish(); });
  ranks_.agree();
  return record_of_blocks(layout_.size(), block_bytes_, gather_hashes());
}

bool SharedFile::write_round(int64_t first, int64_t count) {
  // The last round's writing may have kept any rank for long.
  ranks_.meet();
  Announcement mine{.failed = ranks_.failed()};
  for (int64_t i = 0; i < count; ++i) {
    std::string& message = outgoing_[static_cast<size_t>(i)];
    const int64_t begin = (first + i) * block_bytes_;
    const int64_t end = begin + block_bytes_;
    pack(runs_within(runs_, begin, end), begin, end, message);
    mine.bytes[static_cast<size_t>(i)] = static_cast<int64_t>(message.size());
  }
  const std::vector<Announcement> all = gather_values(ranks_.executor(), ranks_.world(), mine);
  if (std::ranges::any_of(all, &Announcement::failed)) return false;
  exchange(first, count, all);
  for (int64_t i = 0; i < count; ++i) {
    if (owner(first + i) != ranks_.world().rank()) continue;
    ranks_.attempt([&] { write_block(first + i); });
  }
  return true;
}

void SharedFile::exchange(int64_t first, int64_t count, const std::vector<Announcement>& all) {
  Communicator& world = ranks_.world();
  incoming_.resize(all.size());
  transfers_.clear();
  const auto bytes = [](std::string& message) {
    return Tensor(message.data(), DType::u8, Device::cpu, {static_cast<int64_t>(message.size())});
  };
  for (int64_t i = 0; i < count; ++i) {
    const int to = static_cast<int>(owner(first + i));
    std::string& message = outgoing_[static_cast<size_t>(i)];
    if (to != world.rank()) {
      if (!message.empty()) transfers_.push_back(Transfer::send(bytes(message), to));
      continue;
    }
    for (int from = 0; from < world.size(); ++from) {
      std::string& into = incoming_[static_cast<size_t>(from)];
      if (from == world.rank()) {
        into.swap(message);
        continue;
      }
      into.resize(
          static_cast<size_t>(all[static_cast<size_t>(from)].bytes[static_cast<size_t>(i)]));
      if (!into.empty()) transfers_.push_back(Transfer::recv(bytes(into), from));
    }
  }
  world.exchange(ranks_.executor(), transfers_).wait(ranks_.executor());
}

void SharedFile::write_block(int64_t block) {
  block_runs_.clear();
  for (const std::string& message : incoming_) unpack(message, block_runs_);
  hashes_.push_back(writer_->write(block, block_runs_));
}

std::vector<BlockHash> SharedFile::gather_hashes() {
  Communicator& world = ranks_.world();
  const int64_t each = blocks_of(blocks(), world.size());
  hashes_.resize(static_cast<size_t>(each));
  std::vector<BlockHash> all(static_cast<size_t>(each * world.size()));
  constexpr int64_t kBytes = sizeof(BlockHash);
  world
      .all_gather(ranks_.executor(),
                  Tensor(all.data(), DType::u8, Device::cpu, {each * world.size() * kBytes}),
                  ConstTensor(hashes_.data(), DType::u8, Device::cpu, {each * kBytes}))
      .wait(ranks_.executor());
  std::vector<BlockHash> in_order;
  for (int64_t block = 0; block < blocks(); ++block) {
    in_order.push_back(all[static_cast<size_t>(owner(block) * each + block / world.size())]);
  }
  return in_order;
}

FileRecord write_file(SavingRanks& ranks, const std::filesystem::path& path,
                      const std::vector<NamedTensor>& tensors, int64_t block_bytes) {
  std::optional<SafetensorsLayout> layout;
  std::vector<FileRun> runs;
  ranks.attempt([&] {
    layout.emplace(path, tensors);
    runs = layout->runs_of(tensors, ranks.first());
  });
  ranks.agree();
  const BlockHash mine = hash_of_block(layout->header());
  const auto all = gather_values(ranks.executor(), ranks.world(), mine);
  ranks.attempt([&] {
    if (std::ranges::count(all, mine) == std::ssize(all)) return;
    throw CheckpointError("{}: the ranks declare different tensors", path.string());
  });
  ranks.agree();
  return SharedFile(ranks, *layout, std::move(runs), block_bytes).write();
}

/// writer: made by the first rank.
SaveResult write_checkpoint(SavingRanks& ranks, const std::filesystem::path& run,
                            const CheckpointContents& contents, int64_t keep, int64_t block_bytes,
                            std::optional<CheckpointWriter>& writer) {
  ranks.attempt([&] {
    if (ranks.first()) writer.emplace(run, contents.step);
  });
  ranks.agree();
  const std::filesystem::path folder =
      broadcast_text(ranks.executor(), ranks.world(), writer ? writer->folder().string() : "");
  const FileRecord model = write_file(ranks, folder / kModelFile, contents.model, block_bytes);
  const FileRecord optimizer =
      write_file(ranks, folder / kOptimizerFile, contents.optimizer, block_bytes);
  SaveResult result;
  ranks.attempt([&] {
    if (!ranks.first()) return;
    writer->add_tensors(kModelFile, model);
    writer->add_tensors(kOptimizerFile, optimizer);
    for (const auto& [name, bytes] : contents.files) writer->add_file(name, bytes);
    writer->add_state(contents.state);
    result = writer->commit(keep);
  });
  ranks.agree();
  return result;
}

}  // namespace

SaveResult save_together(const std::filesystem::path& run, const CheckpointContents& contents,
                         int64_t keep, Executor& x, Communicator& world, int64_t block_bytes) {
  SavingRanks ranks(x, world);
  std::optional<CheckpointWriter> writer;
  try {
    return write_checkpoint(ranks, run, contents, keep, block_bytes, writer);
  } catch (const Error&) {
    if (ranks.all_know()) {
      ranks.meet();  // by now everybody has closed its files: what is open NFS does not remove
      writer.reset();
      ranks.meet();
    }
    throw;
  }
}

}  // namespace gradus
