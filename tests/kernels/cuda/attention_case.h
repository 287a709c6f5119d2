#pragma once

// One case of attention on the device: random inputs, guarded and poisoned memory, and the errors
// against fp64 on the host. Used by the test and by the ladder's check.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/check.h"

namespace gradus::cuda::testing {

/// Shape and mask of a case; sizes as in AttentionProblem.
struct AttentionCase {
  std::string name;
  AttentionProblem problem;
  bool packed = false;  ///< q, k, v are slices of one (B, T, H + 2 H_kv, D) tensor
  int row_padding = 0;  ///< elements behind each row of heads
  int documents = 0;    ///< documents of about equal length; 0: no document_start
  int variant = kVariantOfTable;
  bool backward = true;
  uint64_t seed = 1;
};

/// ‖got - want‖ / ‖want‖ of each result, and what went wrong beside.
struct AttentionErrors {
  double out = 0, lse = 0, dq = 0, dk = 0, dv = 0, row_sum = 0;
  bool guards = true;      ///< untouched
  bool repeats = true;     ///< a second run gives the same bits
  bool empty_rows = true;  ///< queries that see no key: out = 0, lse = -inf
};

template <typename E>
double to_double(E value) {
  if constexpr (std::is_same_v<E, __nv_bfloat16>) {
    return static_cast<double>(__bfloat162float(value));
  } else if constexpr (std::is_same_v<E, __half>) {
    return static_cast<double>(__half2float(value));
  } else {
    return static_cast<double>(value);
  }
}

template <typename E>
E from_float(float value) {
  if constexpr (std::is_same_v<E, __nv_bfloat16>) {
    return __float2bfloat16_rn(value);
  } else {
    return __float2half_rn(value);
  }
}

/// Device memory of `count` elements, all ones, between guards.
template <typename T>
class GuardedArray {
 public:
  explicit GuardedArray(size_t count) : bytes_(count * sizeof(T)) {
    GRADUS_CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&base_), bytes_ + 2 * kGuard));
    GRADUS_CUDA_CHECK(cudaMemset(base_, kPattern, bytes_ + 2 * kGuard));
    if (bytes_ > 0) GRADUS_CUDA_CHECK(cudaMemset(base_ + kGuard, 0xFF, bytes_));
  }
  explicit GuardedArray(const std::vector<T>& values) : GuardedArray(values.size()) {
    if (bytes_ > 0) {
      GRADUS_CUDA_CHECK(cudaMemcpy(base_ + kGuard, values.data(), bytes_, cudaMemcpyHostToDevice));
    }
  }
  GuardedArray(const GuardedArray&) = delete;
  GuardedArray& operator=(const GuardedArray&) = delete;
  ~GuardedArray() { cudaFree(base_); }

  T* data() const { return reinterpret_cast<T*>(base_ + kGuard); }
  std::vector<T> download() const {
    std::vector<T> values(bytes_ / sizeof(T));
    if (bytes_ > 0) {
      GRADUS_CUDA_CHECK(cudaMemcpy(values.data(), data(), bytes_, cudaMemcpyDeviceToHost));
    }
    return values;
  }
  bool guards_untouched() const {
    std::vector<unsigned char> guard(2 * kGuard);
    GRADUS_CUDA_CHECK(cudaMemcpy(guard.data(), base_, kGuard, cudaMemcpyDeviceToHost));
    GRADUS_CUDA_CHECK(
        cudaMemcpy(guard.data() + kGuard, base_ + kGuard + bytes_, kGuard, cudaMemcpyDeviceToHost));
    for (const unsigned char byte : guard) {
      if (byte != kPattern) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kGuard = 256;
  static constexpr int kPattern = 0x5A;
  unsigned char* base_ = nullptr;
  size_t bytes_ = 0;
};

/// A (B, T, H, D) tensor inside host values of any strides.
struct HostTensor {
  std::vector<double>* values;
  int64_t offset, batch_stride, row_stride, head_stride;

  double& at(int b, int t, int h, int d) const {
    return (*values)[static_cast<size_t>(offset + b * batch_stride + t * row_stride +
                                         h * head_stride + d)];
  }
};

inline bool sees(const AttentionProblem& p, const std::vector<int32_t>& starts, int b, int i,
                 int j) {
  const int64_t query = int64_t{p.query_position} + i;
  const int64_t key = int64_t{p.key_position} + j;
  if (p.causal && key > query) return false;
  if (p.causal && p.window > 0 && key <= query - p.window) return false;
  return starts.empty() || key >= starts[static_cast<size_t>(b) * p.queries + i];
}

/// 0, or 1 / (1 - p).
inline double dropout_factor(const AttentionProblem& p, int b, int h, int i, int j) {
  if (!p.dropout.active()) return 1.0;
  const auto key = static_cast<uint64_t>(p.key_position + j);
  const auto words = philox4x32(p.dropout.key, static_cast<uint64_t>(p.dropout.first_sample + b),
                                static_cast<uint64_t>(p.dropout.first_head + h) << 48 |
                                    static_cast<uint64_t>(p.query_position + i) << 24 | key / 4);
  return words[key % 4] >= p.dropout.threshold() ? p.dropout.scale() : 0.0;
}

/// The contract of kernels/attention.h in fp64, one score at a time.
struct AttentionReference {
  const AttentionProblem& p;
  const std::vector<int32_t>& starts;
  HostTensor q, k, v, dout;    // in
  HostTensor out, dq, dk, dv;  // out
  std::vector<double>& lse;    // (B, H, T_q)
  std::vector<double>& row_sum;

  void run() const {
    for (int b = 0; b < p.batch; ++b) {
      for (int h = 0; h < p.heads; ++h) {
        for (int i = 0; i < p.queries; ++i) query(b, h, i);
      }
    }
  }

 private:
  void query(int b, int h, int i) const {
    const int g = h / (p.heads / p.kv_heads);
    const int D = p.head_size;
    std::vector<double> scores(static_cast<size_t>(p.keys));
    double top = -std::numeric_limits<double>::infinity();
    for (int j = 0; j < p.keys; ++j) {
      double score = -std::numeric_limits<double>::infinity();
      if (sees(p, starts, b, i, j)) {
        score = 0;
        for (int d = 0; d < D; ++d) score += q.at(b, i, h, d) * k.at(b, j, g, d);
        score *= p.scale;
      }
      scores[static_cast<size_t>(j)] = score;
      top = std::max(top, score);
    }
    const size_t at = (static_cast<size_t>(b) * p.heads + h) * p.queries + i;
    for (int d = 0; d < D; ++d) out.at(b, i, h, d) = dq.at(b, i, h, d) = 0;
    row_sum[at] = 0;
    lse[at] = top;
    if (std::isinf(top)) return;
    double sum = 0;
    for (double& score : scores) sum += score = std::exp(score - top);
    lse[at] = top + std::log(sum);
    for (int j = 0; j < p.keys; ++j) {
      const double weight = scores[static_cast<size_t>(j)] /= sum;
      if (weight == 0) continue;
      const double kept = weight * dropout_factor(p, b, h, i, j);
      for (int d = 0; d < D; ++d) out.at(b, i, h, d) += kept * v.at(b, j, g, d);
    }
    for (int d = 0; d < D; ++d) row_sum[at] += dout.at(b, i, h, d) * out.at(b, i, h, d);
    for (int j = 0; j < p.keys; ++j) {
      const double weight = scores[static_cast<size_t>(j)];
      if (weight == 0) continue;
      const double factor = dropout_factor(p, b, h, i, j);
      double dp = 0;
      for (int d = 0; d < D; ++d) dp += dout.at(b, i, h, d) * v.at(b, j, g, d);
      const double ds = p.scale * weight * (dp * factor - row_sum[at]);
      for (int d = 0; d < D; ++d) {
        dv.at(b, j, g, d) += weight * factor * dout.at(b, i, h, d);
        dk.at(b, j, g, d) += ds * q.at(b, i, h, d);
        dq.at(b, i, h, d) += ds * k.at(b, j, g, d);
      }
    }
  }
};

/// Host values and the device's copy of one operand (or of all of a packed one).
template <typename E>
struct Operand {
  Operand(int64_t count, std::mt19937_64* random) : host(static_cast<size_t>(count)) {
    std::vector<E> values(host.size());
    std::normal_distribution<float> normal;
    for (size_t i = 0; random != nullptr && i < host.size(); ++i) {
      values[i] = from_float<E>(normal(*random));
      host[i] = to_double(values[i]);
    }
    device = random == nullptr ? std::make_unique<GuardedArray<E>>(values.size())
                               : std::make_unique<GuardedArray<E>>(values);
  }
  std::vector<double> host;
  std::unique_ptr<GuardedArray<E>> device;
};

/// A part of an operand as the kernels and the reference take it.
struct Slice {
  int64_t offset, batch_stride, row_stride, head_stride;

  template <typename E>
  HostTensor host(Operand<E>& operand) const {
    return {&operand.host, offset, batch_stride, row_stride, head_stride};
  }
  template <typename E>
  HeadTensor<E> device(Operand<E>& operand) const {
    return {operand.device->data() + offset, batch_stride, row_stride, head_stride};
  }
  template <typename E>
  HeadTensor<const E> input(Operand<E>& operand) const {
    return {operand.device->data() + offset, batch_stride, row_stride, head_stride};
  }
};

inline double relative_error(const std::vector<double>& got, const std::vector<double>& want) {
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    if (std::isinf(want[i]) && got[i] == want[i]) continue;
    if (!std::isfinite(got[i]) || std::isinf(want[i]))
      return std::numeric_limits<double>::infinity();
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  // What is zero by mathematics (of a softmax over one key) has no size to compare with: its root
  // mean square, beside operands of about one, may be ten times what an error may be.
  const double count = std::max<double>(1.0, static_cast<double>(want.size()));
  return norm > 1e-18 * count ? std::sqrt(difference / norm) : 0.1 * std::sqrt(difference / count);
}

template <typename T>
std::vector<double> doubles(const std::vector<T>& values) {
  std::vector<double> wide(values.size());
  for (size_t i = 0; i < values.size(); ++i) wide[i] = to_double(values[i]);
  return wide;
}

/// Values of a slice, (B, T, H, D), out of all that was downloaded.
inline std::vector<double> gather(std::vector<double> values, const Slice& slice, int B, int T,
                                  int H, int D) {
  const HostTensor tensor{&values, slice.offset, slice.batch_stride, slice.row_stride,
                          slice.head_stride};
  std::vector<double> out;
  for (int b = 0; b < B; ++b) {
    for (int t = 0; t < T; ++t) {
      for (int h = 0; h < H; ++h) {
        for (int d = 0; d < D; ++d) out.push_back(tensor.at(b, t, h, d));
      }
    }
  }
  return out;
}

template <typename E>
AttentionErrors run_attention_case(const AttentionCase& c) {
  AttentionProblem p = c.problem;
  std::mt19937_64 random(c.seed);
  const auto dense = [&](int64_t T, int64_t first_head, int64_t all_heads) {
    const int64_t row = all_heads * p.head_size + c.row_padding;
    return std::pair(Slice{first_head * p.head_size, T * row, row, p.head_size}, p.batch * T * row);
  };
  const int all = p.heads + 2 * p.kv_heads;
  const auto [q_slice, q_count] = dense(p.queries, 0, c.packed ? all : p.heads);
  const auto [k_slice, k_count] =
      dense(p.keys, c.packed ? p.heads : 0, c.packed ? all : p.kv_heads);
  const auto [v_slice, v_count] =
      dense(p.keys, c.packed ? p.heads + p.kv_heads : 0, c.packed ? all : p.kv_heads);
  const auto [out_slice, out_count] = dense(p.queries, 0, p.heads);
  Operand<E> q(q_count, &random), k(k_count, &random), v(v_count, &random),
      dout(out_count, &random);
  Operand<E> out(out_count, nullptr), dq(q_count, nullptr), dk(k_count, nullptr),
      dv(v_count, nullptr);
  // Packed operands are three views of the same values.
  Operand<E>& k_in = c.packed ? q : k;
  Operand<E>& v_in = c.packed ? q : v;
  Operand<E>& dk_out = c.packed ? dq : dk;
  Operand<E>& dv_out = c.packed ? dq : dv;

  std::vector<int32_t> starts;
  if (c.documents > 0) {
    for (int b = 0; b < p.batch; ++b) {
      for (int i = 0; i < p.queries; ++i) {
        const int length = (p.queries + c.documents - 1) / c.documents + b;
        starts.push_back(p.query_position + i / length * length);
      }
    }
  }
  GuardedArray<int32_t> starts_device(starts);
  if (c.documents > 0) {
    p.document_start = starts_device.data();
    p.document_batch_stride = p.queries;
  }
  const size_t rows = static_cast<size_t>(p.batch) * p.heads * p.queries;
  GuardedArray<float> lse(rows), row_sum(rows);
  std::vector<double> lse_want(rows), row_sum_want(rows);
  AttentionReference{.p = p,
                     .starts = starts,
                     .q = q_slice.host(q),
                     .k = k_slice.host(k_in),
                     .v = v_slice.host(v_in),
                     .dout = out_slice.host(dout),
                     .out = out_slice.host(out),
                     .dq = q_slice.host(dq),
                     .dk = k_slice.host(dk_out),
                     .dv = v_slice.host(dv_out),
                     .lse = lse_want,
                     .row_sum = row_sum_want}
      .run();

  AttentionErrors errors;
  const AttentionForward<E> forward{.problem = p,
                                    .out = out_slice.device(out),
                                    .lse = lse.data(),
                                    .q = q_slice.input(q),
                                    .k = k_slice.input(k_in),
                                    .v = v_slice.input(v_in),
                                    .variant = c.backward ? kVariantOfTable : c.variant};
  attention_forward(forward, nullptr);
  GRADUS_CUDA_CHECK(cudaDeviceSynchronize());
  const auto out_bits = out.device->download();
  const auto lse_got = lse.download();
  attention_forward(forward, nullptr);
  GRADUS_CUDA_CHECK(cudaDeviceSynchronize());
  const auto same = [](const auto& x, const auto& y) {
    return std::memcmp(x.data(), y.data(), x.size() * sizeof(x[0])) == 0;
  };
  errors.repeats = same(out_bits, out.device->download());
  errors.out =
      relative_error(gather(doubles(out_bits), out_slice, p.batch, p.queries, p.heads, p.head_size),
                     gather(out.host, out_slice, p.batch, p.queries, p.heads, p.head_size));
  errors.lse = relative_error(doubles(lse_got), lse_want);
  for (size_t r = 0; r < rows; ++r) {
    if (std::isinf(lse_want[r]) && lse_got[r] != -std::numeric_limits<float>::infinity()) {
      errors.empty_rows = false;
    }
  }

  if (c.backward) {
    const AttentionBackward<E> backward{.problem = p,
                                        .dq = q_slice.device(dq),
                                        .dk = k_slice.device(dk_out),
                                        .dv = v_slice.device(dv_out),
                                        .row_sum = row_sum.data(),
                                        .dout = out_slice.input(dout),
                                        .out = out_slice.input(out),
                                        .lse = lse.data(),
                                        .q = q_slice.input(q),
                                        .k = k_slice.input(k_in),
                                        .v = v_slice.input(v_in),
                                        .variant = c.variant};
    attention_backward(backward, nullptr);
    GRADUS_CUDA_CHECK(cudaDeviceSynchronize());
    const auto dq_bits = dq.device->download();
    const auto dk_bits = dk_out.device->download();
    const auto dv_bits = dv_out.device->download();
    attention_backward(backward, nullptr);
    GRADUS_CUDA_CHECK(cudaDeviceSynchronize());
    errors.repeats = errors.repeats && same(dq_bits, dq.device->download()) &&
                     same(dk_bits, dk_out.device->download()) &&
                     same(dv_bits, dv_out.device->download());
    const auto error = [&](const auto& bits, Operand<E>& want, const Slice& slice, int T, int H) {
      return relative_error(gather(doubles(bits), slice, p.batch, T, H, p.head_size),
                            gather(want.host, slice, p.batch, T, H, p.head_size));
    };
    errors.dq = error(dq_bits, dq, q_slice, p.queries, p.heads);
    errors.dk = error(dk_bits, dk_out, k_slice, p.keys, p.kv_heads);
    errors.dv = error(dv_bits, dv_out, v_slice, p.keys, p.kv_heads);
    errors.row_sum = relative_error(doubles(row_sum.download()), row_sum_want);
  }
  for (const Operand<E>* operand : {&q, &k, &v, &dout, &out, &dq, &dk, &dv}) {
    errors.guards = errors.guards && operand->device->guards_untouched();
  }
  errors.guards = errors.guards && lse.guards_untouched() && row_sum.guards_untouched();
  return errors;
}

}  // namespace gradus::cuda::testing
