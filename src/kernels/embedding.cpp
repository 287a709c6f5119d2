#include "kernels/embedding.h"

#include "kernels/cpu/embedding.h"
#include "kernels/precision.h"

namespace gradus {
namespace {

void require_tokens(const char* operation, Executor& x, const ConstTensor& rows,
                    const ConstTensor& tokens, const ConstTensor& table) {
  require_contiguous(operation, x,
                     {{"the embedded tokens", rows}, {"tokens", tokens}, {"the table", table}});
  require_rank(operation, "tokens", tokens, 2);
  require_rank(operation, "the table", table, 2);
  require_dtype(operation, "tokens", tokens, DType::i32);
  require_shape(operation, "the embedded tokens", rows,
                {tokens.size(0), tokens.size(1), table.size(1)});
}

void require_positions(const char* operation, Executor& x, const ConstTensor& rows,
                       const ConstTensor& table, int64_t first_position, const Dropout& dropout) {
  require_contiguous(operation, x, {{"the residual stream", rows}, {"the table", table}});
  require_rank(operation, "the residual stream", rows, 3);
  require_shape(operation, "the table", table, {table.size(0), rows.size(2)});
  if (first_position < 0 || first_position + rows.size(1) > table.size(0)) {
    throw ShapeError("{}: positions [{}, {}) are not all in {}", operation, first_position,
                     first_position + rows.size(1), describe(table));
  }
  require_dropout(operation, dropout);
}

}  // namespace

void token_embedding_forward(Executor& x, Tensor out, ConstTensor tokens, ConstTensor weight,
                             int64_t first_row) {
  constexpr const char* kName = "token_embedding_forward";
  require_tokens(kName, x, out, tokens, weight);
  require_precision(kName, out, weight);
  cpu::token_embedding_forward(x, out, tokens, weight, first_row);
  x.completed(kName, {out});
}

void token_embedding_backward(Executor& x, Tensor dweight, ConstTensor dout, ConstTensor tokens,
                              int64_t first_row) {
  constexpr const char* kName = "token_embedding_backward";
  require_tokens(kName, x, dout, tokens, dweight);
  require_dtype(kName, "dweight", dweight, accumulator_of(dout.dtype()));
  cpu::token_embedding_backward(x, dweight, dout, tokens, first_row);
  x.completed(kName, {dweight});
}

void position_embedding_forward(Executor& x, Tensor inout, ConstTensor weight,
                                int64_t first_position, const Dropout& dropout) {
  constexpr const char* kName = "position_embedding_forward";
  require_positions(kName, x, inout, weight, first_position, dropout);
  require_precision(kName, inout, weight);
  cpu::position_embedding_forward(x, inout, weight, first_position, dropout);
  x.completed(kName, {inout});
}

void position_embedding_backward(Executor& x, Tensor dinout, Tensor dweight, int64_t first_position,
                                 const Dropout& dropout) {
  constexpr const char* kName = "position_embedding_backward";
  require_positions(kName, x, dinout, dweight, first_position, dropout);
  require_dtype(kName, "dweight", dweight, accumulator_of(dinout.dtype()));
  cpu::position_embedding_backward(x, dinout, dweight, first_position, dropout);
  x.completed(kName, {dinout, dweight});
}

}  // namespace gradus
