#include "parallel/mpi_control.h"

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

#include "parallel/mpi_operation.h"

namespace gradus {
namespace {

constexpr int kControlTag = 1;
constexpr std::chrono::milliseconds kPollInterval{1};
// Ranks that decide, one in the absence of the other, who reports.
constexpr int kJudges = 3;
// How long a judge's last word may take to leave.
constexpr std::chrono::milliseconds kLastWord{100};

}  // namespace

MpiControl::MpiControl(MPI_Comm comm, StatusOf status_of)
    : comm_(comm), status_of_(std::move(status_of)) {
  check_mpi(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
  replies_.resize(static_cast<size_t>(size_));
  listen();
}

void MpiControl::listen() {
  check_mpi(MPI_Irecv(&incoming_, sizeof(incoming_), MPI_BYTE, MPI_ANY_SOURCE, kControlTag, comm_,
                      &listening_),
            "MPI_Irecv");
}

void MpiControl::send(int rank, const Message& message) {
  Outgoing& out = outgoing_.emplace_back();
  out.message = message;
  check_mpi(
      MPI_Isend(&out.message, sizeof(Message), MPI_BYTE, rank, kControlTag, comm_, &out.request),
      "MPI_Isend");
}

void MpiControl::service() {
  for (;;) {
    int arrived = 0;
    MPI_Status status;
    check_mpi(MPI_Test(&listening_, &arrived, &status), "MPI_Test");
    if (arrived == 0) break;
    const Message message = incoming_;
    listen();
    handle(status.MPI_SOURCE, message);
  }
  std::erase_if(outgoing_, [](Outgoing& out) {
    int sent = 0;
    check_mpi(MPI_Test(&out.request, &sent, MPI_STATUS_IGNORE), "MPI_Test");
    return sent != 0;
  });
}

void MpiControl::handle(int source, const Message& message) {
  Message reply;
  reply.group_id = message.group_id;
  switch (message.kind) {
    case Kind::status_query: {
      const MpiRankStatus status = status_of_(message.group_id);
      reply.kind = Kind::status_reply;
      reply.collectives = status.collectives;
      reply.waits = status.waits ? 1 : 0;
      const size_t length = std::min(status.doing.size(), sizeof(reply.doing) - 1);
      std::memcpy(reply.doing, status.doing.data(), length);
      send(source, reply);
      break;
    }
    case Kind::status_reply:
      replies_[static_cast<size_t>(source)] =
          MpiRankStatus{message.collectives, message.waits != 0, message.doing};
      break;
    case Kind::claim:
      reply.kind = Kind::claim_reply;
      reply.granted = claimed_ ? 0 : 1;
      claimed_ = true;
      send(source, reply);
      break;
    case Kind::claim_reply:
      grant_ = message.granted != 0;
      break;
    case Kind::claimed:
      claimed_ = true;
      if (!grant_.has_value()) grant_ = false;  // else it was granted to this rank
      break;
  }
}

std::vector<std::optional<MpiRankStatus>> MpiControl::ask(std::span<const int> ranks,
                                                          int32_t group_id,
                                                          std::chrono::milliseconds patience) {
  std::ranges::fill(replies_, std::nullopt);
  for (const int rank : ranks) {
    Message query;
    query.kind = Kind::status_query;
    query.group_id = group_id;
    send(rank, query);
  }
  const Clock::time_point deadline = Clock::now() + patience;
  const auto answered = [&](int rank) { return replies_[static_cast<size_t>(rank)].has_value(); };
  while (!std::ranges::all_of(ranks, answered) && Clock::now() < deadline) {
    service();
    std::this_thread::sleep_for(kPollInterval);
  }
  std::vector<std::optional<MpiRankStatus>> statuses;
  for (const int rank : ranks) statuses.push_back(replies_[static_cast<size_t>(rank)]);
  return statuses;
}

bool MpiControl::claim_report(std::chrono::milliseconds patience) {
  const bool granted = ask_judges(patience);
  claimed_ = true;
  if (rank_ < kJudges) tell_claimed();
  return granted;
}

bool MpiControl::ask_judges(std::chrono::milliseconds patience) {
  for (int judge = 0; judge < std::min(rank_, kJudges) && !claimed_; ++judge) {
    grant_.reset();
    Message claim;
    claim.kind = Kind::claim;
    send(judge, claim);
    const Clock::time_point deadline = Clock::now() + patience;
    while (!grant_.has_value() && Clock::now() < deadline) {
      service();
      std::this_thread::sleep_for(kPollInterval);
    }
    if (grant_.has_value()) return *grant_;
  }
  return !claimed_;
}

/// A rank whose report is decided soon falls silent. Who asks it then would wait in vain, turn to
/// another judge, and get the report a second time.
void MpiControl::tell_claimed() noexcept {
  try {
    Message message;
    message.kind = Kind::claimed;
    for (int rank = 0; rank < size_; ++rank) {
      if (rank != rank_) send(rank, message);
    }
    const Clock::time_point deadline = Clock::now() + kLastWord;
    while (!outgoing_.empty() && Clock::now() < deadline) {
      service();
      std::this_thread::sleep_for(kPollInterval);
    }
  } catch (...) {
    // The decision stands, and a rank that cannot be told is about to be ended.
  }
}

void MpiControl::close() {
  service();
  if (listening_ != MPI_REQUEST_NULL) {
    check_mpi(MPI_Cancel(&listening_), "MPI_Cancel");
    check_mpi(MPI_Wait(&listening_, MPI_STATUS_IGNORE), "MPI_Wait");
  }
  for (Outgoing& out : outgoing_) check_mpi(MPI_Request_free(&out.request), "MPI_Request_free");
}

}  // namespace gradus
