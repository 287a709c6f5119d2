// Attention as the textbook writes it: the scores of one head as one matrix, softmax row by row,
// and the backward pass of each product. Shares no arithmetic with flash attention, so that each
// checks the other; in fp64 it is the oracle.

#include <cmath>

#include "core/parallel_for.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/attention_geometry.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_plain.cpp"
#include <hwy/foreach_target.h>
// After foreach_target: included once for each instruction set.
#include <hwy/contrib/math/math-inl.h>

#include "kernels/cpu/simd-inl.h"
#include "kernels/validate.h"

// What is the same for every instruction set.
#ifndef GRADUS_KERNELS_CPU_ATTENTION_PLAIN_ONCE
#define GRADUS_KERNELS_CPU_ATTENTION_PLAIN_ONCE
namespace gradus::cpu {

/// Rows of every matrix in scratch are padded with zeros to a multiple of this, so that products
/// work on whole vectors: two of at most 16 lanes.
inline constexpr int64_t kPlainPadding = 32;

constexpr int64_t padded_row(int64_t columns) {
  return (columns + kPlainPadding - 1) / kPlainPadding * kPlainPadding;
}

/// A matrix in scratch.
template <typename T>
struct PlainMatrix {
  T* data = nullptr;
  int64_t rows = 0;
  int64_t columns = 0;

  int64_t stride() const { return padded_row(columns); }
  T* row(int64_t i) const { return data + i * stride(); }
};

/// The matrices of one thread.
template <typename T>
struct PlainMemory {
  PlainMatrix<T> q, k, v, k_transposed, v_transposed, out, dout, weights, dscores, dq, dk, dv;

  /// Lays them out from `memory` on (null: only counts) and returns the number of elements.
  int64_t lay_out(T* memory, int64_t queries, int64_t keys, int64_t head_size) {
    int64_t used = 0;
    const auto place = [&](PlainMatrix<T>& matrix, int64_t rows, int64_t columns) {
      matrix = {memory == nullptr ? nullptr : memory + used, rows, columns};
      used += rows * padded_row(columns);
    };
    for (PlainMatrix<T>* matrix : {&q, &out, &dout, &dq}) place(*matrix, queries, head_size);
    for (PlainMatrix<T>* matrix : {&k, &v, &dk, &dv}) place(*matrix, keys, head_size);
    for (PlainMatrix<T>* matrix : {&k_transposed, &v_transposed}) place(*matrix, head_size, keys);
    for (PlainMatrix<T>* matrix : {&weights, &dscores}) place(*matrix, queries, keys);
    return used;
  }
};

}  // namespace gradus::cpu
#endif  // GRADUS_KERNELS_CPU_ATTENTION_PLAIN_ONCE

