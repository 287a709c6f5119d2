#include "parallel/self_communicator.h"

#include <cstring>

#include "core/error.h"

namespace gradus {
namespace {

Pending copy(Collective collective, const Tensor& out, const ConstTensor& in) {
  if (in.device() != Device::cpu) {
    throw ShapeError("{} of a single rank got {} in device memory; it moves CPU tensors only",
                     to_string(collective), describe(in));
  }
  if (in.bytes() > 0 && out.data() != in.data()) {
    std::memcpy(out.data(), in.data(), static_cast<size_t>(in.bytes()));
  }
  return Pending(collective, out);
}

}  // namespace

Pending SelfCommunicator::start_all_reduce(Executor&, const Tensor& out, const ConstTensor& in,
                                           ReduceOp) {
  return copy(Collective::all_reduce, out, in);
}

Pending SelfCommunicator::start_all_gather(Executor&, const Tensor& out, const ConstTensor& in) {
  return copy(Collective::all_gather, out, in);
}

Pending SelfCommunicator::start_reduce_scatter(Executor&, const Tensor& out, const ConstTensor& in,
                                               ReduceOp) {
  return copy(Collective::reduce_scatter, out, in);
}

Pending SelfCommunicator::start_all_to_all(Executor&, const Tensor& out, const ConstTensor& in) {
  return copy(Collective::all_to_all, out, in);
}

Pending SelfCommunicator::start_broadcast(Executor&, const Tensor& inout, int) {
  return Pending(Collective::broadcast, inout);
}

// Communicator::exchange has refused every transfer: a group of one has no peer.
Pending SelfCommunicator::start_exchange(Executor&, std::span<const Transfer>) { return Pending(); }

Pending SelfCommunicator::start_barrier(Executor&, bool) { return Pending(); }

}  // namespace gradus
