// The ladder of kernels that memory bandwidth bounds: layernorm, residual, GELU, column sums,
// AdamW, the norm, cross-entropy. Rung by rung, each checked against fp64 on the host, with its
// share of the copy bandwidth measured in the same run. Bytes are the least that the operation has
// to move.
//
//   bench/cuda/build.sh rows && build/cuda_bench/rows_bench --out rows.json

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "bench/cuda/harness.h"
#include "bench/cuda/rows_rungs.cuh"
#include "kernels/cuda/column_sums.h"
#include "kernels/cuda/cross_entropy.h"
#include "kernels/cuda/embedding.h"
#include "kernels/cuda/gelu.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/layernorm.h"
#include "kernels/cuda/optimizer.h"
#include "kernels/cuda/residual.h"

namespace gradus::bench {
namespace {

using cuda::launch;
using cuda::RowPlan;

template <typename T>
constexpr DType kDType = DType::fp32;
template <>
constexpr DType kDType<__nv_bfloat16> = DType::bf16;
template <>
constexpr DType kDType<__half> = DType::fp16;

template <typename R, typename A>
std::string name_of() {
  const std::string r(to_string(kDType<R>));
  const std::string a(to_string(kDType<A>));
  return r == a ? r : r + "/" + a.substr(0, 4);
}

std::string shape_of(int64_t rows, int64_t columns) {
  return std::to_string(rows) + "x" + std::to_string(columns);
}

unsigned blocks_for(int64_t count, int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

/// As many buffers of one size, to be taken in turn.
template <typename T>
class Turns {
 public:
  Turns(int turns, int64_t count) {
    for (int i = 0; i < turns; ++i) buffers_.emplace_back(count);
  }
  void fill(uint64_t seed, double deviation = 1.0, double mean = 0.0) {
    fill_random(buffers_[0], seed, deviation, mean);
    for (size_t i = 1; i < buffers_.size(); ++i) copy_to(i);
  }
  /// Turn 0 as fill() had it.
  void restore() {
    if (kept_.count() == 0) {
      kept_ = DeviceBuffer<T>(buffers_[0].count());
      copy(kept_, buffers_[0]);
    } else {
      copy(buffers_[0], kept_);
    }
  }
  T* at(int turn) const { return buffers_[static_cast<size_t>(turn) % buffers_.size()].data(); }
  DeviceBuffer<T>& first() { return buffers_[0]; }
  /// All others as the first.
  void copy_to(size_t i) { copy(buffers_[i], buffers_[0]); }

 private:
  static void copy(DeviceBuffer<T>& to, const DeviceBuffer<T>& from) {
    GRADUS_BENCH_CUDA(cudaMemcpy(to.data(), from.data(), static_cast<size_t>(from.bytes()),
                                 cudaMemcpyDeviceToDevice));
  }

  DeviceBuffer<T> kept_;
  std::vector<DeviceBuffer<T>> buffers_;
};

/// What bounds an error of one rounding to the dtype, largest-relative.
template <typename T>
double rounding() {
  return sizeof(T) == 4 ? 3e-6 : (kDType<T> == DType::bf16 ? 6e-3 : 1e-3);
}

struct Context {
  Report& report;
  TimingOptions timing;
  bool quick = false;
};

/// Runs a rung once for its check, then for its time, and reports it. `run(turn)` launches.
template <typename Check>
void rung(Context& x, Measurement m, const std::function<void(int)>& run, const Check& check) {
  const std::string name = m.operation + " " + m.shape + " " + m.dtype + " " + m.kernel;
  if (!x.report.options().wants(name)) return;
  x.report.attempt(name, [&] {
    run(0);
    GRADUS_BENCH_CUDA(cudaDeviceSynchronize());
    check(m);
    if (!x.report.options().check) m.timing = time_launches(nullptr, run, x.timing);
    x.report.add(m);
  });
}

// ---- layernorm ----

/// The reference of forward and backward, in fp64, on some rows or all.
struct LayernormReference {
  std::vector<double> out;
  std::vector<double> mean;
  std::vector<double> rstd;
  std::vector<double> din;
  std::vector<double> dweight;
  std::vector<double> dbias;
};

std::vector<double> normalized_row(const double* in, int64_t channels, double& mean, double& rstd) {
  mean = std::accumulate(in, in + channels, 0.0) / static_cast<double>(channels);
  double squares = 0.0;
  for (int64_t c = 0; c < channels; ++c) squares += (in[c] - mean) * (in[c] - mean);
  rstd = 1.0 / std::sqrt(squares / static_cast<double>(channels) + 1e-5);
  std::vector<double> x(static_cast<size_t>(channels));
  for (int64_t c = 0; c < channels; ++c) x[static_cast<size_t>(c)] = (in[c] - mean) * rstd;
  return x;
}

LayernormReference layernorm_reference(const std::vector<double>& in,
                                       const std::vector<double>& weight,
                                       const std::vector<double>& bias,
                                       const std::vector<double>& dout,
                                       const std::vector<double>& din) {
  const auto channels = static_cast<int64_t>(weight.size());
  const auto rows = static_cast<int64_t>(in.size()) / channels;
  LayernormReference r;
  r.out.resize(in.size());
  r.din = din;
  r.dweight.assign(weight.size(), 0.0);
  r.dbias.assign(weight.size(), 0.0);
  for (int64_t row = 0; row < rows; ++row) {
    const auto start = static_cast<size_t>(row * channels);
    double mean = 0.0;
    double rstd = 0.0;
    const std::vector<double> x = normalized_row(in.data() + start, channels, mean, rstd);
    r.mean.push_back(mean);
    r.rstd.push_back(rstd);
    for (size_t c = 0; c < weight.size(); ++c) r.out[start + c] = x[c] * weight[c] + bias[c];
    if (dout.empty()) continue;
    double g_mean = 0.0;
    double gx_mean = 0.0;
    for (size_t c = 0; c < weight.size(); ++c) {
      const double g = dout[start + c] * weight[c];
      g_mean += g / static_cast<double>(channels);
      gx_mean += g * x[c] / static_cast<double>(channels);
      r.dweight[c] += dout[start + c] * x[c];
      r.dbias[c] += dout[start + c];
    }
    for (size_t c = 0; c < weight.size(); ++c) {
      r.din[start + c] += rstd * (dout[start + c] * weight[c] - g_mean - x[c] * gx_mean);
    }
  }
  return r;
}

/// Rows of a large case that are checked one by one: the first and the last.
constexpr int64_t kCheckedRows = 96;

template <typename T>
std::vector<double> some_rows(const DeviceBuffer<T>& buffer, int64_t columns) {
  const int64_t rows = buffer.count() / columns;
  const int64_t half = std::min(kCheckedRows, rows) / 2;
  std::vector<double> values = to_doubles(buffer.download(0, half * columns));
  const std::vector<double> last =
      to_doubles(buffer.download((rows - half) * columns, half * columns));
  values.insert(values.end(), last.begin(), last.end());
  return values;
}

template <typename R, typename A>
void layernorm_forward_ladder(Context& x, int64_t rows, int64_t channels) {
  const int64_t count = rows * channels;
  const int64_t bytes = count * static_cast<int64_t>(sizeof(R) + sizeof(A)) + rows * 8;
  const int turns = turns_for(bytes);
  Turns<R> in(turns, count);
  Turns<A> out(turns, count);
  DeviceBuffer<float> mean(rows);
  DeviceBuffer<float> rstd(rows);
  in.fill(1, 1.5, 0.7);
  const DeviceBuffer<A> weight(random_values<A>(channels, 2, 0.3, 1.0));
  const DeviceBuffer<A> bias(random_values<A>(channels, 3, 0.3));
  const LayernormReference want =
      layernorm_reference(some_rows(in.first(), channels), to_doubles(weight.download()),
                          to_doubles(bias.download()), {}, {});

  Measurement m{.operation = "layernorm_forward",
                .shape = shape_of(rows, channels),
                .dtype = name_of<R, A>(),
                .bytes = static_cast<double>(bytes)};
  const auto check = [&](Measurement& measured) {
    measured.errors = compare(some_rows(out.first(), channels), want.out);
    const Errors means = compare(some_rows(mean, 1), want.mean);
    const Errors rstds = compare(some_rows(rstd, 1), want.rstd);
    measured.checked = true;
    measured.passed = measured.errors.within(rounding<A>(), rounding<A>()) &&
                      means.within(1e-5, 1e-5) && rstds.within(1e-5, 1e-5);
    out.first().poison();
    mean.poison();
    rstd.poison();
  };
  const auto add = [&](const std::string& kernel, const std::function<void(int)>& run) {
    m.kernel = kernel;
    rung(x, m, run, check);
  };
  if constexpr (std::is_same_v<R, A>) {
    m.kernel = "0 a copy of as many bytes";
    rung(
        x, m,
        [&](int t) {
          launch(copy_kernel, {.grid = blocks_for(count * sizeof(A) / 16, 256), .block = 256},
                 nullptr, reinterpret_cast<uint4*>(out.at(t)),
                 reinterpret_cast<const uint4*>(in.at(t)), count * sizeof(A) / 16);
        },
        [](Measurement&) {});
    const auto c = static_cast<int>(channels);
    const auto n = static_cast<int>(rows);
    add("1 block a row, element by element", [&](int t) {
      launch(layernorm_forward_1<A>, {.grid = static_cast<unsigned>(rows), .block = 256}, nullptr,
             out.at(t), mean.data(), rstd.data(), in.at(t), weight.data(), bias.data(), c);
    });
    add("2 warp a row, element by element", [&](int t) {
      launch(layernorm_forward_2<A, 1>, {.grid = blocks_for(rows, 8), .block = 256}, nullptr,
             out.at(t), mean.data(), rstd.data(), in.at(t), weight.data(), bias.data(), n, c);
    });
    add("3 warp a row, 128-bit, read three times", [&](int t) {
      launch(layernorm_forward_2<A, 16 / sizeof(A)>, {.grid = blocks_for(rows, 8), .block = 256},
             nullptr, out.at(t), mean.data(), rstd.data(), in.at(t), weight.data(), bias.data(), n,
             c);
    });
  }
  const auto chosen = [&](int t, const RowPlan& plan) {
    cuda::layernorm_forward({.out = out.at(t),
                             .mean = mean.data(),
                             .rstd = rstd.data(),
                             .in = in.at(t),
                             .weight = weight.data(),
                             .bias = bias.data(),
                             .rows = rows,
                             .channels = channels,
                             .residual_dtype = kDType<R>,
                             .activation_dtype = kDType<A>,
                             .plan = plan},
                            nullptr);
  };
  struct Shape {
    int warps, rows, blocks;
  };
  const std::vector<Shape> shapes{{1, 1, 0}, {1, 2, 0}, {1, 4, 0}, {2, 1, 0}, {2, 2, 0},
                                  {3, 1, 0}, {4, 1, 0}, {4, 2, 0}, {8, 1, 0}};
  constexpr int64_t kLanes = 16 / (sizeof(R) > sizeof(A) ? sizeof(R) : sizeof(A));
  for (const Shape& s : shapes) {
    const int64_t vectors = channels / kLanes;
    if ((vectors + s.warps * 32 - 1) / (s.warps * 32) > 8 || s.warps * 32 > vectors + 31) continue;
    const RowPlan plan{s.warps, s.rows, s.blocks};
    add("4 in registers: " + std::to_string(s.warps) + " warps a row, " + std::to_string(s.rows) +
            " rows a block" + (s.blocks > 0 ? ", " + std::to_string(s.blocks) + " blocks" : ""),
        [&chosen, plan](int t) { chosen(t, plan); });
  }
  add("* as chosen", [&](int t) { chosen(t, {}); });
}

struct NamedPlan {
  std::string name;
  RowPlan plan;
};

/// Plans of a backward that keep some 8 to 24 warps on an SM; lanes: elements of a vector.
std::vector<NamedPlan> backward_plans(int64_t channels, int64_t lanes, int64_t most_elements) {
  std::vector<NamedPlan> plans;
  const int64_t vectors = channels / lanes;
  for (const int warps : {1, 2, 3, 4, 6, 8, 16}) {
    const int64_t held = (vectors + warps * 32 - 1) / (warps * 32);
    if (held * lanes > most_elements || warps * 32 > vectors + 31) continue;
    for (const int rows : {1, 2, 4}) {
      for (const int blocks_an_sm : {1, 2, 3, 4}) {
        const int on_an_sm = warps * rows * blocks_an_sm;
        if (on_an_sm < 8 || on_an_sm > 24) continue;
        for (const bool ahead : {false, true}) {
          if (ahead && held > 1) continue;
          if (warps * rows > 16) continue;
          plans.push_back({(ahead ? "a row ahead: " : "in registers: ") + std::to_string(warps) +
                               " warps, " + std::to_string(rows) + " rows, " +
                               std::to_string(132 * blocks_an_sm) + " blocks",
                           {warps, rows, 132 * blocks_an_sm, ahead}});
        }
      }
    }
  }
  return plans;
}

template <typename R, typename A>
void layernorm_backward_ladder(Context& x, int64_t rows, int64_t channels) {
  const int64_t count = rows * channels;
  const int64_t bytes = count * static_cast<int64_t>(3 * sizeof(R) + sizeof(A)) + rows * 8;
  const int turns = turns_for(bytes);
  Turns<R> in(turns, count);
  Turns<R> din(turns, count);
  Turns<A> dout(turns, count);
  in.fill(1, 1.5, 0.7);
  dout.fill(4);
  din.fill(5);
  const DeviceBuffer<A> weight(random_values<A>(channels, 2, 0.3, 1.0));
  DeviceBuffer<float> dweight(channels);
  DeviceBuffer<float> dbias(channels);
  DeviceBuffer<unsigned char> scratch(cuda::layernorm_backward_scratch(rows, channels));
  const auto reset = [&] {
    din.restore();
    dweight.zero();
    dbias.zero();
    scratch.poison();
  };
  reset();
  const LayernormReference want =
      layernorm_reference(to_doubles(in.first().download()), to_doubles(weight.download()),
                          std::vector<double>(static_cast<size_t>(channels)),
                          to_doubles(dout.first().download()), to_doubles(din.first().download()));
  std::vector<float> means(want.mean.begin(), want.mean.end());
  std::vector<float> rstds(want.rstd.begin(), want.rstd.end());
  const DeviceBuffer<float> mean(means);
  const DeviceBuffer<float> rstd(rstds);
  std::vector<double> want_rows(want.din.begin(), want.din.begin() + kCheckedRows / 2 * channels);
  want_rows.insert(want_rows.end(), want.din.end() - kCheckedRows / 2 * channels, want.din.end());

  Measurement m{.operation = "layernorm_backward",
                .shape = shape_of(rows, channels),
                .dtype = name_of<R, A>(),
                .bytes = static_cast<double>(bytes)};
  const auto check = [&](Measurement& measured) {
    measured.errors = compare(some_rows(din.first(), channels), want_rows);
    const Errors weights = compare(dweight, want.dweight);
    const Errors biases = compare(dbias, want.dbias);
    measured.checked = true;
    measured.passed = measured.errors.within(rounding<R>(), rounding<R>()) &&
                      weights.within(2e-5, 2e-5) && biases.within(2e-5, 2e-5);
    char text[64];
    std::snprintf(text, sizeof(text), "dweight %.1e, dbias %.1e", weights.norm, biases.norm);
    measured.note = text;
  };
  const auto add = [&](const std::string& kernel, const std::function<void(int)>& run) {
    m.kernel = kernel;
    reset();
    rung(x, m, run, check);
  };
  if constexpr (std::is_same_v<R, A>) {
    add("1 rows, then columns, element by element", [&](int t) {
      constexpr int kSlabs = 64;
      auto* partials = reinterpret_cast<float*>(scratch.data());
      launch(layernorm_backward_rows_1<A>, {.grid = static_cast<unsigned>(rows), .block = 256},
             nullptr, din.at(t), dout.at(t), in.at(t), weight.data(), mean.data(), rstd.data(),
             static_cast<int>(channels));
      launch(layernorm_backward_columns_1<A>,
             {.grid = dim3(blocks_for(channels, 128), kSlabs), .block = 128}, nullptr, partials,
             dout.at(t), in.at(t), mean.data(), rstd.data(), static_cast<int>(rows),
             static_cast<int>(channels));
      cuda::add_partials({.total = {dweight.data(), dbias.data()},
                          .partials = partials,
                          .sets = 2,
                          .count = kSlabs,
                          .columns = channels},
                         nullptr);
    });
  }
  const auto chosen = [&](int t, const RowPlan& plan) {
    cuda::layernorm_backward({.din = din.at(t),
                              .dweight = dweight.data(),
                              .dbias = dbias.data(),
                              .dout = dout.at(t),
                              .in = in.at(t),
                              .weight = weight.data(),
                              .mean = mean.data(),
                              .rstd = rstd.data(),
                              .rows = rows,
                              .channels = channels,
                              .residual_dtype = kDType<R>,
                              .activation_dtype = kDType<A>,
                              .scratch = scratch.data(),
                              .plan = plan},
                             nullptr);
  };
  constexpr int64_t kLanes = 16 / (sizeof(R) > sizeof(A) ? sizeof(R) : sizeof(A));
  for (const NamedPlan& p : backward_plans(channels, kLanes, 16)) {
    add("2 " + p.name, [&chosen, &p](int t) { chosen(t, p.plan); });
  }
  add("* as chosen", [&](int t) { chosen(t, {}); });
}

/// Residual, dropout and layernorm: one fused kernel against the two.
template <typename R, typename A>
void residual_layernorm_ladder(Context& x, int64_t rows, int64_t channels, double p) {
  const int64_t count = rows * channels;
  constexpr auto kR = static_cast<int64_t>(sizeof(R));
  constexpr auto kA = static_cast<int64_t>(sizeof(A));
  const int64_t forward_bytes = count * (2 * kR + 2 * kA) + rows * 8;
  const int64_t backward_bytes = count * (3 * kR + 2 * kA) + rows * 8;
  const int turns = turns_for(forward_bytes);
  Turns<R> residual(turns, count);
  Turns<R> stream(turns, count);
  Turns<A> branch(turns, count);
  Turns<A> out(turns, count);
  residual.fill(11, 1.5, 0.7);
  branch.fill(12);
  const DeviceBuffer<A> weight(random_values<A>(channels, 2, 0.3, 1.0));
  const DeviceBuffer<A> bias(random_values<A>(channels, 3, 0.3));
  DeviceBuffer<float> mean(rows);
  DeviceBuffer<float> rstd(rows);
  DeviceBuffer<float> sums(channels);
  DeviceBuffer<float> dweight(channels);
  DeviceBuffer<unsigned char> scratch(cuda::layernorm_backward_scratch(rows, channels));
  const int64_t positions = 1024;
  const Dropout dropout{.p = p, .key = 0x1234567890abcdefu};
  const std::string dropped = p > 0 ? ", dropout " : ", no dropout";

  // The reference: on the checked rows, from the same counters.
  const std::vector<double> skips = some_rows(residual.first(), channels);
  const std::vector<double> branches = some_rows(branch.first(), channels);
  const std::vector<double> shifts = to_doubles(bias.download());
  std::vector<double> want_stream(skips.size());
  std::vector<double> rounded(skips.size());
  for (size_t i = 0; i < skips.size(); ++i) {
    const auto c = static_cast<int64_t>(i) % channels;
    int64_t row = static_cast<int64_t>(i) / channels;
    if (row >= kCheckedRows / 2) row += rows - kCheckedRows;
    const auto words =
        philox4x32(dropout.key, static_cast<uint64_t>(row / positions),
                   static_cast<uint64_t>(row % positions) << 32 | static_cast<uint64_t>(c / 4));
    const bool keep = !dropout.active() || words[static_cast<size_t>(c % 4)] >= dropout.threshold();
    const double value = branches[i] + shifts[static_cast<size_t>(c)];
    want_stream[i] = skips[i] + (keep ? value * dropout.scale() : 0.0);
    rounded[i] = to_double(from_double<R>(want_stream[i]));
  }
  const LayernormReference want =
      layernorm_reference(rounded, to_doubles(weight.download()), shifts, {}, {});

  const auto norm = [&](int t) {
    return cuda::LayernormForward{.out = out.at(t),
                                  .mean = mean.data(),
                                  .rstd = rstd.data(),
                                  .in = stream.at(t),
                                  .weight = weight.data(),
                                  .bias = bias.data(),
                                  .rows = rows,
                                  .channels = channels,
                                  .residual_dtype = kDType<R>,
                                  .activation_dtype = kDType<A>};
  };
  Measurement m{.operation = "residual_layernorm_forward",
                .shape = shape_of(rows, channels),
                .dtype = name_of<R, A>(),
                .bytes = static_cast<double>(forward_bytes)};
  const auto check = [&](Measurement& measured) {
    measured.errors = compare(some_rows(out.first(), channels), want.out);
    const Errors streams = compare(some_rows(stream.first(), channels), want_stream);
    measured.checked = true;
    // A stream that rounds the other way moves its normalised value by as much.
    measured.passed = measured.errors.within(rounding<A>(), 2 * rounding<A>()) &&
                      streams.within(rounding<R>(), rounding<R>());
    out.first().poison();
    stream.first().poison();
  };
  const auto add = [&](const std::string& kernel, const std::function<void(int)>& run) {
    m.kernel = kernel + dropped;
    rung(x, m, run, check);
  };
  add("1 residual, then layernorm", [&](int t) {
    cuda::residual_forward({.out = stream.at(t),
                            .in = branch.at(t),
                            .bias = bias.data(),
                            .residual = residual.at(t),
                            .rows = rows,
                            .channels = channels,
                            .positions = positions,
                            .dropout = dropout,
                            .residual_dtype = kDType<R>,
                            .activation_dtype = kDType<A>},
                           nullptr);
    cuda::layernorm_forward(norm(t), nullptr);
  });
  const auto fused = [&](int t, const RowPlan& plan) {
    cuda::LayernormForward l = norm(t);
    l.plan = plan;
    cuda::residual_layernorm_forward({.stream = stream.at(t),
                                      .branch = branch.at(t),
                                      .bias = bias.data(),
                                      .residual = residual.at(t),
                                      .dropout = dropout,
                                      .positions = positions},
                                     l, nullptr);
  };
  constexpr int64_t kLanes = 16 / (sizeof(R) > sizeof(A) ? sizeof(R) : sizeof(A));
  const int64_t vectors = channels / kLanes;
  for (const int warps : {1, 2, 3, 4, 8}) {
    if ((vectors + warps * 32 - 1) / (warps * 32) > 4 || warps * 32 > vectors + 31) continue;
    for (const int rows_a_block : {1, 2, 4}) {
      if (warps * rows_a_block > 4) continue;
      const RowPlan plan{warps, rows_a_block, 0};
      add("2 fused: " + std::to_string(warps) + " warps, " + std::to_string(rows_a_block) + " rows",
          [&fused, plan](int t) { fused(t, plan); });
    }
  }
  add("* fused as chosen", [&](int t) { fused(t, {}); });

  // Backward, on the forward's statistics: branch becomes dbranch, residual the gradient.
  fused(0, {});
  for (int t = 1; t < turns; ++t) stream.copy_to(static_cast<size_t>(t));
  Turns<A> dout(turns, count);
  dout.fill(13);
  m.operation = "residual_layernorm_backward";
  m.bytes = static_cast<double>(backward_bytes);
  const auto gradient = [&](int t, const RowPlan& plan) {
    return cuda::LayernormBackward{.din = residual.at(t),
                                   .dweight = dweight.data(),
                                   .dbias = sums.data(),
                                   .dout = dout.at(t),
                                   .in = stream.at(t),
                                   .weight = weight.data(),
                                   .mean = mean.data(),
                                   .rstd = rstd.data(),
                                   .rows = rows,
                                   .channels = channels,
                                   .residual_dtype = kDType<R>,
                                   .activation_dtype = kDType<A>,
                                   .scratch = scratch.data(),
                                   .plan = plan};
  };
  DeviceBuffer<float> dbranch_bias(channels);
  const auto reset = [&] {
    residual.restore();
    dweight.zero();
    sums.zero();
    dbranch_bias.zero();
  };
  // The two kernels make the reference of the fused one: the same roundings, so nearly the same
  // bits.
  const auto separate = [&](int t) {
    cuda::layernorm_backward(gradient(t, {}), nullptr);
    cuda::residual_backward({.din = branch.at(t),
                             .dbias = dbranch_bias.data(),
                             .dout = residual.at(t),
                             .rows = rows,
                             .channels = channels,
                             .positions = positions,
                             .dropout = dropout,
                             .residual_dtype = kDType<R>,
                             .activation_dtype = kDType<A>,
                             .scratch = scratch.data()},
                            nullptr);
  };
  reset();
  separate(0);
  const std::vector<double> want_din = some_rows(residual.first(), channels);
  const std::vector<double> want_branch = some_rows(branch.first(), channels);
  const std::vector<double> want_sums = to_doubles(dbranch_bias.download());
  const std::vector<double> want_dweight = to_doubles(dweight.download());
  const auto check_backward = [&](Measurement& measured) {
    measured.errors = compare(some_rows(residual.first(), channels), want_din);
    const Errors branch_errors = compare(some_rows(branch.first(), channels), want_branch);
    const Errors sum_errors = compare(dbranch_bias, want_sums);
    const Errors weight_errors = compare(dweight, want_dweight);
    measured.checked = true;
    measured.passed = measured.errors.within(rounding<R>(), rounding<R>()) &&
                      branch_errors.within(rounding<A>(), rounding<A>()) &&
                      sum_errors.within(1e-4, 1e-4) && weight_errors.within(2e-5, 2e-5);
    branch.first().poison();
  };
  const auto add_backward = [&](const std::string& kernel, const std::function<void(int)>& run) {
    m.kernel = kernel + dropped;
    reset();
    rung(x, m, run, check_backward);
  };
  add_backward("1 layernorm, then residual", separate);
  const auto fused_backward = [&](int t, const RowPlan& plan) {
    cuda::residual_layernorm_backward({.dbranch = branch.at(t),
                                       .dbias = dbranch_bias.data(),
                                       .dropout = dropout,
                                       .positions = positions},
                                      gradient(t, plan), nullptr);
  };
  for (const NamedPlan& p : backward_plans(channels, kLanes, kLanes)) {
    add_backward("2 fused: " + p.name, [&fused_backward, &p](int t) { fused_backward(t, p.plan); });
  }
  add_backward("* fused as chosen", [&](int t) { fused_backward(t, {}); });
}

// ---- GELU and column sums ----

double gelu(double x) {
  return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}
double gelu_derivative(double x) {
  const double k = std::sqrt(2.0 / M_PI);
  const double t = std::tanh(k * (x + 0.044715 * x * x * x));
  return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * k * (1.0 + 3 * 0.044715 * x * x);
}

template <typename T>
void gelu_ladder(Context& x, int64_t rows, int64_t columns) {
  const int64_t count = rows * columns;
  const int64_t unit = count * static_cast<int64_t>(sizeof(T));
  const int turns = turns_for(2 * unit);
  Turns<T> in(turns, count);
  Turns<T> out(turns, count);
  Turns<T> dout(turns, count);
  in.fill(21, 2.0);
  dout.fill(22);
  const DeviceBuffer<T> bias(random_values<T>(columns, 23, 0.5));
  DeviceBuffer<float> dbias(columns);
  DeviceBuffer<unsigned char> scratch(cuda::column_sums_scratch(rows, columns));
  const std::vector<double> in_rows = some_rows(in.first(), columns);
  const std::vector<double> dout_rows = some_rows(dout.first(), columns);
  const std::vector<double> shift = to_doubles(bias.download());
  const auto c_of = [&](size_t i) { return i % static_cast<size_t>(columns); };
  std::vector<double> plain(in_rows.size());
  std::vector<double> biased(in_rows.size());
  std::vector<double> slopes(in_rows.size());
  std::vector<double> biased_slopes(in_rows.size());
  for (size_t i = 0; i < in_rows.size(); ++i) {
    plain[i] = gelu(in_rows[i]);
    biased[i] = gelu(in_rows[i] + shift[c_of(i)]);
    slopes[i] = dout_rows[i] * gelu_derivative(in_rows[i]);
    biased_slopes[i] = dout_rows[i] * gelu_derivative(in_rows[i] + shift[c_of(i)]);
  }

  Measurement m{.operation = "gelu_forward",
                .shape = shape_of(rows, columns),
                .dtype = name_of<T, T>(),
                .bytes = 2.0 * static_cast<double>(unit)};
  const auto add = [&](const std::string& kernel, const std::vector<double>& want,
                       const std::vector<double>* sums, const std::function<void(int)>& run) {
    m.kernel = kernel;
    dbias.zero();
    out.first().poison();
    rung(x, m, run, [&](Measurement& measured) {
      measured.errors = compare(some_rows(out.first(), columns), want);
      measured.checked = true;
      measured.passed = measured.errors.within(rounding<T>(), rounding<T>());
      if (sums != nullptr) {
        const Errors errors = compare(dbias, *sums);
        // Sums of signs that cancel, so relative to their largest.
        measured.passed = measured.passed && errors.within(3e-4, 3e-4);
        char text[32];
        std::snprintf(text, sizeof(text), "dbias %.1e", errors.norm);
        measured.note = text;
      }
    });
  };
  add("1 an element a thread, tanhf", plain, nullptr, [&](int t) {
    launch(gelu_forward_1<T>, {.grid = blocks_for(count, 256), .block = 256}, nullptr, out.at(t),
           in.at(t), count);
  });
  const cuda::GeluForward forward{.rows = rows, .columns = columns, .dtype = kDType<T>};
  add("2 128-bit, one exponential", plain, nullptr, [&](int t) {
    cuda::GeluForward a = forward;
    a.out = out.at(t);
    a.in = in.at(t);
    cuda::gelu_forward(a, nullptr);
  });
  add("3 with bias, by strips", biased, nullptr, [&](int t) {
    cuda::GeluForward a = forward;
    a.out = out.at(t);
    a.in = in.at(t);
    a.bias = bias.data();
    cuda::gelu_forward(a, nullptr);
  });

  m.operation = "gelu_backward";
  m.bytes = 3.0 * static_cast<double>(unit);
  add("1 an element a thread, tanhf", slopes, nullptr, [&](int t) {
    launch(gelu_backward_1<T>, {.grid = blocks_for(count, 256), .block = 256}, nullptr, out.at(t),
           dout.at(t), in.at(t), count);
  });
  const auto backward = [&](int t, float* sums, bool with_bias, int strips) {
    cuda::gelu_backward({.din = out.at(t),
                         .dbias = sums,
                         .dout = dout.at(t),
                         .in = in.at(t),
                         .bias = with_bias ? bias.data() : nullptr,
                         .rows = rows,
                         .columns = columns,
                         .dtype = kDType<T>,
                         .scratch = scratch.data(),
                         .strips = strips},
                        nullptr);
  };
  add("2 128-bit, one exponential", slopes, nullptr,
      [&](int t) { backward(t, nullptr, false, 0); });
  // Sums in fp64 of what the plain kernel wrote, before its rounding: of the whole, on the host.
  std::vector<double> want_sums(static_cast<size_t>(columns), 0.0);
  {
    const std::vector<double> all_in = to_doubles(in.first().download());
    const std::vector<double> all_out = to_doubles(dout.first().download());
    for (size_t i = 0; i < all_in.size(); ++i) {
      want_sums[c_of(i)] += all_out[i] * gelu_derivative(all_in[i]);
    }
  }
  for (const int strips : {22, 44, 66, 88, 132, 176, 256}) {
    add("3 with dbias, " + std::to_string(strips) + " strips", slopes, &want_sums,
        [&, strips](int t) { backward(t, dbias.data(), false, strips); });
  }
  add("* with dbias, as chosen", slopes, &want_sums,
      [&](int t) { backward(t, dbias.data(), false, 0); });
  add("* with bias, no dbias", biased_slopes, nullptr,
      [&](int t) { backward(t, nullptr, true, 0); });

  m.operation = "column_sums";
  m.bytes = static_cast<double>(unit);
  std::vector<double> column_totals(static_cast<size_t>(columns), 0.0);
  {
    const std::vector<double> all = to_doubles(dout.first().download());
    for (size_t i = 0; i < all.size(); ++i) column_totals[c_of(i)] += all[i];
  }
  const auto add_sums = [&](const std::string& kernel, const std::function<void(int)>& run) {
    m.kernel = kernel;
    dbias.zero();
    rung(x, m, run, [&](Measurement& measured) {
      measured.errors = compare(dbias, column_totals);
      measured.checked = true;
      measured.passed = measured.errors.within(3e-5, 3e-5);
    });
  };
  add_sums("1 a thread a column", [&](int t) {
    launch(column_sums_1<T>, {.grid = blocks_for(columns, 64), .block = 64}, nullptr, dbias.data(),
           dout.at(t), static_cast<int>(rows), static_cast<int>(columns));
  });
  for (const int strips : {0, 22, 44, 88, 132, 176, 256}) {
    add_sums(strips == 0 ? "* strips as chosen" : "2 " + std::to_string(strips) + " strips",
             [&, strips](int t) {
               cuda::column_sums({.total = dbias.data(),
                                  .in = dout.at(t),
                                  .dtype = kDType<T>,
                                  .rows = rows,
                                  .columns = columns,
                                  .stride = columns,
                                  .scratch = scratch.data(),
                                  .strips = strips},
                                 nullptr);
             });
  }
}

// ---- optimizer ----

void optimizer_ladder(Context& x, int64_t count, int tensors) {
  using P = __nv_bfloat16;
  DeviceBuffer<P> param(count);
  Turns<float> masters(1, count);
  Turns<float> first_moments(1, count);
  Turns<float> second_moments(1, count);
  masters.fill(30, 0.02);
  first_moments.fill(31, 1e-3);
  second_moments.fill(32, 1e-7, 1e-6);
  DeviceBuffer<float>& master = masters.first();
  DeviceBuffer<float>& m = first_moments.first();
  DeviceBuffer<float>& v = second_moments.first();
  DeviceBuffer<float> grad(count);
  fill_random(grad, 33, 1e-3);
  const StepState state{.applied = 10, .lr = 3e-4f, .clip_scale = 0.7f};
  DeviceBuffer<unsigned char> device_state(static_cast<int64_t>(sizeof(StepState)));
  GRADUS_BENCH_CUDA(cudaMemcpy(device_state.data(), &state, sizeof(state), cudaMemcpyHostToDevice));
  DeviceBuffer<double> largest(3);

  // Slices of sizes that differ, each a multiple of 8 elements.
  std::vector<cuda::AdamWSlice> slices;
  for (int64_t done = 0, i = 0; done < count; ++i) {
    const int64_t left = count - done;
    const int64_t size =
        i + 1 == tensors ? left : std::min(left, (count / tensors * (1 + i % 3) / 2 + 7) / 8 * 8);
    slices.push_back({.param = param.data() + done,
                      .master = master.data() + done,
                      .m = m.data() + done,
                      .v = v.data() + done,
                      .grad = grad.data() + done,
                      .count = size,
                      .weight_decay = 0.1});
    done += size;
  }
  const DeviceBuffer<cuda::AdamWSlice> device_slices(slices);
  DeviceBuffer<unsigned char> scratch(cuda::kAdamWScratch);

  const double bias1 = 1.0 - std::pow(0.9, 10.0);
  const double bias2 = 1.0 - std::pow(0.95, 10.0);
  const int64_t checked = std::min<int64_t>(200000, count / 8 * 4);
  std::vector<double> want_w;
  std::vector<double> want_m;
  const auto reset = [&] {
    masters.restore();
    first_moments.restore();
    second_moments.restore();
    largest.zero();
    param.poison();
  };
  reset();
  {
    const auto w = to_doubles(master.download(count - checked, checked));
    const auto ms = to_doubles(m.download(count - checked, checked));
    const auto vs = to_doubles(v.download(count - checked, checked));
    const auto gs = to_doubles(grad.download(count - checked, checked));
    for (size_t i = 0; i < w.size(); ++i) {
      const double g = gs[i] * static_cast<double>(state.clip_scale);
      const double m_new = 0.9 * ms[i] + 0.1 * g;
      const double v_new = 0.95 * vs[i] + 0.05 * g * g;
      const double lr = state.lr;
      want_w.push_back(w[i] -
                       lr * (m_new / bias1 / (std::sqrt(v_new / bias2) + 1e-8) + 0.1 * w[i]));
      want_m.push_back(m_new);
    }
  }
  Measurement measured{.operation = "adamw_step",
                       .shape = std::to_string(count),
                       .dtype = "bf16+32",
                       .bytes = 30.0 * static_cast<double>(count)};
  const auto check = [&](Measurement& a) {
    a.errors = compare(to_doubles(master.download(count - checked, checked)), want_w);
    const Errors moments = compare(to_doubles(m.download(count - checked, checked)), want_m);
    const Errors params = compare(to_doubles(param.download(count - checked, checked)), want_w);
    a.checked = true;
    a.passed =
        a.errors.within(1e-6, 1e-6) && moments.within(1e-6, 1e-6) && params.within(6e-3, 6e-3);
  };
  const auto add = [&](const std::string& kernel, const std::function<void(int)>& run) {
    measured.kernel = kernel;
    reset();
    Context once = x;
    once.timing.launches = 2;
    once.timing.samples = 20;
    rung(once, measured, run, check);
  };
  add("1 an element a thread", [&](int) {
    launch(adamw_1<P>, {.grid = blocks_for(count, 256), .block = 256}, nullptr, param.data(),
           master.data(), m.data(), v.data(), grad.data(), count, 0.9f, 0.95f, 1e-8f,
           static_cast<float>(static_cast<double>(state.lr) / bias1),
           static_cast<float>(1.0 / std::sqrt(bias2)),
           static_cast<float>(static_cast<double>(state.lr) * 0.1), state.clip_scale);
  });
  for (const int64_t size : {1024, 2048, 4096}) {
    std::vector<cuda::AdamWChunk> chunks(static_cast<size_t>(cuda::adamw_chunks(slices, size)));
    cuda::list_adamw_chunks(slices, chunks, size);
    const DeviceBuffer<cuda::AdamWChunk> device_chunks(chunks);
    add((size == cuda::kAdamWChunk ? "* slices, chunks of " : "2 slices, chunks of ") +
            std::to_string(size),
        [&](int) {
          cuda::adamw_step({.slices = device_slices.data(),
                            .chunks = device_chunks.data(),
                            .chunk_count = static_cast<int64_t>(chunks.size()),
                            .chunk_size = size,
                            .param_dtype = DType::bf16,
                            .state = reinterpret_cast<const StepState*>(device_state.data()),
                            .largest = largest.data(),
                            .beta1 = 0.9,
                            .beta2 = 0.95,
                            .epsilon = 1e-8,
                            .scratch = scratch.data()},
                           nullptr);
        });
  }

  const int64_t partial_count = (count + 1023) / 1024;
  DeviceBuffer<double> partials(partial_count);
  DeviceBuffer<double> sum(1);
  std::vector<double> want_partials;
  {
    const int64_t first = (partial_count - 100) * 1024;
    const auto gs = to_doubles(grad.download(first, count - first));
    for (size_t i = 0; i < gs.size(); ++i) {
      if (i % 1024 == 0) want_partials.push_back(0.0);
      want_partials.back() += gs[i] * gs[i];
    }
  }
  Measurement norm{.operation = "sum_of_squares",
                   .shape = std::to_string(count),
                   .dtype = "fp32",
                   .bytes = 4.0 * static_cast<double>(count)};
  const auto check_norm = [&](Measurement& a) {
    a.errors = compare(to_doubles(partials.download(partial_count - 100, 100)), want_partials);
    a.checked = true;
    a.passed = a.errors.within(1e-12, 1e-12);
    partials.poison();
  };
  norm.kernel = "1 a thread a chunk";
  rung(
      x, norm,
      [&](int) {
        launch(sum_of_squares_1, {.grid = blocks_for(partial_count, 64), .block = 64}, nullptr,
               partials.data(), grad.data(), count);
      },
      check_norm);
  norm.kernel = "* a warp a chunk";
  rung(
      x, norm,
      [&](int) {
        cuda::sum_of_squares({partials.data(), grad.data(), count, DType::fp32}, nullptr);
      },
      check_norm);
  cuda::sum_of_squares({partials.data(), grad.data(), count, DType::fp32}, nullptr);
  const std::vector<double> all = partials.download();
  Measurement total{.operation = "sum_partials",
                    .shape = std::to_string(partial_count),
                    .dtype = "fp64",
                    .kernel = "* one block",
                    .bytes = 8.0 * static_cast<double>(partial_count)};
  rung(
      x, total,
      [&](int) { cuda::sum_partials(sum.data(), partials.data(), partial_count, nullptr); },
      [&](Measurement& a) {
        a.errors = compare(sum, {std::accumulate(all.begin(), all.end(), 0.0)});
        a.checked = true;
        a.passed = a.errors.within(1e-12, 1e-12);
      });
}

// ---- embedding ----

template <typename R, typename P>
void embedding_ladder(Context& x, int64_t rows, int64_t channels, int64_t vocabulary) {
  const int64_t count = rows * channels;
  // Log-uniform: about as often as words of a language.
  std::vector<int32_t> ids(static_cast<size_t>(rows));
  std::vector<bool> seen(static_cast<size_t>(vocabulary));
  for (size_t i = 0; i < ids.size(); ++i) {
    const double u = static_cast<double>(philox4x32(77, 0, i)[0]) * 0x1p-32;
    ids[i] = static_cast<int32_t>(std::pow(static_cast<double>(vocabulary), u)) - 1;
    seen[static_cast<size_t>(ids[i])] = true;
  }
  const auto touched = static_cast<double>(std::count(seen.begin(), seen.end(), true));
  const DeviceBuffer<int32_t> tokens(ids);
  Turns<R> out(turns_for(count * static_cast<int64_t>(sizeof(R))), count);
  DeviceBuffer<P> table(vocabulary * channels);
  DeviceBuffer<P> places(1024 * channels);
  fill_random(table, 51, 0.02);
  fill_random(places, 52, 0.02);
  const cuda::EmbeddingRows shape{.rows = rows,
                                  .channels = channels,
                                  .positions = 1024,
                                  .residual_dtype = kDType<R>,
                                  .param_dtype = kDType<P>};
  Measurement m{.operation = "embedding_forward",
                .shape = shape_of(rows, channels),
                .dtype = name_of<R, P>(),
                .kernel = "* tokens and positions",
                .bytes = static_cast<double>(count) * sizeof(R) +
                         touched * static_cast<double>(channels) * sizeof(P)};
  rung(
      x, m,
      [&](int t) {
        cuda::token_embedding_forward({.out = out.at(t),
                                       .tokens = tokens.data(),
                                       .weight = table.data(),
                                       .table_rows = vocabulary,
                                       .position_weight = places.data()},
                                      shape, nullptr);
      },
      [&](Measurement& a) {
        const auto got = to_doubles(out.first().download(0, 64 * channels));
        const auto shifts = to_doubles(places.download(0, 64 * channels));
        std::vector<double> want;
        for (int64_t row = 0; row < 64; ++row) {
          const auto values = to_doubles(
              table.download(int64_t{ids[static_cast<size_t>(row)]} * channels, channels));
          for (size_t c = 0; c < values.size(); ++c) {
            want.push_back(values[c] + shifts[static_cast<size_t>(row * channels) + c]);
          }
        }
        a.errors = compare(got, want);
        a.checked = true;
        a.passed = a.errors.within(rounding<R>(), rounding<R>());
      });

  out.fill(53);
  DeviceBuffer<float> dtable(vocabulary * channels);
  DeviceBuffer<unsigned char> scratch(cuda::token_order_scratch(rows));
  std::vector<double> want(static_cast<size_t>(vocabulary * channels), 0.0);
  {
    const auto values = to_doubles(out.first().download());
    for (size_t i = 0; i < values.size(); ++i) {
      const auto c = i % static_cast<size_t>(channels);
      const int32_t id = ids[i / static_cast<size_t>(channels)];
      want[static_cast<size_t>(id * channels) + c] += values[i];
    }
  }
  m.operation = "token_embedding_backward";
  m.bytes = static_cast<double>(count) * sizeof(R) + 8.0 * touched * static_cast<double>(channels);
  const auto add = [&](const std::string& kernel, const std::function<void(int)>& run) {
    m.kernel = kernel;
    dtable.zero();
    rung(x, m, run, [&](Measurement& a) {
      a.errors = compare(dtable, want);
      a.checked = true;
      a.passed = a.errors.within(1e-5, 1e-5);
    });
  };
  add("1 atomic additions", [&](int t) {
    launch(token_embedding_backward_1<R>, {.grid = blocks_for(count, 256), .block = 256}, nullptr,
           dtable.data(), out.at(t), tokens.data(), count, static_cast<int>(channels));
  });
  add("* ordered runs", [&](int t) {
    cuda::token_embedding_backward({.dweight = dtable.data(),
                                    .dout = out.at(t),
                                    .tokens = tokens.data(),
                                    .table_rows = vocabulary,
                                    .scratch = scratch.data()},
                                   shape, nullptr);
  });
}

// ---- cross entropy ----

template <typename T, typename O>
void cross_entropy_ladder(Context& x, int64_t rows, int64_t columns, int64_t vocabulary) {
  const int64_t count = rows * columns;
  constexpr bool kSame = std::is_same_v<T, O>;
  const int turns = std::min(3, turns_for(count * static_cast<int64_t>(sizeof(T))));
  Turns<T> logits(turns, count);
  Turns<O> apart(kSame ? 1 : turns, kSame ? 1 : count);
  const auto out_at = [&](int t) -> void* {
    if constexpr (kSame) return logits.at(t);
    return apart.at(t);
  };
  std::vector<int32_t> ids(static_cast<size_t>(rows));
  for (size_t i = 0; i < ids.size(); ++i) {
    ids[i] = i % 17 == 3 ? -1 : static_cast<int32_t>(i * 7919 % static_cast<size_t>(vocabulary));
  }
  const DeviceBuffer<int32_t> targets(ids);
  DeviceBuffer<float> row_max(rows);
  DeviceBuffer<float> row_sum(rows);
  DeviceBuffer<float> target_logit(rows);
  DeviceBuffer<float> lse(rows);
  DeviceBuffer<double> loss(1);
  const cuda::RowStatistics statistics{row_max.data(), row_sum.data(), target_logit.data()};
  const double scale = 1.0 / static_cast<double>(rows);

  // Few rows, but whole ones: the first and last eight.
  constexpr int64_t kRows = 8;
  const auto ends = [&](auto& buffer) {
    auto values = to_doubles(buffer.download(0, kRows * columns));
    const auto last = to_doubles(buffer.download(count - kRows * columns, kRows * columns));
    values.insert(values.end(), last.begin(), last.end());
    return values;
  };
  logits.fill(41, 3.0);
  const auto reset = [&] { logits.restore(); };
  reset();
  const std::vector<double> values = ends(logits.first());
  std::vector<double> want(values.size(), 0.0);
  std::vector<double> want_lse;
  for (int64_t r = 0; r < 2 * kRows; ++r) {
    const double* row = values.data() + r * columns;
    const int64_t index = r < kRows ? r : rows - 2 * kRows + r;
    const double most = *std::max_element(row, row + vocabulary);
    double sum = 0.0;
    for (int64_t c = 0; c < vocabulary; ++c) sum += std::exp(row[c] - most);
    const double l = most + std::log(sum);
    want_lse.push_back(l);
    const int32_t target = ids[static_cast<size_t>(index)];
    if (target < 0) continue;
    for (int64_t c = 0; c < vocabulary; ++c) {
      want[static_cast<size_t>(r * columns + c)] =
          scale * (std::exp(row[c] - l) - (c == target ? 1.0 : 0.0));
    }
  }

  const cuda::LogitRows in{.dtype = kDType<T>,
                           .targets = targets.data(),
                           .rows = rows,
                           .columns = columns,
                           .first_column = 0,
                           .vocabulary = vocabulary};
  const auto in_at = [&](int t) {
    cuda::LogitRows a = in;
    a.logits = logits.at(t);
    return a;
  };
  const auto read = static_cast<double>(count) * sizeof(T);
  const auto written = static_cast<double>(count) * sizeof(O);
  Measurement m{.operation = "cross_entropy",
                .shape = shape_of(rows, columns),
                .dtype = name_of<T, O>(),
                .bytes = read + written};
  const auto check = [&](Measurement& a) {
    std::vector<double> got;
    if constexpr (kSame) {
      got = ends(logits.first());
    } else {
      got = ends(apart.first());
    }
    a.errors = compare(got, want);
    std::vector<double> got_lse = to_doubles(lse.download(0, kRows));
    const auto last = to_doubles(lse.download(rows - kRows, kRows));
    got_lse.insert(got_lse.end(), last.begin(), last.end());
    const Errors lses = compare(got_lse, want_lse);
    a.checked = true;
    a.passed = a.errors.within(rounding<O>(), rounding<O>()) && lses.within(1e-6, 1e-6);
    char text[32];
    std::snprintf(text, sizeof(text), "lse %.1e", lses.norm);
    a.note = text;
  };
  const auto add = [&](const std::string& kernel, const std::function<void(int)>& run) {
    m.kernel = kernel;
    reset();
    lse.poison();
    Context few = x;
    few.timing.launches = 3;
    few.timing.samples = 20;
    rung(few, m, run, check);
  };
  if constexpr (kSame) {
    add("1 block a row, element by element", [&](int t) {
      launch(cross_entropy_1<T>, {.grid = static_cast<unsigned>(rows), .block = 512}, nullptr,
             logits.at(t), lse.data(), targets.data(), static_cast<int>(columns),
             static_cast<int>(vocabulary), static_cast<float>(scale));
    });
  }
  add("2 statistics, loss, gradient", [&](int t) {
    cuda::cross_entropy_statistics(in_at(t), statistics, nullptr);
    cuda::cross_entropy_forward(loss.data(), lse.data(), statistics, targets.data(), rows, nullptr);
    cuda::cross_entropy_backward(out_at(t), kDType<O>, in_at(t), lse.data(), scale, nullptr);
  });
  const auto fused = [&](int t, const cuda::FusedPlan& plan) {
    cuda::cross_entropy_fused(out_at(t), kDType<O>, in_at(t), statistics, scale, nullptr, plan);
    cuda::cross_entropy_forward(loss.data(), lse.data(), statistics, targets.data(), rows, nullptr);
  };
  const struct {
    const char* name;
    cuda::FusedPlan plan;
  } plans[] = {
      {"3 fused, read again, 512 threads", {512, false, 0}},
      {"3 fused, read again, 1024 threads", {1024, false, 0}},
      {"4 fused, 110 KiB shared, 256 threads", {256, false, 110 << 10}},
      {"4 fused, 110 KiB shared, 512 threads", {512, false, 110 << 10}},
      {"4 fused, 110 KiB shared, 768 threads", {768, false, 110 << 10}},
      {"4 fused, 110 KiB shared, 1024 threads", {1024, false, 110 << 10}},
      {"4 fused, 220 KiB shared, 1024 threads", {1024, false, 220 << 10}},
      {"5 fused, registers, 1024 threads", {1024, true, 0}},
      {"6 fused, registers, 72 KiB, 512 threads", {512, true, 72 << 10}},
      {"6 fused, registers, 80 KiB, 1024 threads", {1024, true, 80 << 10}},
      {"7 fused, next row copied ahead, 512 threads", {.threads = 512, .blocks = 132}},
      {"7 fused, next row copied ahead, 768 threads", {.threads = 768, .blocks = 132}},
      {"7 fused, next row copied ahead, 1024 threads", {.threads = 1024, .blocks = 132}},
      {"* fused as chosen", {}},
  };
  for (const auto& p : plans) {
    if (p.plan.blocks > 0 && sizeof(T) != 2) continue;
    add(p.name, [&fused, &p](int t) { fused(t, p.plan); });
  }

  m.operation = "cross_entropy_statistics";
  m.bytes = read;
  m.kernel = "* block a row";
  reset();
  if (!x.report.options().wants(m.operation)) return;
  Measurement forward = m;
  rung(
      x, forward, [&](int t) { cuda::cross_entropy_statistics(in_at(t), statistics, nullptr); },
      [&](Measurement&) {});
}

void measure_bandwidth(Report& report) {
  double best = memcpy_bandwidth();
  std::printf("cudaMemcpy on the device: %.0f GB/s\n", best * 1e-9);
  constexpr int64_t kBytes = int64_t{1} << 30;
  const DeviceMemory from(kBytes);
  const DeviceMemory to(kBytes);
  for (const unsigned blocks : {132u * 8, 132u * 16, 132u * 64, 1u << 18}) {
    const Timing timing =
        time_launches(nullptr,
                      [&](int) {
                        launch(copy_kernel, {.grid = blocks, .block = 256}, nullptr,
                               static_cast<uint4*>(to.data()),
                               static_cast<const uint4*>(from.data()), kBytes / 16);
                      },
                      {.samples = 11, .launches = 1});
    const double bandwidth = 2.0 * kBytes / (timing.median_us * 1e-6);
    std::printf("a copy kernel of %u blocks: %.0f GB/s\n", blocks, bandwidth * 1e-9);
    best = std::max(best, bandwidth);
  }
  report.set_bandwidth(best, "the best copy of 1 GiB");
}

void run_tiny(Context& x) {
  using bf16_t = __nv_bfloat16;
  layernorm_forward_ladder<bf16_t, bf16_t>(x, 101, 768);
  layernorm_forward_ladder<float, bf16_t>(x, 101, 768);
  layernorm_backward_ladder<bf16_t, bf16_t>(x, 133, 768);
  layernorm_backward_ladder<float, bf16_t>(x, 133, 768);
  residual_layernorm_ladder<bf16_t, bf16_t>(x, 101, 768, 0.0);
  residual_layernorm_ladder<float, bf16_t>(x, 101, 768, 0.1);
  gelu_ladder<bf16_t>(x, 133, 768);
  optimizer_ladder(x, 250000, 7);
  embedding_ladder<float, bf16_t>(x, 133, 768, 300);
  cross_entropy_ladder<bf16_t, bf16_t>(x, 19, 8064, 8009);
  cross_entropy_ladder<float, bf16_t>(x, 17, 8064, 8009);
}

void run_all(Report& report) {
  Context x{report, {}, report.options().quick};
  if (x.quick) x.timing.samples = 11;

  if (!report.options().check) measure_bandwidth(report);

  if (report.options().tiny) return report.attempt("tiny", [&] { run_tiny(x); });
  using bf16_t = __nv_bfloat16;
  const auto part = [&](const std::string& name, const std::function<void()>& body) {
    report.heading(name);
    report.attempt(name, body);
  };
  part("layernorm forward", [&] {
    layernorm_forward_ladder<bf16_t, bf16_t>(x, 16384, 768);
    layernorm_forward_ladder<bf16_t, bf16_t>(x, 16384, 2048);
    if (x.quick) return;
    layernorm_forward_ladder<bf16_t, bf16_t>(x, 8192, 1600);
    layernorm_forward_ladder<float, bf16_t>(x, 16384, 768);
    layernorm_forward_ladder<float, bf16_t>(x, 8192, 2048);
  });
  part("layernorm backward", [&] {
    layernorm_backward_ladder<bf16_t, bf16_t>(x, 16384, 768);
    layernorm_backward_ladder<bf16_t, bf16_t>(x, 8192, 2048);
    if (x.quick) return;
    layernorm_backward_ladder<float, bf16_t>(x, 16384, 768);
    layernorm_backward_ladder<float, bf16_t>(x, 8192, 2048);
  });
  part("residual, dropout and layernorm", [&] {
    residual_layernorm_ladder<bf16_t, bf16_t>(x, 16384, 768, 0.0);
    residual_layernorm_ladder<bf16_t, bf16_t>(x, 8192, 2048, 0.1);
    if (x.quick) return;
    residual_layernorm_ladder<float, bf16_t>(x, 16384, 768, 0.1);
    residual_layernorm_ladder<float, bf16_t>(x, 8192, 2048, 0.0);
  });
  part("GELU and column sums", [&] {
    gelu_ladder<bf16_t>(x, 16384, 3072);
    if (x.quick) return;
    gelu_ladder<bf16_t>(x, 8192, 8192);
    gelu_ladder<bf16_t>(x, 16384, 768);
  });
  part("AdamW and the norm", [&] {
    optimizer_ladder(x, 124439808, 148);
    if (x.quick) return;
    optimizer_ladder(x, 354823168, 292);
  });
  part("embedding", [&] {
    embedding_ladder<bf16_t, bf16_t>(x, 16384, 768, 50257);
    if (x.quick) return;
    embedding_ladder<float, bf16_t>(x, 16384, 1024, 50257);
  });
  part("cross entropy", [&] {
    cross_entropy_ladder<bf16_t, bf16_t>(x, 4096, 50304, 50257);
    if (x.quick) return;
    cross_entropy_ladder<bf16_t, bf16_t>(x, 1024, 50304, 50257);
    cross_entropy_ladder<float, float>(x, 2048, 50304, 50257);
    cross_entropy_ladder<float, bf16_t>(x, 2048, 50304, 50257);
  });
}

}  // namespace
}  // namespace gradus::bench

int main(int argc, char** argv) {
  try {
    gradus::bench::Report report("rows_bench", gradus::bench::parse_options(argc, argv));
    gradus::bench::run_all(report);
    return report.finish();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "rows_bench: %s\n", error.what());
    return 1;
  }
}
