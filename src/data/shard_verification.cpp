#include "data/shard_verification.h"

#include <sys/resource.h>

#include <algorithm>
#include <utility>

namespace gradus {

ShardVerification::ShardVerification(std::vector<const TokenShard*> shards, int64_t at_once_bytes) {
  std::ranges::sort(shards, {}, [](const TokenShard* shard) { return shard->file_size(); });
  int64_t bytes = 0;
  for (const TokenShard* shard : shards) {
    bytes += shard->file_size();
    if (bytes <= at_once_bytes) {
      shard->verify();
    } else {
      later_.push_back(shard);
    }
  }
  if (later_.empty()) return;
  thread_ = std::jthread([this](const std::stop_token& stop) { verify_later(stop); });
}

void ShardVerification::verify_later(const std::stop_token& stop) {
  // Of this thread alone, on Linux: training is not to wait for it. Refused, it is only less
  // polite.
  ::setpriority(PRIO_PROCESS, 0, 19);
  try {
    for (const TokenShard* shard : later_) {
      if (stop.stop_requested()) return;
      shard->verify(stop);
    }
  } catch (...) {
    const std::scoped_lock lock(mutex_);
    error_ = std::current_exception();
  }
  read_ = true;
}

void ShardVerification::check() const {
  const std::scoped_lock lock(mutex_);
  if (error_) std::rethrow_exception(error_);
}

void ShardVerification::finish() {
  if (thread_.joinable()) thread_.join();
  check();
}

}  // namespace gradus
