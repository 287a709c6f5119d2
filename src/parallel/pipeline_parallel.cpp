#include "parallel/pipeline_parallel.h"

#include <array>
#include <cstddef>
#include <span>

namespace gradus {

void PipelineParallel::exchange(Executor& x, const ConstTensor& send, const Tensor& recv,
                                int peer) {
  std::array<Transfer, 2> transfers;
  size_t count = 0;
  if (send.defined()) transfers[count++] = Transfer::send(send, peer);
  if (recv.defined()) transfers[count++] = Transfer::recv(recv, peer);
  if (count > 0) group_->exchange(x, std::span(transfers).first(count)).wait(x);
}

void PipelineParallel::exchange_with_next(Executor& x, const ConstTensor& send,
                                          const Tensor& recv) {
  if (!last()) exchange(x, send, recv, stage_ + 1);
}

void PipelineParallel::exchange_with_previous(Executor& x, const ConstTensor& send,
                                              const Tensor& recv) {
  if (!first()) exchange(x, send, recv, stage_ - 1);
}

void PipelineParallel::sum_tied(Executor& x, const Tensor& inout) {
  if (stages_ > 1 && (first() || last())) embedding_->all_reduce(x, inout, inout).wait(x);
}

void PipelineParallel::gather(Executor& x, const Tensor& inout) {
  if (stages_ > 1) group_->all_gather(x, inout, inout.slice(0, stage_, 1)).wait(x);
}

void PipelineParallel::all_reduce(Executor& x, const Tensor& inout) {
  if (stages_ > 1) group_->all_reduce(x, inout, inout).wait(x);
}

}  // namespace gradus