HWY_BEFORE_NAMESPACE();
namespace gradus::cpu {
namespace HWY_NAMESPACE {

template <typename T>
using PlainTag = hn::CappedTag<T, kPlainPadding / 2>;

template <typename T>
void clear(const PlainMatrix<T>& matrix) {
  std::fill(matrix.data, matrix.data + matrix.rows * matrix.stride(), T{0});
}

/// out = rows of one head.
template <typename T, typename S>
void read_rows(const PlainMatrix<T>& out, HeadRows<const S> rows) {
  const PlainTag<T> d;
  clear(out);
  for (int64_t i = 0; i < out.rows; ++i) {
    for_each_vector(d, out.columns, [&](int64_t c, size_t lanes) {
      store_some(d, load_some(d, rows[i] + c, lanes), out.row(i) + c, lanes);
    });
  }
}

/// rows of one head = factor · in.
template <typename T, typename S>
void write_rows(HeadRows<S> rows, const PlainMatrix<T>& in, T factor) {
  const PlainTag<T> d;
  const auto scale = hn::Set(d, factor);
  for (int64_t i = 0; i < in.rows; ++i) {
    for_each_vector(d, in.columns, [&](int64_t c, size_t lanes) {
      store_some(d, hn::Mul(scale, load(d, in.row(i) + c)), rows[i] + c, lanes);
    });
  }
}

template <typename T>
void transpose(const PlainMatrix<T>& out, const PlainMatrix<T>& in) {
  clear(out);
  for (int64_t i = 0; i < in.rows; ++i) {
    for (int64_t c = 0; c < in.columns; ++c) out.row(c)[i] = in.row(i)[c];
  }
}

/// The left factor of a product, read through strides: A or its transpose.
template <typename T>
struct LeftFactor {
  const T* data;
  int64_t row_stride;
  int64_t column_stride;
  int64_t rows;
};
template <typename T>
LeftFactor<T> as_is(const PlainMatrix<T>& a) {
  return {a.data, a.stride(), 1, a.rows};
}
template <typename T>
LeftFactor<T> transposed(const PlainMatrix<T>& a) {
  return {a.data, 1, a.stride(), a.columns};
}

/// kRows rows of C += A · B.
template <int kRows, typename T>
HWY_INLINE void multiply_add_rows(const PlainMatrix<T>& c, const LeftFactor<T>& a,
                                  const PlainMatrix<T>& b, int64_t i) {
  const PlainTag<T> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const T* a_row = a.data + i * a.row_stride;
  for (int64_t n = 0; n < c.stride(); n += 2 * lanes) {
    auto c00 = hn::Zero(d), c01 = c00, c10 = c00, c11 = c00;
    auto c20 = c00, c21 = c00, c30 = c00, c31 = c00;
    for (int64_t k = 0; k < b.rows; ++k) {
      const T* a_k = a_row + k * a.column_stride;
      const auto b0 = hn::LoadU(d, b.row(k) + n);
      const auto b1 = hn::LoadU(d, b.row(k) + n + lanes);
      const auto a0 = hn::Set(d, a_k[0]);
      c00 = hn::MulAdd(a0, b0, c00);
      c01 = hn::MulAdd(a0, b1, c01);
      if constexpr (kRows == 4) {
        const auto a1 = hn::Set(d, a_k[a.row_stride]);
        c10 = hn::MulAdd(a1, b0, c10);
        c11 = hn::MulAdd(a1, b1, c11);
        const auto a2 = hn::Set(d, a_k[2 * a.row_stride]);
        c20 = hn::MulAdd(a2, b0, c20);
        c21 = hn::MulAdd(a2, b1, c21);
        const auto a3 = hn::Set(d, a_k[3 * a.row_stride]);
        c30 = hn::MulAdd(a3, b0, c30);
        c31 = hn::MulAdd(a3, b1, c31);
      }
    }
    const auto add_to = [&](int64_t r, hn::Vec<decltype(d)> v0, hn::Vec<decltype(d)> v1) {
      T* to = c.row(i + r) + n;
      hn::StoreU(hn::Add(hn::LoadU(d, to), v0), d, to);
      hn::StoreU(hn::Add(hn::LoadU(d, to + lanes), v1), d, to + lanes);
    };
    add_to(0, c00, c01);
    if constexpr (kRows == 4) {
      add_to(1, c10, c11);
      add_to(2, c20, c21);
      add_to(3, c30, c31);
    }
  }
}

/// C += A · B.
template <typename T>
void multiply_add(const PlainMatrix<T>& c, const LeftFactor<T>& a, const PlainMatrix<T>& b) {
  int64_t i = 0;
  for (; i + 4 <= a.rows; i += 4) multiply_add_rows<4>(c, a, b, i);
  for (; i < a.rows; ++i) multiply_add_rows<1>(c, a, b, i);
}

/// e^x; Highway's own gives 0 for NaN.
template <class D>
HWY_INLINE hn::Vec<D> exponential(D d, hn::Vec<D> x) {
  return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(d, x));
}

/// row = exp(scale · row - shift) where seen, else 0.
template <typename T>
void exponentiate_row(T* HWY_RESTRICT row, const KeyRange& seen, int64_t stride, T scale, T shift) {
  const PlainTag<T> d;
  std::fill(row, row + seen.begin, T{0});
  for_each_vector(d, seen.end - seen.begin, [&](int64_t j, size_t lanes) {
    const auto score = load_some(d, row + seen.begin + j, lanes);
    store_some(d, exponential(d, hn::MulSub(score, hn::Set(d, scale), hn::Set(d, shift))),
               row + seen.begin + j, lanes);
  });
  std::fill(row + seen.end, row + stride, T{0});
}

/// Softmax of one row of scores in place; returns log Σ exp.
template <typename T>
T softmax_row(T* HWY_RESTRICT row, const KeyRange& seen, int64_t stride, T scale) {
  if (seen.empty()) {
    std::fill(row, row + stride, T{0});
    return -std::numeric_limits<T>::infinity();
  }
  // The largest of scale · score, whatever the scale's sign.
  T max = scale * row[seen.begin];
  for (int64_t j = seen.begin; j < seen.end; ++j) max = std::max(max, scale * row[j]);
  exponentiate_row(row, seen, stride, scale, max);
  T sum = 0;
  for (int64_t j = seen.begin; j < seen.end; ++j) sum += row[j];
  for (int64_t j = seen.begin; j < seen.end; ++j) row[j] /= sum;
  return max + std::log(sum);
}

/// Calls body(j, factor) for the keys of a range with dropout's factor, 0 or 1 / (1 - p).
template <typename Body>
void for_each_dropped(const AttentionSpec& spec, int64_t b, int64_t h, int64_t i,
                      const KeyRange& seen, Body&& body) {
  const Dropout& dropout = spec.dropout;
  std::array<uint32_t, 4> words{};
  for (int64_t j = seen.begin; j < seen.end; ++j) {
    const int64_t position = spec.key_position + j;
    if (j == seen.begin || position % 4 == 0) {
      words = philox4x32(dropout.key, static_cast<uint64_t>(dropout.first_sample + b),
                         dropout_counter(spec, h, i) + static_cast<uint64_t>(position / 4));
    }
    const bool kept = words[static_cast<size_t>(position % 4)] >= dropout.threshold();
    body(j, kept ? dropout.scale() : 0.0);
  }
}

template <typename S>
void plain_forward_of(Executor& x, const Tensor& out, const Tensor& lse, const ConstTensor& q,
                      const ConstTensor& k, const ConstTensor& v, const AttentionSpec& spec) {
  using T = Compute<S>;
  const AttentionSizes sizes(q, k);
  const int64_t per_thread =
      PlainMemory<T>().lay_out(nullptr, sizes.queries, sizes.keys, sizes.head_size);
  Scratch scratch(x);
  T* memory = scratch.take<T>(x.threads() * per_thread);
  parallel_ranges(x, sizes.batch * sizes.heads, 1, [&](int64_t begin, int64_t end, int thread) {
    PlainMemory<T> m;
    m.lay_out(memory + thread * per_thread, sizes.queries, sizes.keys, sizes.head_size);
    for (int64_t head = begin; head < end; ++head) {
      const int64_t b = head / sizes.heads;
      const int64_t h = head % sizes.heads;
      read_rows(m.q, head_rows<S>(q, b, h));
      read_rows(m.k, head_rows<S>(k, b, h / sizes.group()));
      read_rows(m.v, head_rows<S>(v, b, h / sizes.group()));
      transpose(m.k_transposed, m.k);

      clear(m.weights);
      multiply_add(m.weights, as_is(m.q), m.k_transposed);
      for (int64_t i = 0; i < sizes.queries; ++i) {
        const KeyRange seen = visible_keys(spec, b, i, sizes.keys);
        T* row = m.weights.row(i);
        lse.as<T>()[head * sizes.queries + i] =
            softmax_row(row, seen, m.weights.stride(), static_cast<T>(spec.scale));
        if (spec.dropout.active()) {
          for_each_dropped(spec, b, h, i, seen,
                           [&](int64_t j, double factor) { row[j] *= static_cast<T>(factor); });
        }
      }
      clear(m.out);
      multiply_add(m.out, as_is(m.weights), m.v);
      write_rows(head_rows<S>(out, b, h), m.out, T{1});
    }
  });
}

/// weights = what dropout leaves of P, dscores = P ∘ (dropout'(dP) - row_sum), row by row.
template <typename T>
void differentiate_softmax(const PlainMemory<T>& m, const AttentionSpec& spec, int64_t b, int64_t h,
                           const T* lse, T* row_sum) {
  for (int64_t i = 0; i < m.q.rows; ++i) {
    T sum = 0;
    for (int64_t c = 0; c < m.q.columns; ++c) sum += m.dout.row(i)[c] * m.out.row(i)[c];
    row_sum[i] = sum;

    const KeyRange seen = visible_keys(spec, b, i, m.k.rows);
    T* p = m.weights.row(i);
    T* ds = m.dscores.row(i);
    exponentiate_row(p, seen, m.weights.stride(), static_cast<T>(spec.scale),
                     seen.empty() ? T{0} : lse[i]);
    std::fill(ds, ds + seen.begin, T{0});
    std::fill(ds + seen.end, ds + m.dscores.stride(), T{0});
    if (spec.dropout.active()) {
      for_each_dropped(spec, b, h, i, seen, [&](int64_t j, double factor) {
        ds[j] = p[j] * (static_cast<T>(factor) * ds[j] - sum);
        p[j] *= static_cast<T>(factor);
      });
    } else {
      for (int64_t j = seen.begin; j < seen.end; ++j) ds[j] = p[j] * (ds[j] - sum);
    }
  }
}

template <typename S>
void plain_backward_of(Executor& x, const Tensor& dq, const Tensor& dk, const Tensor& dv,
                       const Tensor& row_sum, const ConstTensor& dout, const ConstTensor& out,
                       const ConstTensor& lse, const ConstTensor& q, const ConstTensor& k,
                       const ConstTensor& v, const AttentionSpec& spec) {
  using T = Compute<S>;
  const AttentionSizes sizes(q, k);
  const int64_t per_thread =
      PlainMemory<T>().lay_out(nullptr, sizes.queries, sizes.keys, sizes.head_size);
  Scratch scratch(x);
  T* memory = scratch.take<T>(x.threads() * per_thread);
  parallel_ranges(x, sizes.batch * sizes.kv_heads, 1, [&](int64_t begin, int64_t end, int thread) {
    PlainMemory<T> m;
    m.lay_out(memory + thread * per_thread, sizes.queries, sizes.keys, sizes.head_size);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / sizes.kv_heads;
      const int64_t kv_head = item % sizes.kv_heads;
      read_rows(m.k, head_rows<S>(k, b, kv_head));
      read_rows(m.v, head_rows<S>(v, b, kv_head));
      transpose(m.k_transposed, m.k);
      transpose(m.v_transposed, m.v);
      clear(m.dk);
      clear(m.dv);
      for (int64_t h = kv_head * sizes.group(); h < (kv_head + 1) * sizes.group(); ++h) {
        const int64_t statistics = (b * sizes.heads + h) * sizes.queries;
        read_rows(m.q, head_rows<S>(q, b, h));
        read_rows(m.out, head_rows<S>(out, b, h));
        read_rows(m.dout, head_rows<S>(dout, b, h));
        clear(m.weights);
        multiply_add(m.weights, as_is(m.q), m.k_transposed);  // scores = q kᵀ
        clear(m.dscores);
        multiply_add(m.dscores, as_is(m.dout), m.v_transposed);  // dP = dout vᵀ
        differentiate_softmax(m, spec, b, h, lse.as<T>() + statistics,
                              row_sum.as<T>() + statistics);
        multiply_add(m.dv, transposed(m.weights), m.dout);  // dv = Pᵀ dout
        multiply_add(m.dk, transposed(m.dscores), m.q);     // dk = scale · dSᵀ q
        clear(m.dq);
        multiply_add(m.dq, as_is(m.dscores), m.k);  // dq = scale · dS k
        write_rows(head_rows<S>(dq, b, h), m.dq, static_cast<T>(spec.scale));
      }
      write_rows(head_rows<S>(dk, b, kv_head), m.dk, static_cast<T>(spec.scale));
      write_rows(head_rows<S>(dv, b, kv_head), m.dv, T{1});
    }
  });
}

