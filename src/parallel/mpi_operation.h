#pragma once

#include <mpi.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "parallel/communicator.h"

namespace gradus {

/// Throws MpiError with MPI's own text when `code` is not MPI_SUCCESS.
void check_mpi(int code, const char* call);

/// How messages are cut and which algorithm small tensors take. Equal on all ranks.
struct MpiLimits {
  int64_t message_bytes = int64_t{1} << 30;  ///< longest single message (MPI counts are int)
  /// all_reduce: up to this many gathered bytes every rank sends its whole tensor to every other;
  /// beyond, reduce-scatter and all-gather. Both give the same bits.
  int64_t direct_bytes = 4096;
  /// broadcast: up to this many bytes the root sends to every rank itself; beyond, it scatters
  /// pieces, which the others gather.
  int64_t flat_broadcast_bytes = int64_t{1} << 16;
};

/// One communicator as the communication thread sees it.
struct MpiGroup {
  MPI_Comm comm = MPI_COMM_NULL;
  int32_t id = 0;  ///< the same on all members, and no other of a member's groups has it
  int rank = 0;
  std::string name;
  std::vector<int> world_ranks;
  std::atomic<int64_t> collectives{0};  ///< called so far on this rank, exchanges not counted
  std::atomic<int64_t> exchanges{0};
  std::array<std::atomic<int64_t>, kCollectives> sent{};

  int size() const { return static_cast<int>(world_ranks.size()); }
  /// Staging memory that a reduction over this group works in.
  int64_t staging_bytes() const;
};

struct MpiMessage {
  bool receive = false;
  int peer = 0;
  std::byte* data = nullptr;  ///< written only when receiving
  int64_t bytes = 0;
};

/// What was asked for.
struct MpiOperationSpec {
  Collective collective = Collective::barrier;
  ReduceOp op = ReduceOp::sum;
  DType dtype = DType::u8;
  std::byte* out = nullptr;
  const std::byte* in = nullptr;
  int64_t count =
      0;  ///< elements: of the whole tensor (all_reduce, broadcast), of a slice (others)
  int root = 0;
  int64_t sequence = 0;  ///< number of this collective (or exchange) within the group, from 0
  bool watched = true;   ///< by the watchdog

  bool reduces() const {
    return collective == Collective::all_reduce || collective == Collective::reduce_scatter;
  }
};

/// "all_reduce 17 of group dp (ranks 0 2 4, 4096 bytes)".
std::string describe(const MpiOperationSpec& spec, const MpiGroup& group);

/// An operation under way: which messages are posted, and what follows when they are through.
/// Reused, so that its request lists stop growing. Used by the communication thread alone.
///
/// Reductions work in chunks on two lanes: while one lane adds up, the other's messages travel.
/// Every rank owns one piece; in a chunk it receives that part of its piece from every other rank
/// (as stored, so bf16 travels as bf16), adds in rank order, and for all_reduce sends the result
/// to all: 2 (N - 1) / N of the tensor sent by each rank, as by a ring.
class MpiOperation {
 public:
  using Clock = std::chrono::steady_clock;

  /// Room for the requests of operations over groups of up to `ranks`.
  void reserve(int ranks);
  /// Posts the first messages. staging: group.staging_bytes() for a reduction, else unused.
  void begin(MpiGroup& group, const MpiOperationSpec& spec, std::span<const MpiMessage> messages,
             const MpiLimits& limits, std::byte* staging);
  /// Tests what is posted and goes on with what has arrived. True when anything moved. Throws
  /// MpiError, also when a message has another size than the one expected.
  bool progress();
  bool finished() const { return lanes_[0].stage == Stage::idle && lanes_[1].stage == Stage::idle; }

  const MpiGroup& group() const { return *group_; }
  const MpiOperationSpec& spec() const { return spec_; }
  Clock::time_point last_progress() const { return last_progress_; }
  /// Time that passed while nobody could look does not count.
  void restart_clock() { last_progress_ = Clock::now(); }
  /// Members with whom messages are still under way.
  std::vector<int> awaited_peers() const;

 private:
  enum class Stage : uint8_t { idle, moving, reducing, gathering };
  struct Posted {
    int peer = 0;
    int bytes = 0;
    bool receive = false;
  };
  struct Lane {
    Stage stage = Stage::idle;
    int64_t chunk = 0;
    std::vector<MPI_Request> requests;
    std::vector<Posted> posted;
    int open = 0;
  };
  struct Range {
    int64_t begin = 0, count = 0;
  };

  int size() const { return group_->size(); }
  int tag(const Lane& lane, bool second_phase) const;
  void post(Lane& lane, bool receive, int peer, std::byte* data, int64_t bytes, int tag);
  void send(Lane& lane, int peer, const std::byte* data, int64_t bytes, int tag);
  void recv(Lane& lane, int peer, std::byte* data, int64_t bytes, int tag);
  bool test(Lane& lane);
  void advance(Lane& lane);

  void begin_reduction();
  Range piece(int owner) const;
  Range chunk_of(int owner, int64_t chunk) const;
  void next_chunk(Lane& lane);
  void reduce_chunk(Lane& lane);
  void gather_chunk(Lane& lane);
  std::byte* staged(const Lane& lane, int peer) const;

  void begin_all_gather();
  void begin_all_to_all();
  void begin_broadcast();
  void gather_broadcast(Lane& lane);
  Range broadcast_piece(int owner) const;

  MpiGroup* group_ = nullptr;
  MpiOperationSpec spec_;
  MpiLimits limits_;
  std::byte* staging_ = nullptr;
  int64_t element_ = 1;
  bool direct_ = false;
  int64_t chunk_elements_ = 0;
  int64_t chunks_ = 0;
  std::array<Lane, 2> lanes_;
  std::vector<const std::byte*> pieces_;
  std::vector<int> indices_;
  std::vector<MPI_Status> statuses_;
  Clock::time_point last_progress_;
};

}  // namespace gradus
