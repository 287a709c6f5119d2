#include "model/head.h"

#include <algorithm>

#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/layernorm.h"
#include "kernels/matmul.h"
#include "model/timeline.h"

namespace gradus {
namespace {

/// Logits of a chunk: large enough that the products run at full speed and that the weight gradient
/// is read and written few times, small beside the activations.
constexpr int64_t kChunkElements = int64_t{1} << 24;
constexpr int64_t kSmallestChunk = 64;

/// Rows [begin, begin + count) of the head's tensors.
struct Chunk {
  int64_t begin = 0;
  int64_t count = 0;

  Tensor rows(const Tensor& whole) const {  // of a (B, T, C) tensor, as (count, C)
    return whole.reshape({-1, whole.size(-1)}).slice(0, begin, count);
  }
  ConstTensor targets(const ConstTensor& whole) const {
    return whole.reshape({-1}).slice(0, begin, count);
  }
  Tensor local(const Tensor& chunk_sized) const { return chunk_sized.slice(0, 0, count); }
};

template <typename Body>
void for_each_chunk(const HeadActs& a, const Sizes& sizes, Body&& body) {
  const int64_t rows = sizes.rows();
  const int64_t step = a.logits.size(0);
  for (int64_t begin = 0; begin < rows; begin += step) {
    body(Chunk{begin, std::min(step, rows - begin)});
  }
}

/// From each rank's statistics over its columns those over the whole vocabulary.
void reduce_statistics(Executor& x, const Tensor& whole_max, const Tensor& row_sum,
                       const Tensor& target_logit, const Tensor& row_max, TensorParallel& tp) {
  if (tp.size() == 1) return;
  copy(x, whole_max, row_max);
  tp.all_reduce(x, whole_max, ReduceOp::max);
  cross_entropy_rescale(x, row_sum, row_max, whole_max);
  tp.all_reduce(x, row_sum);
  tp.all_reduce(x, target_logit);
}

/// Steps 3 to 5 for one chunk.
void chunk_forward(Executor& x, const Tensor& loss_sum, HeadActs& a, const HeadParams& w,
                   const ConstTensor& targets, const Chunk& chunk, const Sizes& sizes,
                   TensorParallel& tp) {
  const Tensor logits = chunk.local(a.logits);
  const Tensor row_max = chunk.local(a.row_max);
  const Tensor row_sum = chunk.local(a.row_sum);
  const Tensor target_logit = chunk.local(a.target_logit);
  matmul_forward(x, logits, chunk.rows(a.ln), w.weight, {});  // 3
  cross_entropy_statistics(x, row_max, row_sum, target_logit, logits, chunk.targets(targets),
                           tp.rank() * sizes.V_tp, sizes.V);  // 4
  const Tensor whole_max = chunk.local(a.whole_max);
  reduce_statistics(x, whole_max, row_sum, target_logit, row_max, tp);
  cross_entropy_forward(x, loss_sum, chunk.local(a.lse), whole_max, row_sum, target_logit,
                        chunk.targets(targets));  // 5
}

}  // namespace

HeadParams HeadParams::bind(const Parameters& parameters, bool bias, Tensor Parameter::*view) {
  return {.ln_w = parameters["ln_f.weight"].*view,
          .ln_b = bias ? parameters["ln_f.bias"].*view : Tensor(),
          .weight = parameters["head.weight"].*view};
}

int64_t head_chunk_rows(const Sizes& sizes) {
  return std::min(sizes.rows(), std::max(kSmallestChunk, kChunkElements / sizes.V_tp));
}

void HeadActs::declare(TensorVisitor& visitor, const Sizes& s, const Precision& precision,
                       const TensorParallel& tp, bool backward) {
  const bool sequence_parallel = tp.sequence_parallel();
  const DType act = precision.activation;
  const DType stat = accumulator_of(act);
  const int64_t R = head_chunk_rows(s);
  const auto whole = Lifetime::transient({{instant::kHead, instant::kHeadEnd}});
  const auto during_chunk = Lifetime::transient({{instant::kHeadChunk, instant::kHeadChunk}});
  ln_part = visitor.declare("head.ln", act, {s.B, s.T_part, s.C}, whole);
  ln_mean = visitor.declare("head.ln_mean", stat, {s.B, s.T_part}, whole);
  ln_rstd = visitor.declare("head.ln_rstd", stat, {s.B, s.T_part}, whole);
  ln = sequence_parallel ? visitor.declare("head.ln_full", act, {s.B, s.T, s.C}, whole) : ln_part;
  logits = visitor.declare("head.logits", stat, {R, s.V_tp}, during_chunk);
  row_max = visitor.declare("head.row_max", stat, {R}, during_chunk);
  row_sum = visitor.declare("head.row_sum", stat, {R}, during_chunk);
  target_logit = visitor.declare("head.target_logit", stat, {R}, during_chunk);
  lse = visitor.declare("head.lse", stat, {R}, during_chunk);
  whole_max = tp.size() == 1 ? row_max : visitor.declare("head.whole_max", stat, {R}, during_chunk);
  if (!backward) return;
  dlogits = act == stat ? logits : visitor.declare("head.d_logits", act, {R, s.V_tp}, during_chunk);
  dln = visitor.declare("head.d_ln", act, {s.B, s.T, s.C}, whole);
  dln_part =
      sequence_parallel ? visitor.declare("head.d_ln_part", act, {s.B, s.T_part, s.C}, whole) : dln;
}

void head_forward(Executor& x, const Tensor& loss_sum, HeadActs& a, const HeadParams& w,
                  const ConstTensor& in_part, const ConstTensor& targets, const Sizes& sizes,
                  TensorParallel& tp) {
  layernorm_forward(x, a.ln_part, a.ln_mean, a.ln_rstd, in_part, w.ln_w, w.ln_b);  // 1
  tp.gather(x, a.ln, a.ln_part);                                                   // 2
  for_each_chunk(a, sizes, [&](const Chunk& chunk) {
    chunk_forward(x, loss_sum, a, w, targets, chunk, sizes, tp);
  });
}

void head_forward_backward(Executor& x, const Tensor& loss_sum, const Tensor& dresidual,
                           const HeadParams& dw, HeadActs& a, const HeadParams& w,
                           const ConstTensor& in_part, const ConstTensor& targets,
                           double gradient_scale, const Sizes& sizes, TensorParallel& tp) {
  layernorm_forward(x, a.ln_part, a.ln_mean, a.ln_rstd, in_part, w.ln_w, w.ln_b);  // 1
  tp.gather(x, a.ln, a.ln_part);                                                   // 2
  for_each_chunk(a, sizes, [&](const Chunk& chunk) {
    chunk_forward(x, loss_sum, a, w, targets, chunk, sizes, tp);  // 3 to 5
    const Tensor dlogits = chunk.local(a.dlogits);
    cross_entropy_backward(x, dlogits, chunk.local(a.logits), chunk.local(a.lse),
                           chunk.targets(targets), tp.rank() * sizes.V_tp, sizes.V,
                           gradient_scale);                               // 4, 5
    matmul_backward_input(x, chunk.rows(a.dln), dlogits, w.weight);       // 3a
    matmul_backward_weight(x, dw.weight, {}, dlogits, chunk.rows(a.ln));  // 3b
  });
  tp.gather_backward(x, a.dln_part, a.dln).wait(x);  // 2
  fill(x, dresidual, 0.0);
  layernorm_backward(x, dresidual, dw.ln_w, dw.ln_b, a.dln_part, in_part, w.ln_w, a.ln_mean,
                     a.ln_rstd);  // 1
}

}  // namespace gradus
