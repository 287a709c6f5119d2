#include "parallel/mpi_communicator.h"

#include "core/error.h"
#include "parallel/mpi_engine.h"

namespace gradus {
namespace {

void require_cpu(Collective collective, const MpiGroup& group, const ConstTensor& tensor) {
  if (tensor.device() == Device::cpu) return;
  throw ShapeError("{} of group {} got {} in device memory; MPI moves CPU tensors",
                   to_string(collective), group.name, describe(tensor));
}

}  // namespace

MpiCommunicator::MpiCommunicator(MpiEngine& engine, MpiGroup& group, Job& job)
    : Communicator(group.name, group.rank, group.world_ranks, job),
      engine_(engine),
      group_(group) {}

MpiCommunicator::~MpiCommunicator() { engine_.release(group_); }

Traffic MpiCommunicator::traffic(Collective collective) const {
  Traffic traffic = Communicator::traffic(collective);
  traffic.sent = group_.sent[static_cast<size_t>(collective)];
  return traffic;
}

Pending MpiCommunicator::start(Collective collective, const Tensor& out, const ConstTensor& in,
                               int64_t count, ReduceOp op, int root) {
  require_cpu(collective, group_, in);
  MpiOperationSpec spec;
  spec.collective = collective;
  spec.op = op;
  spec.dtype = in.dtype();
  spec.out = out.data();
  spec.in = in.data();
  spec.count = count;
  spec.root = root;
  return Pending(engine_, engine_.submit(group_, spec), collective, out);
}

Pending MpiCommunicator::start_all_reduce(Executor&, const Tensor& out, const ConstTensor& in,
                                          ReduceOp op) {
  return start(Collective::all_reduce, out, in, in.numel(), op);
}

Pending MpiCommunicator::start_all_gather(Executor&, const Tensor& out, const ConstTensor& in) {
  return start(Collective::all_gather, out, in, in.numel());
}

Pending MpiCommunicator::start_reduce_scatter(Executor&, const Tensor& out, const ConstTensor& in,
                                              ReduceOp op) {
  return start(Collective::reduce_scatter, out, in, out.numel(), op);
}

Pending MpiCommunicator::start_all_to_all(Executor&, const Tensor& out, const ConstTensor& in) {
  return start(Collective::all_to_all, out, in, in.numel() / size());
}

Pending MpiCommunicator::start_broadcast(Executor&, const Tensor& inout, int root) {
  return start(Collective::broadcast, inout, inout, inout.numel(), ReduceOp::sum, root);
}

Pending MpiCommunicator::start_exchange(Executor&, std::span<const Transfer> transfers) {
  MpiOperationSpec spec;
  spec.collective = Collective::exchange;
  for (const Transfer& transfer : transfers) {
    require_cpu(Collective::exchange, group_, transfer.tensor);
    spec.count += transfer.tensor.bytes();
  }
  return Pending(engine_, engine_.submit(group_, spec, transfers), Collective::exchange, Tensor());
}

Pending MpiCommunicator::start_barrier(Executor&, bool watched) {
  MpiOperationSpec spec;
  spec.collective = Collective::barrier;
  spec.watched = watched;
  return Pending(engine_, engine_.submit(group_, spec), Collective::barrier, Tensor());
}

}  // namespace gradus