void plain_forward_any(Executor& x, const Tensor& out, const Tensor& lse, const ConstTensor& q,
                       const ConstTensor& k, const ConstTensor& v, const AttentionSpec& spec) {
  dispatch_float("attention_forward", q,
                 [&]<typename S>(S) { plain_forward_of<S>(x, out, lse, q, k, v, spec); });
}

void plain_backward_any(Executor& x, const Tensor& dq, const Tensor& dk, const Tensor& dv,
                        const Tensor& row_sum, const ConstTensor& dout, const ConstTensor& out,
                        const ConstTensor& lse, const ConstTensor& q, const ConstTensor& k,
                        const ConstTensor& v, const AttentionSpec& spec) {
  dispatch_float("attention_backward", q, [&]<typename S>(S) {
    plain_backward_of<S>(x, dq, dk, dv, row_sum, dout, out, lse, q, k, v, spec);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace gradus::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gradus::cpu {

HWY_EXPORT(plain_forward_any);
HWY_EXPORT(plain_backward_any);

void plain_forward(Executor& x, Tensor out, Tensor lse, ConstTensor q, ConstTensor k, ConstTensor v,
                   const AttentionSpec& spec) {
  HWY_DYNAMIC_DISPATCH(plain_forward_any)(x, out, lse, q, k, v, spec);
}

void plain_backward(Executor& x, Tensor dq, Tensor dk, Tensor dv, Tensor row_sum, ConstTensor dout,
                    ConstTensor out, ConstTensor lse, ConstTensor q, ConstTensor k, ConstTensor v,
                    const AttentionSpec& spec) {
  HWY_DYNAMIC_DISPATCH(plain_backward_any)
  (x, dq, dk, dv, row_sum, dout, out, lse, q, k, v, spec);
}

int64_t plain_scratch(const Executor& x, int64_t queries, int64_t keys, int64_t head_size,
                      DType dtype) {
  if (accumulator_of(dtype) == DType::fp64) {
    return scratch_bytes<double>(x.threads() *
                                 PlainMemory<double>().lay_out(nullptr, queries, keys, head_size));
  }
  return scratch_bytes<float>(x.threads() *
                              PlainMemory<float>().lay_out(nullptr, queries, keys, head_size));
}

}  // namespace gradus::cpu
#endif  // HWY_ONCE
