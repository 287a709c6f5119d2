#include "kernels/attention.h"

#include "kernels/cpu/attention.h"
#include "kernels/validate.h"

namespace gradus {
namespace {

/// A (B, T, H, D) tensor of these sizes on x, its last axis contiguous.
void require_heads(const char* operation, const Executor& x, const char* argument,
                   const ConstTensor& tensor, DType dtype, const Shape& expected) {
  require_on_device(operation, x, {{argument, tensor}});
  require_dtype(operation, argument, tensor, dtype);
  require_shape(operation, argument, tensor, expected);
  if (tensor.stride(-1) != 1 && tensor.size(-1) != 1) {
    throw ShapeError("{}: the last axis of {} {} has stride {}, expected 1", operation, argument,
                     describe(tensor), tensor.stride(-1));
  }
}

void require_statistics(const char* operation, const Executor& x, const char* argument,
                        const ConstTensor& tensor, const ConstTensor& q) {
  require_contiguous(operation, x, {{argument, tensor}});
  require_dtype(operation, argument, tensor, accumulator_of(q.dtype()));
  require_shape(operation, argument, tensor, {q.size(0), q.size(2), q.size(1)});
}

void require_dropout(const char* operation, const ConstTensor& q, const ConstTensor& k,
                     const AttentionSpec& spec) {
  const Dropout& dropout = spec.dropout;
  if (!(dropout.p >= 0.0 && dropout.p < 1.0)) {
    throw ShapeError("{}: dropout's p is {}, expected 0 <= p < 1", operation, dropout.p);
  }
  if (!dropout.active()) return;
  // The widths of the fields in the counter, core/rng.h.
  constexpr int64_t kPositions = int64_t{1} << 24;
  constexpr int64_t kHeads = int64_t{1} << 16;
  if (spec.query_position + q.size(1) > kPositions || spec.key_position + k.size(1) > kPositions ||
      dropout.first_head < 0 || dropout.first_head + q.size(2) > kHeads ||
      dropout.first_sample < 0) {
    throw ShapeError(
        "{}: dropout's counters hold {} positions and {} heads; q {} from position {} and head {}, "
        "k {} from position {} do not fit",
        operation, kPositions, kHeads, to_string(q.shape()), spec.query_position,
        dropout.first_head, to_string(k.shape()), spec.key_position);
  }
}

void require_spec(const char* operation, const Executor& x, const ConstTensor& q,
                  const ConstTensor& k, const AttentionSpec& spec) {
  if (spec.query_position < 0 || spec.key_position < 0) {
    throw ShapeError("{}: positions of queries ({}) and keys ({}) must not be negative", operation,
                     spec.query_position, spec.key_position);
  }
  if (spec.window < 0) throw ShapeError("{}: window is {}, expected >= 0", operation, spec.window);
  if (spec.window > 0 && !spec.causal) {
    throw ShapeError("{}: a window ({}) needs causal attention", operation, spec.window);
  }
  if (spec.document_start.defined()) {
    const ConstTensor& starts = spec.document_start;
    require_on_device(operation, x, {{"document_start", starts}});
    require_dtype(operation, "document_start", starts, DType::i32);
    require_shape(operation, "document_start", starts, {q.size(0), q.size(1)});
  }
  require_dropout(operation, q, k, spec);
}

void require_arguments(const char* operation, const Executor& x, const ConstTensor& q,
                       const ConstTensor& k, const ConstTensor& v, const AttentionSpec& spec) {
  if (!q.defined() || q.rank() != 4) {
    throw ShapeError("{}: q is {}, expected (B, T_q, H, D)", operation, describe(q));
  }
  if (!k.defined() || k.rank() != 4 || k.size(2) < 1 || q.size(2) % k.size(2) != 0) {
    throw ShapeError(
        "{}: k is {}, expected (B, T_k, H_kv, D) where H_kv divides the {} heads of q {}",
        operation, describe(k), q.size(2), describe(q));
  }
  if (q.size(2) < 1 || q.size(3) < 1) {
    throw ShapeError("{}: q is {}, expected at least one head and one element a head", operation,
                     describe(q));
  }
  require_heads(operation, x, "q", q, q.dtype(), q.shape());
  const Shape keys{q.size(0), k.size(1), k.size(2), q.size(3)};
  require_heads(operation, x, "k", k, q.dtype(), keys);
  require_heads(operation, x, "v", v, q.dtype(), keys);
  require_spec(operation, x, q, k, spec);
}

}  // namespace

void attention_forward(Executor& x, Tensor out, Tensor lse, ConstTensor q, ConstTensor k,
                       ConstTensor v, const AttentionSpec& spec) {
  constexpr const char* kName = "attention_forward";
  require_arguments(kName, x, q, k, v, spec);
  require_heads(kName, x, "out", out, q.dtype(), q.shape());
  require_statistics(kName, x, "lse", lse, q);
  if (spec.kind == AttentionKind::flash) {
    cpu::flash_forward(x, out, lse, q, k, v, spec);
  } else {
    cpu::plain_forward(x, out, lse, q, k, v, spec);
  }
  x.completed(kName, {out, lse});
}

void attention_backward(Executor& x, Tensor dq, Tensor dk, Tensor dv, Tensor row_sum,
                        ConstTensor dout, ConstTensor out, ConstTensor lse, ConstTensor q,
                        ConstTensor k, ConstTensor v, const AttentionSpec& spec) {
  constexpr const char* kName = "attention_backward";
  require_arguments(kName, x, q, k, v, spec);
  require_heads(kName, x, "dq", dq, q.dtype(), q.shape());
  require_heads(kName, x, "dk", dk, q.dtype(), k.shape());
  require_heads(kName, x, "dv", dv, q.dtype(), k.shape());
  require_heads(kName, x, "dout", dout, q.dtype(), q.shape());
  require_heads(kName, x, "out", out, q.dtype(), q.shape());
  require_statistics(kName, x, "row_sum", row_sum, q);
  require_statistics(kName, x, "lse", lse, q);
  if (spec.kind == AttentionKind::flash) {
    cpu::flash_backward(x, dq, dk, dv, row_sum, dout, out, lse, q, k, v, spec);
  } else {
    cpu::plain_backward(x, dq, dk, dv, row_sum, dout, out, lse, q, k, v, spec);
  }
  x.completed(kName, {dq, dk, dv, row_sum});
}

int64_t attention_scratch(const Executor& x, AttentionKind kind, int64_t queries, int64_t keys,
                          int64_t head_size, DType dtype) {
  return kind == AttentionKind::flash ? cpu::flash_scratch(x, head_size, dtype)
                                      : cpu::plain_scratch(x, queries, keys, head_size, dtype);
}

}  // namespace gradus
