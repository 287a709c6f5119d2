#pragma once

#include <string>
#include <utility>

#include "parallel/communicator.h"

namespace gradus {

/// A group of one rank: every operation is a copy (none when in place) that is over on return.
/// For CPU tensors.
class SelfCommunicator final : public Communicator {
 public:
  SelfCommunicator(std::string name, int world_rank, Job& job)
      : Communicator(std::move(name), 0, {world_rank}, job) {}

 protected:
  Pending start_all_reduce(Executor& x, const Tensor& out, const ConstTensor& in,
                           ReduceOp op) override;
  Pending start_all_gather(Executor& x, const Tensor& out, const ConstTensor& in) override;
  Pending start_reduce_scatter(Executor& x, const Tensor& out, const ConstTensor& in,
                               ReduceOp op) override;
  Pending start_all_to_all(Executor& x, const Tensor& out, const ConstTensor& in) override;
  Pending start_broadcast(Executor& x, const Tensor& inout, int root) override;
  Pending start_exchange(Executor& x, std::span<const Transfer> transfers) override;
  Pending start_barrier(Executor& x, bool watched) override;
};

}  // namespace gradus
