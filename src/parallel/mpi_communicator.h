#pragma once

#include <string>

#include "parallel/communicator.h"

namespace gradus {

class MpiEngine;
struct MpiGroup;

/// A group of two or more ranks that talk over MPI. CPU tensors. Only tells the communication
/// thread (MpiEngine) what to do. engine must outlive it; destroyed by all members.
class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator(MpiEngine& engine, MpiGroup& group, Job& job);
  ~MpiCommunicator() override;

  Traffic traffic(Collective collective) const override;

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

 private:
  /// count: as in MpiOperationSpec.
  Pending start(Collective collective, const Tensor& out, const ConstTensor& in, int64_t count,
                ReduceOp op = ReduceOp::sum, int root = 0);

  MpiEngine& engine_;
  MpiGroup& group_;
};

}  // namespace gradus
