#include "train/pipeline_schedule.h"

#include <algorithm>

namespace gradus {

int64_t micro_batches_in_flight(const PipelineParallel& pp, int64_t micro_batches) {
  return std::min<int64_t>(micro_batches, pp.stages() - pp.stage());
}

void PipelineSchedule::train(Executor& x, int64_t micro_batches, const Pass& forward,
                             const Pass& backward) {
  const int64_t slots = micro_batches_in_flight(pp_, micro_batches);
  const int64_t ahead = slots - 1;  // forward passes before the first backward pass
  const auto input = [&](int64_t m) { return gpt_.input(m % slots); };
  const auto output = [&](int64_t m) { return gpt_.output(m % slots); };
  const Tensor none;

  for (int64_t m = 0; m < ahead; ++m) {
    pp_.exchange_with_previous(x, none, input(m));
    forward(m, m % slots);
    pp_.exchange_with_next(x, output(m), none);
  }
  pp_.exchange_with_previous(x, none, input(ahead));
  for (int64_t m = 0; m < micro_batches; ++m) {
    const int64_t newest = m + ahead;
    const bool forwards = newest < micro_batches;
    if (forwards) forward(newest, newest % slots);
    pp_.exchange_with_next(x, forwards ? output(newest) : none, gpt_.gradient());
    backward(m, m % slots);
    const bool more = newest + 1 < micro_batches;
    pp_.exchange_with_previous(x, gpt_.gradient(), more ? input(newest + 1) : none);
  }
}

void PipelineSchedule::evaluate(Executor& x, int64_t micro_batches, const Pass& forward) {
  for (int64_t m = 0; m < micro_batches; ++m) {
    pp_.exchange_with_previous(x, Tensor(), gpt_.input(0));
    forward(m, 0);
    pp_.exchange_with_next(x, gpt_.output(0), Tensor());
  }
}

}  // namespace gradus
