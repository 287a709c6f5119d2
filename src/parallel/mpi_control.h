#pragma once

#include <mpi.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <list>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace gradus {

/// Where a rank stands, as told to a rank that waits for it.
struct MpiRankStatus {
  int64_t collectives = 0;  ///< that it has called in the group asked about
  bool waits = false;       ///< for other ranks
  std::string doing;        ///< "waits in all_gather 4 of group tp (…)"
};

/// Small messages between communication threads, beside the collectives: who has arrived where,
/// and who may print the job's error. They are answered by the communication thread, so also by a
/// rank whose program computes, sleeps or waits, on any node; only a process that is stopped or
/// gone does not answer. Used by the communication thread alone.
class MpiControl {
 public:
  using Clock = std::chrono::steady_clock;
  /// Answers for the group of this id.
  using StatusOf = std::function<MpiRankStatus(int32_t group_id)>;

  /// comm: of all ranks, used for nothing else.
  MpiControl(MPI_Comm comm, StatusOf status_of);

  /// Answers what has come in. Cheap when nothing has.
  void service();
  /// Asks the given ranks; nullopt for one that has not answered in `patience`.
  std::vector<std::optional<MpiRankStatus>> ask(std::span<const int> ranks, int32_t group_id,
                                                std::chrono::milliseconds patience);
  /// True for the first rank of the job that asks. Rank 0 decides; where it does not answer within
  /// `patience`, the next rank does, and after a few this rank itself: rather a message twice than
  /// none.
  bool claim_report(std::chrono::milliseconds patience);
  /// Before MPI_Finalize: withdraws what is still posted.
  void close();

 private:
  enum class Kind : int32_t { status_query, status_reply, claim, claim_reply, claimed };
  struct Message {  // well below the eager limit of every transport: sending never waits
    Kind kind = Kind::status_query;
    int32_t group_id = 0;
    int64_t collectives = 0;
    int32_t granted = 0;
    int32_t waits = 0;
    char doing[224] = "";
  };
  struct Outgoing {
    Message message;
    MPI_Request request = MPI_REQUEST_NULL;
  };

  bool ask_judges(std::chrono::milliseconds patience);
  void tell_claimed() noexcept;
  void listen();
  void send(int rank, const Message& message);
  void handle(int source, const Message& message);

  MPI_Comm comm_;
  StatusOf status_of_;
  int rank_ = 0;
  int size_ = 0;
  bool claimed_ = false;  ///< as far as is known here, somebody has been granted the report
  std::optional<bool> grant_;
  std::vector<std::optional<MpiRankStatus>> replies_;  ///< by rank, while ask() runs
  Message incoming_;
  MPI_Request listening_ = MPI_REQUEST_NULL;
  std::list<Outgoing> outgoing_;
};

}  // namespace gradus
