#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "data/token_shard.h"

namespace gradus {

/// Compares shards with the checksums in their headers: small ones at once, the others on a thread
/// of its own, while training begins. Whoever keeps what was learned from the shards waits for
/// finish() first.
class ShardVerification {
 public:
  /// What takes well under a second, even from a slow disk.
  static constexpr int64_t kAtOnceBytes = int64_t{64} << 20;

  /// The shards must outlive this. The smallest, of together at most at_once_bytes, are verified
  /// before it returns. Throws DataError, IoError.
  explicit ShardVerification(std::vector<const TokenShard*> shards,
                             int64_t at_once_bytes = kAtOnceBytes);

  /// Throws the error that has been found by now. Never waits.
  void check() const;
  /// Waits for the end; throws the error that was found. Calls after the first cost nothing.
  void finish();
  /// Whether finish() has nothing left to do.
  bool finished() const { return !thread_.joinable(); }
  /// Whether finish() would wait.
  bool reading() const { return !finished() && !read_; }

 private:
  void verify_later(const std::stop_token& stop);

  std::vector<const TokenShard*> later_;
  mutable std::mutex mutex_;
  std::exception_ptr error_;
  std::atomic<bool> read_ = false;  ///< all of it, or up to an error
  std::jthread thread_;             ///< last: ends before what it uses; an early end stops it
};

}  // namespace gradus
