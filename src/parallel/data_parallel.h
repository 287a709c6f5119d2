#pragma once

#include "core/executor.h"
#include "core/parameters.h"
#include "core/tensor.h"
#include "parallel/communicator.h"

namespace gradus {

/// This rank's replica among the replicas of data parallelism: each trains on its part of every
/// global batch, and gradients are summed before weights change. What replicas do not keep twice is
/// the ZeRO level (arXiv:1910.02054).
class DataParallel {
 public:
  /// The only replica.
  DataParallel() = default;
  /// Of a replica that is only planned for: has a place, and no one to talk to. zero: 0, 1 or 2.
  DataParallel(int rank, int size, int64_t zero) : rank_(rank), size_(size), zero_(zero) {}
  /// group must outlive this.
  DataParallel(Communicator& group, int64_t zero) : DataParallel(group.rank(), group.size(), zero) {
    group_ = &group;
  }

  int rank() const { return rank_; }
  int size() const { return size_; }
  /// One replica has nothing to divide.
  Sharding sharding() const { return size_ == 1 ? Sharding::none : static_cast<Sharding>(zero_); }

  /// Starts bucket.grad's sum over replicas: whole, or this replica's shard of it (in place).
  Pending sum_gradients(Executor& x, const Bucket& bucket);
  /// Starts bringing every replica's shard of bucket.value to all of them.
  Pending gather_weights(Executor& x, const Bucket& bucket);
  /// inout = its sum over replicas.
  void all_reduce(Executor& x, const Tensor& inout);

 private:
  Communicator* group_ = nullptr;
  int rank_ = 0;
  int size_ = 1;
  int64_t zero_ = 0;
};

}  // namespace gradus
