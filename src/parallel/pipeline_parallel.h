#pragma once

#include "core/executor.h"
#include "core/tensor.h"
#include "parallel/communicator.h"

namespace gradus {

/// This rank's stage among the stages of a pipeline, and what passes between neighbours: the
/// residual stream forward, its gradient backward.
class PipelineParallel {
 public:
  /// One stage with the whole model.
  PipelineParallel() = default;
  /// Of a stage that is only planned for: has a place, and no one to talk to.
  PipelineParallel(int stage, int stages) : stage_(stage), stages_(stages) {}
  /// stages: ordered by stage; embedding: first and last of them. Both must outlive this.
  PipelineParallel(Communicator& stages, Communicator& embedding)
      : PipelineParallel(stages.rank(), stages.size()) {
    group_ = &stages;
    embedding_ = &embedding;
  }

  int stage() const { return stage_; }
  int stages() const { return stages_; }
  bool first() const { return stage_ == 0; }
  bool last() const { return stage_ == stages_ - 1; }

  /// Sends to and receives from the following stage, posted together so that the order cannot
  /// deadlock; an undefined tensor is left out. Returns when both are done; does nothing on the
  /// last stage.
  void exchange_with_next(Executor& x, const ConstTensor& send, const Tensor& recv);
  /// The same with the preceding stage; nothing on the first.
  void exchange_with_previous(Executor& x, const ConstTensor& send, const Tensor& recv);

  /// inout = its sum over the first and the last stage, which call this together.
  void sum_tied(Executor& x, const Tensor& inout);
  /// inout (stages): each stage's own element, to all of them.
  void gather(Executor& x, const Tensor& inout);
  /// inout = its sum over stages.
  void all_reduce(Executor& x, const Tensor& inout);

 private:
  void exchange(Executor& x, const ConstTensor& send, const Tensor& recv, int peer);

  Communicator* group_ = nullptr;
  Communicator* embedding_ = nullptr;
  int stage_ = 0;
  int stages_ = 1;
};

}  // namespace gradus
