#pragma once

#include <string>
#include <utility>
#include <vector>

#include "kernels/attention.h"
#include "support/tensors.h"

namespace gradus::test {

/// One attention, by its logical sizes and its mask.
struct AttentionCase {
  const char* name;
  int64_t batch = 1, queries = 1, keys = 1, heads = 1, kv_heads = 1, head_size = 1;
  bool causal = true;
  int64_t window = 0, query_position = 0, key_position = 0;
  bool documents = false;
  float dropout = 0.0f;
};

/// Shapes that no tile, panel or vector divides, and every mask.
const std::vector<AttentionCase>& attention_cases();

/// The tensors of one attention. With `strided`, all (B, T, H, D) tensors are slices of wider rows
/// whose other columns must stay as they are.
class AttentionProblem {
 public:
  AttentionProblem(const AttentionCase& c, DType dtype, bool strided = true);

  void forward(Executor& x, AttentionKind kind);
  void backward(Executor& x, AttentionKind kind);
  /// Takes over another problem's inputs, and its out and lse as backward's inputs.
  void take_inputs(const AttentionProblem& from);
  /// Outputs back to NaN.
  void poison_outputs();
  /// Guard zones and neighbouring columns are untouched.
  void check_bounds() const;
  AttentionSpec spec(AttentionKind kind) const;

  TensorPool pool;
  AttentionCase c;
  Tensor q, k, v, dout, document_start;
  Tensor out, lse, dq, dk, dv, row_sum;
  double scale;
  Dropout dropout;

 private:
  Tensor rows(int64_t count, int64_t heads, const char* name);
  void draw(const Tensor& tensor);

  DType dtype_;
  bool strided_;
  std::vector<Tensor> wide_;
  int64_t padding_ = 0;
};

/// max |actual - expected| over max |expected|, or over 0.5 where that is larger: gradients of
/// unit normal inputs are of order one, and those that vanish by mathematics (a query that sees one
/// key) leave only rounding to compare: differences of two sums of as many products as a head is
/// wide, each some units of 2^-24 times its size.
double gradient_error(const ConstTensor& actual, const ConstTensor& expected);

/// What the contract in kernels/attention.h says, element by element in fp64, from the (rounded)
/// inputs of a problem; shares no code with the kernels.
struct AttentionReference {
  explicit AttentionReference(const AttentionProblem& problem);
  /// P after dropout of query i and key j; dropped or unseen: 0.
  double weight(int64_t b, int64_t h, int64_t i, int64_t j) const;

  TensorPool pool;
  Tensor out, lse;
  Tensor weights;  ///< (B, H, T_q, T_k) after dropout
};

}  // namespace gradus::test
