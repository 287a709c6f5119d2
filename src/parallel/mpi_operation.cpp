#include "parallel/mpi_operation.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "parallel/mpi_reduce.h"

namespace gradus {
namespace {

// Tags: 0 for exchanges, whose messages match in program order; above it a window of collectives,
// several of which may be under way in one group, each with two lanes of two phases. The highest
// tag stays below 32767, which every MPI grants.
constexpr int kExchangeTag = 0;
constexpr int64_t kTagWindow = 4096;

constexpr int64_t kStagingBytes = int64_t{2} << 20;
constexpr int64_t kSmallestChunkBytes = int64_t{16} << 10;

}  // namespace

void check_mpi(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw MpiError("{} failed: {}", call, std::string_view(text, static_cast<size_t>(length)));
}

int64_t MpiGroup::staging_bytes() const {
  const int64_t others = std::max<int64_t>(1, size() - 1);
  return std::max(kStagingBytes, 2 * others * kSmallestChunkBytes);
}

std::string describe(const MpiOperationSpec& spec, const MpiGroup& group) {
  const bool whole = spec.collective == Collective::all_reduce ||
                     spec.collective == Collective::broadcast ||
                     spec.collective == Collective::exchange;
  const int64_t bytes = spec.count * size_of(spec.dtype) * (whole ? 1 : group.size());
  return fmt::format("{} {} of group {} (ranks {}, {} bytes)", to_string(spec.collective),
                     spec.sequence, group.name, fmt::join(group.world_ranks, " "), bytes);
}

void MpiOperation::reserve(int ranks) {
  // A send and a receive with every other rank; more only where messages are cut.
  const size_t requests = 2 * static_cast<size_t>(std::max(ranks, 16));
  for (Lane& lane : lanes_) {
    lane.requests.reserve(requests);
    lane.posted.reserve(requests);
  }
  pieces_.reserve(static_cast<size_t>(ranks));
  indices_.resize(std::max(indices_.size(), requests));
  statuses_.resize(std::max(statuses_.size(), requests));
}

void MpiOperation::begin(MpiGroup& group, const MpiOperationSpec& spec,
                         std::span<const MpiMessage> messages, const MpiLimits& limits,
                         std::byte* staging) {
  group_ = &group;
  spec_ = spec;
  limits_ = limits;
  staging_ = staging;
  element_ = size_of(spec.dtype);
  last_progress_ = Clock::now();
  Lane& lane = lanes_[0];
  lane.stage = Stage::moving;
  switch (spec.collective) {
    case Collective::all_reduce:
    case Collective::reduce_scatter:
      begin_reduction();
      break;
    case Collective::all_gather:
      begin_all_gather();
      break;
    case Collective::all_to_all:
      begin_all_to_all();
      break;
    case Collective::broadcast:
      begin_broadcast();
      break;
    case Collective::exchange:
      for (const MpiMessage& message : messages) {
        post(lane, message.receive, message.peer, message.data, message.bytes, kExchangeTag);
      }
      break;
    case Collective::barrier:
      // Empty messages: over when every other rank's has come.
      for (int step = 1; step < size(); ++step) {
        const int to = (group.rank + step) % size();
        const int from = (group.rank + size() - step) % size();
        for (const bool receive : {true, false}) {
          lane.requests.push_back(MPI_REQUEST_NULL);
          lane.posted.push_back({receive ? from : to, 0, receive});
          MPI_Request& request = lane.requests.back();
          ++lane.open;
          check_mpi(
              receive
                  ? MPI_Irecv(nullptr, 0, MPI_BYTE, from, tag(lane, false), group.comm, &request)
                  : MPI_Isend(nullptr, 0, MPI_BYTE, to, tag(lane, false), group.comm, &request),
              receive ? "MPI_Irecv" : "MPI_Isend");
        }
      }
      break;
  }
  for (Lane& each : lanes_) {
    if (each.stage != Stage::idle && each.open == 0) advance(each);
  }
}

bool MpiOperation::progress() {
  bool moved = false;
  for (Lane& lane : lanes_) {
    while (lane.stage != Stage::idle && test(lane)) {
      moved = true;
      if (lane.open > 0) break;
      advance(lane);
    }
  }
  if (moved) last_progress_ = Clock::now();
  return moved;
}

std::vector<int> MpiOperation::awaited_peers() const {
  std::vector<int> peers;
  for (const Lane& lane : lanes_) {
    for (size_t i = 0; i < lane.requests.size(); ++i) {
      if (lane.requests[i] != MPI_REQUEST_NULL) peers.push_back(lane.posted[i].peer);
    }
  }
  std::ranges::sort(peers);
  peers.erase(std::unique(peers.begin(), peers.end()), peers.end());
  return peers;
}

int MpiOperation::tag(const Lane& lane, bool second_phase) const {
  const int lane_index = static_cast<int>(&lane - lanes_.data());
  return 1 + static_cast<int>(spec_.sequence % kTagWindow) * 4 + lane_index * 2 +
         (second_phase ? 1 : 0);
}

void MpiOperation::post(Lane& lane, bool receive, int peer, std::byte* data, int64_t bytes,
                        int tag) {
  for (int64_t at = 0; at < bytes; at += limits_.message_bytes) {
    const int n = static_cast<int>(std::min(limits_.message_bytes, bytes - at));
    lane.requests.push_back(MPI_REQUEST_NULL);
    lane.posted.push_back({peer, n, receive});
    MPI_Request& request = lane.requests.back();
    ++lane.open;
    if (receive) {
      check_mpi(MPI_Irecv(data + at, n, MPI_BYTE, peer, tag, group_->comm, &request), "MPI_Irecv");
    } else {
      check_mpi(MPI_Isend(data + at, n, MPI_BYTE, peer, tag, group_->comm, &request), "MPI_Isend");
      group_->sent[static_cast<size_t>(spec_.collective)].fetch_add(n, std::memory_order_relaxed);
    }
  }
}

void MpiOperation::send(Lane& lane, int peer, const std::byte* data, int64_t bytes, int tag) {
  post(lane, false, peer, const_cast<std::byte*>(data), bytes, tag);
}

void MpiOperation::recv(Lane& lane, int peer, std::byte* data, int64_t bytes, int tag) {
  post(lane, true, peer, data, bytes, tag);
}

bool MpiOperation::test(Lane& lane) {
  const size_t total = lane.requests.size();
  if (indices_.size() < total) {
    indices_.resize(total);
    statuses_.resize(total);
  }
  int completed = 0;
  const int code = MPI_Testsome(static_cast<int>(total), lane.requests.data(), &completed,
                                indices_.data(), statuses_.data());
  if (code != MPI_SUCCESS && code != MPI_ERR_IN_STATUS) check_mpi(code, "MPI_Testsome");
  if (completed == MPI_UNDEFINED) completed = 0;
  for (int i = 0; i < completed; ++i) {
    const MPI_Status& status = statuses_[static_cast<size_t>(i)];
    const Posted& posted = lane.posted[static_cast<size_t>(indices_[static_cast<size_t>(i)])];
    const int peer = group_->world_ranks[static_cast<size_t>(posted.peer)];
    if (code == MPI_ERR_IN_STATUS && status.MPI_ERROR != MPI_SUCCESS) {
      int error_class = MPI_SUCCESS;
      MPI_Error_class(status.MPI_ERROR, &error_class);
      if (error_class == MPI_ERR_TRUNCATE) {
        throw MpiError(
            "{}: rank {} sent more than the {} bytes expected; the ranks disagree about "
            "the operation or its size",
            describe(spec_, *group_), peer, posted.bytes);
      }
      try {
        check_mpi(status.MPI_ERROR, "a message");
      } catch (const MpiError& error) {
        throw MpiError("{}: {} rank {}: {}", describe(spec_, *group_),
                       posted.receive ? "receiving from" : "sending to", peer, error.what());
      }
    }
    if (posted.receive) {
      int bytes = 0;
      check_mpi(MPI_Get_count(&status, MPI_BYTE, &bytes), "MPI_Get_count");
      if (bytes != posted.bytes) {
        throw MpiError(
            "{}: rank {} sent {} bytes, {} were expected; the ranks disagree about the "
            "operation or its size",
            describe(spec_, *group_), peer, bytes, posted.bytes);
      }
    }
  }
  lane.open -= completed;
  return completed > 0;
}

/// All messages of the lane's stage are through (or there were none).
void MpiOperation::advance(Lane& lane) {
  do {
    lane.requests.clear();
    lane.posted.clear();
    switch (lane.stage) {
      case Stage::moving:
        lane.stage = Stage::idle;
        if (spec_.collective == Collective::broadcast) gather_broadcast(lane);
        break;
      case Stage::reducing:
        reduce_chunk(lane);
        if (spec_.collective == Collective::all_reduce && !direct_) {
          gather_chunk(lane);
        } else {
          next_chunk(lane);
        }
        break;
      case Stage::gathering:
        lane.stage = Stage::idle;
        if (spec_.reduces()) next_chunk(lane);
        break;
      case Stage::idle:
        break;
    }
  } while (lane.stage != Stage::idle && lane.open == 0);
}

void MpiOperation::begin_reduction() {
  const int64_t others = size() - 1;
  direct_ = spec_.collective == Collective::all_reduce &&
            spec_.count * element_ * size() <= limits_.direct_bytes;
  // Whole vectors of 64 bytes; a function of the group alone, so that all ranks cut alike.
  chunk_elements_ = group_->staging_bytes() / (2 * others * 64) * 64 / element_;
  const int64_t longest = direct_ ? spec_.count
                          : spec_.collective == Collective::all_reduce
                              ? (spec_.count + size() - 1) / size()
                              : spec_.count;
  chunks_ = (longest + chunk_elements_ - 1) / chunk_elements_;
  pieces_.resize(static_cast<size_t>(size()));
  for (int index = 0; index < 2; ++index) {
    Lane& lane = lanes_[static_cast<size_t>(index)];
    lane.chunk = index - 2;
    next_chunk(lane);
  }
}

/// The elements that `owner` adds up.
MpiOperation::Range MpiOperation::piece(int owner) const {
  if (direct_) return {0, spec_.count};
  if (spec_.collective == Collective::reduce_scatter) return {owner * spec_.count, spec_.count};
  const int64_t begin = spec_.count * owner / size();
  return {begin, spec_.count * (owner + 1) / size() - begin};
}

MpiOperation::Range MpiOperation::chunk_of(int owner, int64_t chunk) const {
  const Range whole = piece(owner);
  const int64_t skip = std::min(whole.count, chunk * chunk_elements_);
  return {whole.begin + skip, std::min(chunk_elements_, whole.count - skip)};
}

std::byte* MpiOperation::staged(const Lane& lane, int peer) const {
  const int64_t slot = peer < group_->rank ? peer : peer - 1;
  const int64_t lane_index = &lane - lanes_.data();
  return staging_ + (lane_index * (size() - 1) + slot) * chunk_elements_ * element_;
}

void MpiOperation::next_chunk(Lane& lane) {
  // Even chunks on one lane, odd ones on the other: a message finds its match by its tag, which
  // names the lane, so ranks must not choose lanes by who is done first.
  lane.stage = Stage::idle;
  lane.chunk += 2;
  if (lane.chunk >= chunks_) return;
  lane.stage = Stage::reducing;
  const Range mine = chunk_of(group_->rank, lane.chunk);
  for (int step = 1; step < size(); ++step) {
    const int from = (group_->rank + size() - step) % size();
    recv(lane, from, staged(lane, from), mine.count * element_, tag(lane, false));
  }
  for (int step = 1; step < size(); ++step) {
    const int to = (group_->rank + step) % size();
    const Range theirs = chunk_of(to, lane.chunk);
    send(lane, to, spec_.in + theirs.begin * element_, theirs.count * element_, tag(lane, false));
  }
}

void MpiOperation::reduce_chunk(Lane& lane) {
  const Range mine = chunk_of(group_->rank, lane.chunk);
  for (int peer = 0; peer < size(); ++peer) {
    pieces_[static_cast<size_t>(peer)] =
        peer == group_->rank ? spec_.in + mine.begin * element_ : staged(lane, peer);
  }
  const int64_t to = spec_.collective == Collective::all_reduce
                         ? mine.begin
                         : mine.begin - piece(group_->rank).begin;
  reduce_in_order(spec_.out + to * element_, pieces_, mine.count, spec_.dtype, spec_.op);
}

/// In place, this overwrites what the lane sent in its first phase; all of that has left.
void MpiOperation::gather_chunk(Lane& lane) {
  lane.stage = Stage::gathering;
  const Range mine = chunk_of(group_->rank, lane.chunk);
  for (int step = 1; step < size(); ++step) {
    const int from = (group_->rank + size() - step) % size();
    const Range theirs = chunk_of(from, lane.chunk);
    recv(lane, from, spec_.out + theirs.begin * element_, theirs.count * element_, tag(lane, true));
  }
  for (int step = 1; step < size(); ++step) {
    const int to = (group_->rank + step) % size();
    send(lane, to, spec_.out + mine.begin * element_, mine.count * element_, tag(lane, true));
  }
}

void MpiOperation::begin_all_gather() {
  Lane& lane = lanes_[0];
  const int64_t bytes = spec_.count * element_;
  std::byte* own = spec_.out + group_->rank * bytes;
  for (int step = 1; step < size(); ++step) {
    const int from = (group_->rank + size() - step) % size();
    recv(lane, from, spec_.out + from * bytes, bytes, tag(lane, false));
  }
  for (int step = 1; step < size(); ++step) {
    send(lane, (group_->rank + step) % size(), spec_.in, bytes, tag(lane, false));
  }
  if (bytes > 0 && spec_.in != own) std::memcpy(own, spec_.in, static_cast<size_t>(bytes));
}

void MpiOperation::begin_all_to_all() {
  Lane& lane = lanes_[0];
  const int64_t bytes = spec_.count * element_;
  for (int step = 1; step < size(); ++step) {
    const int from = (group_->rank + size() - step) % size();
    recv(lane, from, spec_.out + from * bytes, bytes, tag(lane, false));
  }
  for (int step = 1; step < size(); ++step) {
    const int to = (group_->rank + step) % size();
    send(lane, to, spec_.in + to * bytes, bytes, tag(lane, false));
  }
  if (bytes > 0) {
    const int64_t at = group_->rank * bytes;
    std::memcpy(spec_.out + at, spec_.in + at, static_cast<size_t>(bytes));
  }
}

/// What rank `owner` (not the root) gets from the root and passes on to the others.
MpiOperation::Range MpiOperation::broadcast_piece(int owner) const {
  const int64_t bytes = spec_.count * element_;
  if (bytes <= limits_.flat_broadcast_bytes) return {0, bytes};
  const int64_t index = owner < spec_.root ? owner : owner - 1;
  const int64_t begin = bytes * index / (size() - 1);
  return {begin, bytes * (index + 1) / (size() - 1) - begin};
}

void MpiOperation::begin_broadcast() {
  Lane& lane = lanes_[0];
  if (group_->rank != spec_.root) {
    const Range mine = broadcast_piece(group_->rank);
    recv(lane, spec_.root, spec_.out + mine.begin, mine.count, tag(lane, false));
    return;
  }
  for (int step = 1; step < size(); ++step) {
    const int to = (group_->rank + step) % size();
    const Range theirs = broadcast_piece(to);
    send(lane, to, spec_.out + theirs.begin, theirs.count, tag(lane, false));
  }
}

void MpiOperation::gather_broadcast(Lane& lane) {
  if (group_->rank == spec_.root || spec_.count * element_ <= limits_.flat_broadcast_bytes) return;
  lane.stage = Stage::gathering;
  const Range mine = broadcast_piece(group_->rank);
  for (int step = 1; step < size(); ++step) {
    const int from = (group_->rank + size() - step) % size();
    if (from == spec_.root) continue;
    const Range theirs = broadcast_piece(from);
    recv(lane, from, spec_.out + theirs.begin, theirs.count, tag(lane, true));
  }
  for (int step = 1; step < size(); ++step) {
    const int to = (group_->rank + step) % size();
    if (to != spec_.root) send(lane, to, spec_.out + mine.begin, mine.count, tag(lane, true));
  }
}

}  // namespace gradus
