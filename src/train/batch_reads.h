#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "core/error.h"
#include "core/executor.h"
#include "data/loader.h"
#include "parallel/parallelism.h"

namespace gradus {

/// A rank could not read what it was to compute on, or ranks of one replica read different tokens.
/// Thrown by all ranks together, before anything was computed: the weights are whole.
class UnusableBatch : public DataError {
 public:
  using DataError::DataError;
};

/// What this rank reads, and whether all ranks have what they need. What a rank reads is decided by
/// its replica: the ranks of tp and pp compute on the same tokens.
class BatchReads {
 public:
  static constexpr int64_t kSums = 3;  ///< fp64 that agree() adds over all ranks

  /// Must outlive this.
  explicit BatchReads(const Parallelism& parallel) : parallel_(parallel) {}

  /// Loader::read. Its DataError or IoError waits for agree(), since the other ranks are on their
  /// way there; until then inputs and targets are a batch that teaches nothing.
  void read(const Loader& loader, int64_t first_sample, std::span<int32_t> inputs,
            std::span<int32_t> targets);

  /// Ends a batch that was read, or that was made without reading: the sum over replicas of
  /// `targets`, which the ranks of one replica give alike. Collective over all ranks. Throws
  /// UnusableBatch, with the first rank that cannot read or that differs.
  int64_t agree(Executor& x, int64_t targets);

 private:
  [[noreturn]] void refuse_unread(Executor& x) const;
  [[noreturn]] void refuse_different(Executor& x) const;
  bool first_of_replica() const;
  double weight_in_replica() const;

  const Parallelism& parallel_;
  uint32_t tokens_hash_ = 0;  ///< of all that was read since the last agree()
  int64_t first_sample_ = 0;  ///< of what was read last
  std::string error_;         ///< the first one
};

}  // namespace gradus
