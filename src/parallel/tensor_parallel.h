#pragma once

#include "core/executor.h"
#include "core/tensor.h"
#include "parallel/communicator.h"

namespace gradus {

/// The transitions between the regions of a block under tensor parallelism: from tensors that every
/// rank has whole (or, under sequence parallelism, T / tp tokens of) into products that are cut
/// over ranks, and back.
///
/// With sequence parallelism (arXiv:2205.05198) gather is an all-gather over tokens and
/// reduce_scatter what its name says; backward they swap. Without it `full` and `part` are one
/// buffer and the two become Megatron's f and g (arXiv:1909.08053): identity one way, all-reduce
/// the other. part (B, T_part, C), full (B, T, C).
class TensorParallel {
 public:
  /// group must outlive this.
  TensorParallel(Communicator& group, bool sequence_parallel)
      : TensorParallel(group.rank(), group.size(), sequence_parallel) {
    group_ = &group;
  }
  /// Of a rank that is only planned for: has sizes, and no one to talk to.
  TensorParallel(int rank, int size, bool sequence_parallel)
      : rank_(rank), size_(size), sequence_parallel_(sequence_parallel && size > 1) {}

  int rank() const { return rank_; }
  int size() const { return size_; }
  bool sequence_parallel() const { return sequence_parallel_; }

  /// Into a column-parallel product: full = the tokens of all ranks.
  void gather(Executor& x, const Tensor& full, const ConstTensor& part);
  /// Its backward: dpart = this rank's tokens of Σ over ranks of dfull. Asynchronous, so that the
  /// weight gradient's product hides it; dfull must not be written before the wait.
  PendingSet gather_backward(Executor& x, const Tensor& dpart, const Tensor& dfull);

  /// Out of a row-parallel product: part = this rank's tokens of Σ over ranks of full.
  void reduce_scatter(Executor& x, const Tensor& part, const Tensor& full);
  /// Its backward: dfull = the tokens of all ranks.
  void reduce_scatter_backward(Executor& x, const Tensor& dfull, const ConstTensor& dpart);

  /// inout = the first rank's.
  void broadcast(Executor& x, const Tensor& inout);
  /// inout = its reduction over ranks.
  void all_reduce(Executor& x, const Tensor& inout, ReduceOp op = ReduceOp::sum);

 private:
  Communicator* group_ = nullptr;
  int rank_;
  int size_;
  bool sequence_parallel_;
};

}  // namespace gradus
