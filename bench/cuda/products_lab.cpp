#include "bench/cuda/products_lab.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <utility>

#include "bench/cuda/products_kernels.h"

namespace gradus::bench {
namespace {

using cuda::CublasLtCall;
using cuda::CublasLtPlan;
using cuda::CublasLtProduct;
using cuda::MatmulBackwardInput;
using cuda::MatmulBackwardWeight;
using cuda::MatmulForward;
using cuda::Workspace;

constexpr int kSamples = 512;    // places of a result that are compared
constexpr int kCandidates = 16;  // asked for: the heuristics name eight at most
constexpr int64_t kPoolBytes = int64_t{4} << 30;
constexpr int64_t kBiasBytes = int64_t{1} << 20;
constexpr int64_t kMostColumns = 65536;

int64_t elements(int64_t rows, int64_t columns) { return rows * columns; }

double flops_of(const CublasLtProduct& p) {
  return 2.0 * static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k);
}

int64_t out_stride(const Linear& l) { return l.out_stride != 0 ? l.out_stride : l.out_features; }

double gelu(double x) {
  return 0.5 * x * (1.0 + std::tanh(0.79788456080286536 * (x + 0.044715 * x * x * x)));
}
double gelu_by_erf(double x) { return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0))); }
double gelu_derivative(double x) {
  const double t = std::tanh(0.79788456080286536 * (x + 0.044715 * x * x * x));
  const double slope = 0.79788456080286536 * (1.0 + 3.0 * 0.044715 * x * x);
  return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope;
}

/// Relative error in the norm that rounding explains: half a unit in the last place of a narrow
/// result, twice where an epilogue gets a sum that is rounded already, and of a wide one what
/// thousands of additions lose in tensor cores, which round down.
double bound_of(const CublasLtProduct& p) {
  if (p.result == DType::bf16) return 4e-3;
  if (p.result == DType::fp16) return 6e-4;
  if (p.operand == DType::fp32) return p.tf32 ? 1e-3 : 5e-5;
  return 2e-4;
}

Timing timing_of(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  return {samples[samples.size() / 2], samples.front(), static_cast<int>(samples.size())};
}

/// Begin and end of a subject's launches in a round.
class Interval {
 public:
  Interval() {
    GRADUS_BENCH_CUDA(cudaEventCreate(&begin_));
    GRADUS_BENCH_CUDA(cudaEventCreate(&end_));
  }
  ~Interval() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  Interval(const Interval&) = delete;
  Interval& operator=(const Interval&) = delete;

  void begin(cudaStream_t stream) { GRADUS_BENCH_CUDA(cudaEventRecord(begin_, stream)); }
  void end(cudaStream_t stream) { GRADUS_BENCH_CUDA(cudaEventRecord(end_, stream)); }
  double microseconds() const {
    float milliseconds = 0.0f;
    GRADUS_BENCH_CUDA(cudaEventElapsedTime(&milliseconds, begin_, end_));
    return static_cast<double>(milliseconds) * 1e3;
  }

 private:
  cudaEvent_t begin_ = nullptr;
  cudaEvent_t end_ = nullptr;
};

}  // namespace

const char* name_of(Pass pass) {
  switch (pass) {
    case Pass::forward:
      return "forward";
    case Pass::dgrad:
      return "dgrad";
    case Pass::wgrad:
      return "wgrad";
  }
  return "?";
}

std::string shape_of(const Linear& l) {
  return std::to_string(l.rows) + "x" + std::to_string(l.in_features) + "x" +
         std::to_string(l.out_features);
}

void Pool::fill(DType dtype) {
  if (dtype == filled_) return;
  restore(dtype);
  filled_ = dtype;
}

void Pool::restore(DType dtype, int64_t bytes) {
  std::vector<char>& values = values_[dtype];
  if (values.empty()) {
    if (dtype == DType::fp32) values = made<float>();
    if (dtype == DType::bf16) values = made<__nv_bfloat16>();
    if (dtype == DType::fp16) values = made<__half>();
  }
  const size_t first = std::min(values.size(), static_cast<size_t>(bytes));
  GRADUS_BENCH_CUDA(cudaMemcpy(memory_.data(), values.data(), first, cudaMemcpyHostToDevice));
  repeat_over(memory_.data(), first, static_cast<size_t>(bytes));
  filled_ = DType::u8;
}

void Pool::poison(int64_t bytes) {
  GRADUS_BENCH_CUDA(cudaMemset(memory_.data(), 0xFF, static_cast<size_t>(bytes)));
  filled_ = DType::u8;
}

void* Pool::at(int64_t turn, int64_t bytes) const {
  const int64_t spaced = (bytes + 1023) / 1024 * 1024;
  const int64_t places = std::max<int64_t>(1, static_cast<int64_t>(memory_.bytes()) / spaced);
  return static_cast<char*>(memory_.data()) + (turn % places) * spaced;
}

template <typename T>
std::vector<char> Pool::made() const {
  const std::vector<T> values = random_values<T>(1000003, seed_, deviation_);  // a prime number
  std::vector<char> raw(values.size() * sizeof(T));
  std::memcpy(raw.data(), values.data(), raw.size());
  return raw;
}

ProductLab::ProductLab(Report& report)
    : report_(report),
      features_(kPoolBytes, 1.0, 1),
      gradients_(kPoolBytes, 1.0, 2),
      results_(kPoolBytes, 1.0, 3),
      auxiliary_(kPoolBytes / 2, 1.0, 4),
      weights_(kPoolBytes / 2, 0.02, 5),
      bias_(kBiasBytes, 1.0, 6),
      workspace_(cuda::kMatmulWorkspaceBytes),
      partial_sums_(kColumnSumParts * kMostColumns),
      sums_(kMostColumns),
      rows_(kSamples),
      columns_(kSamples),
      want_(kSamples),
      got_(kSamples),
      auxiliary_got_(kSamples),
      print_(1) {
  // A stream that waits for the default one, on which memory is filled and poisoned.
  GRADUS_BENCH_CUDA(cudaStreamCreate(&stream_));
}

ProductLab::~ProductLab() { cudaStreamDestroy(stream_); }

CublasLtCall ProductLab::call(Pass pass, const Linear& l, const Variant& v, int64_t turn) const {
  const int64_t width = size_of(v.dtype);
  const void* in = features_.at(turn, elements(l.rows, l.in_features) * width);
  const void* dout = gradients_.at(turn, elements(l.rows, out_stride(l)) * width);
  const void* weight = weights_.at(turn, elements(l.in_features, l.out_features) * width);
  CublasLtCall call;
  int64_t columns = 0;  // of the result
  if (pass == Pass::forward) {
    columns = l.out_features;
    call = cuda::column_major(
        MatmulForward{.out = results_.at(turn, elements(l.rows, out_stride(l)) * size_of(v.result)),
                      .in = in,
                      .weight = weight,
                      .rows = l.rows,
                      .in_features = l.in_features,
                      .out_features = l.out_features,
                      .out_stride = out_stride(l),
                      .dtype = v.dtype,
                      .out_dtype = v.result},
        v.tf32);
  } else if (pass == Pass::dgrad) {
    columns = l.in_features;
    call = cuda::column_major(
        MatmulBackwardInput{
            .din = results_.at(turn, elements(l.rows, l.in_features) * size_of(v.result)),
            .dout = dout,
            .weight = weight,
            .rows = l.rows,
            .in_features = l.in_features,
            .out_features = l.out_features,
            .dout_stride = out_stride(l),
            .dtype = v.dtype,
            .din_dtype = v.result},
        v.tf32);
  } else {
    columns = l.in_features;
    call = cuda::column_major(
        MatmulBackwardWeight{.dweight = results_.at(turn, elements(l.in_features, l.out_features) *
                                                              size_of(v.gradient)),
                             .dout = dout,
                             .in = in,
                             .accumulate = v.accumulate,
                             .rows = l.rows,
                             .in_features = l.in_features,
                             .out_features = l.out_features,
                             .dout_stride = out_stride(l),
                             .dtype = v.dtype,
                             .dweight_dtype = v.gradient},
        v.tf32);
  }
  call.product.epilogue = v.epilogue;
  call.product.alignment = v.alignment;
  call.operands.bias = bias_.at(0, kBiasBytes);
  if ((v.epilogue & 128) != 0) {
    call.product.stride_auxiliary = columns;
    call.operands.auxiliary = auxiliary_.at(turn, elements(l.rows, columns) * size_of(v.result));
  }
  return call;
}

/// Turns that go round without meeting what is still in the L2.
int64_t ProductLab::turns(Pass pass, const Linear& l, const Variant& v) const {
  const int64_t width = size_of(v.dtype);
  const int64_t rows = elements(l.rows, l.in_features + l.out_features) * width;
  const int64_t weight = elements(l.in_features, l.out_features) * width;
  return turns_for(pass == Pass::wgrad ? rows : rows + weight);
}

void ProductLab::fill(DType dtype) {
  features_.fill(dtype);
  gradients_.fill(dtype);
  weights_.fill(dtype);
  bias_.fill(dtype);
}

std::vector<Timing> ProductLab::in_turns(const std::vector<std::function<void(int)>>& runs,
                                         int rounds) {
  std::vector<Interval> intervals(runs.size());
  std::vector<int> launches;
  std::vector<int> turn(runs.size(), 0);
  for (size_t i = 0; i < runs.size(); ++i) {
    runs[i](turn[i]++);  // loads the kernel
    intervals[i].begin(stream_);
    runs[i](turn[i]++);
    intervals[i].end(stream_);
    GRADUS_BENCH_CUDA(cudaStreamSynchronize(stream_));
    launches.push_back(std::clamp(static_cast<int>(400.0 / intervals[i].microseconds()), 1, 8));
  }
  std::vector<std::vector<double>> samples(runs.size());
  for (int round = 0; round < rounds; ++round) {
    // Who comes first changes; an untimed launch before keeps the host ahead of the device.
    for (size_t place = 0; place < runs.size(); ++place) {
      const size_t i = (place + static_cast<size_t>(round)) % runs.size();
      if (place == 0) runs[i](turn[i]++);
      intervals[i].begin(stream_);
      for (int launch = 0; launch < launches[i]; ++launch) runs[i](turn[i]++);
      intervals[i].end(stream_);
    }
    GRADUS_BENCH_CUDA(cudaStreamSynchronize(stream_));
    for (size_t i = 0; i < runs.size(); ++i) {
      samples[i].push_back(intervals[i].microseconds() / launches[i]);
    }
  }
  std::vector<Timing> timings;
  for (std::vector<double>& of_one : samples) timings.push_back(timing_of(std::move(of_one)));
  return timings;
}

ProductLab::Candidates ProductLab::candidates(Pass pass, const Linear& l, const Variant& v) {
  fill(v.dtype);
  Candidates c;
  c.plan = std::make_shared<CublasLtPlan>(call(pass, l, v, 0).product);
  c.algorithms = c.plan->candidates(library_, v.workspace, kCandidates);
  if (report_.options().check || c.algorithms.size() == 1) return c;
  std::vector<std::function<void(int)>> runs;
  for (size_t i = 0; i < c.algorithms.size(); ++i)
    runs.push_back(subject(pass, l, v, c, i, "").run);
  const std::vector<Timing> looks = in_turns(runs, report_.options().quick ? 3 : 5);
  const auto faster = [](const Timing& a, const Timing& b) { return a.median_us < b.median_us; };
  c.best =
      static_cast<size_t>(std::min_element(looks.begin(), looks.end(), faster) - looks.begin());
  return c;
}

Subject ProductLab::subject(Pass pass, const Linear& l, const Variant& v, const Candidates& c,
                            size_t index, const std::string& label) {
  Subject s;
  s.line.operation = l.name + " " + name_of(pass);
  s.line.shape = shape_of(l);
  s.line.dtype = std::string(to_string(v.dtype));
  s.line.kernel = s.line.operation + (label.empty() ? "" : ", " + label);
  s.line.flops = flops_of(c.plan->product());
  const int64_t around = turns(pass, l, v);
  const Workspace workspace{workspace_.data(), v.workspace};
  s.run = [this, pass, l, v, around, workspace, plan = c.plan,
           algorithm = c.algorithms[index]](int turn) {
    plan->run(library_, algorithm, call(pass, l, v, turn % around).operands, workspace, stream_);
  };
  return s;
}

Subject ProductLab::product(Pass pass, const Linear& l, const Variant& v,
                            const std::string& label) {
  const Candidates c = candidates(pass, l, v);
  Subject s = subject(pass, l, v, c, c.best, label);
  const Verdict verdict = check(pass, l, v, c, c.best);
  s.line.errors = verdict.errors;
  s.line.checked = true;
  s.line.passed = verdict.passed;
  s.line.note =
      "no. " + std::to_string(c.best) + " of " + std::to_string(c.algorithms.size()) + verdict.note;
  return s;
}

std::vector<Subject> ProductLab::first_and_best(Pass pass, const Linear& l, const Variant& v) {
  const Candidates c = candidates(pass, l, v);
  std::vector<Subject> both;
  for (const size_t index : {size_t{0}, c.best}) {
    Subject s = subject(pass, l, v, c, index, index == 0 ? "first" : "best");
    const Verdict verdict = check(pass, l, v, c, index);
    s.line.errors = verdict.errors;
    s.line.checked = true;
    s.line.passed = verdict.passed;
    s.line.note = "no. " + std::to_string(index) + " of " + std::to_string(c.algorithms.size()) +
                  verdict.note;
    both.push_back(std::move(s));
    if (c.best == 0) break;
  }
  return both;
}

Subject ProductLab::chunks(Pass pass, const Linear& l, int64_t rows, const Variant& v) {
  Linear part = l;
  part.rows = rows;
  const int64_t count = l.rows / rows;
  const Candidates c = candidates(pass, part, v);
  const Verdict verdict = check(pass, part, v, c, c.best);
  Subject s;
  s.line.operation = l.name + " " + name_of(pass);
  s.line.shape = shape_of(l);
  s.line.dtype = std::string(to_string(v.dtype));
  s.line.kernel = s.line.operation + ", chunks of " + std::to_string(rows) + " rows";
  s.line.flops = flops_of(c.plan->product()) * static_cast<double>(count);
  s.line.errors = verdict.errors;
  s.line.checked = true;
  s.line.passed = verdict.passed;
  s.line.note =
      "no. " + std::to_string(c.best) + " of " + std::to_string(c.algorithms.size()) + verdict.note;
  const Workspace workspace{workspace_.data(), v.workspace};
  s.run = [this, pass, part, v, count, workspace, plan = c.plan,
           algorithm = c.algorithms[c.best]](int) {
    const CublasLtCall first = call(pass, part, v, 0);
    for (int64_t chunk = 0; chunk < count; ++chunk) {
      CublasLtCall now = call(pass, part, v, chunk);
      // Weights and their gradients, logits and theirs are the same for each chunk.
      if (pass == Pass::forward) now.operands.d = first.operands.d;
      if (pass != Pass::wgrad) now.operands.a = first.operands.a;
      if (pass != Pass::forward) now.operands.b = first.operands.b;
      if (pass == Pass::wgrad) now.operands.d = first.operands.d;
      plan->run(library_, algorithm, now.operands, workspace, stream_);
    }
  };
  return s;
}

std::vector<Subject> ProductLab::gelu_passes(const Linear& up) {
  const int64_t count = elements(up.rows, up.out_features);
  const int64_t bytes = count * 2;
  const auto pass = [&](const std::string& label, double times, std::function<void(int)> run) {
    Subject s;
    s.line.operation = s.line.kernel = label;
    s.line.shape = shape_of(up);
    s.line.dtype = "bf16";
    s.line.bytes = times * static_cast<double>(bytes);
    s.run = std::move(run);
    return s;
  };
  const auto out = [this, bytes](int turn) { return results_.at(turn, bytes); };
  const auto in = [this, bytes](int turn) { return gradients_.at(turn, bytes); };
  const int64_t columns = up.out_features;
  return {pass("pass: gelu", 2.0,
               [=, this](int turn) { pass_gelu(out(turn), in(turn), count, stream_); }),
          pass("pass: bias + gelu", 3.0,
               [=, this](int turn) {
                 pass_bias_gelu(out(turn), in(turn), bias_.at(0, kBiasBytes), count, columns,
                                stream_);
               }),
          pass("pass: gelu backward", 3.0,
               [=, this](int turn) { pass_gelu_backward(out(turn), in(turn), count, stream_); })};
}

Subject ProductLab::column_sums(const Linear& l) {
  const int64_t bytes = elements(l.rows, l.out_features) * 2;
  Subject s;
  s.line.operation = s.line.kernel = "pass: column sums";
  s.line.shape = shape_of(l);
  s.line.dtype = "bf16";
  s.line.bytes = static_cast<double>(bytes);
  s.run = [this, bytes, rows = l.rows, columns = l.out_features](int turn) {
    pass_column_sums(sums_.data(), partial_sums_.data(), gradients_.at(turn, bytes), rows, columns,
                     stream_);
  };
  return s;
}

void ProductLab::time(std::vector<Subject> subjects) {
  if (!report_.options().check) {
    results_.restore(DType::fp32);  // no NaN of a check is left to be added to
    std::vector<std::function<void(int)>> runs;
    for (const Subject& s : subjects) runs.push_back(s.run);
    const std::vector<Timing> timings = in_turns(runs, report_.options().quick ? 7 : 21);
    for (size_t i = 0; i < subjects.size(); ++i) subjects[i].line.timing = timings[i];
    gradients_.poison(1);  // a pass may have written there: filled again before the next check
  }
  for (const Subject& s : subjects) report_.add(s.line);
}

void ProductLab::roofline() {
  const Linear square{"square", 8192, 8192, 8192};
  const Subject s = product(Pass::forward, square, {}, "");
  if (!s.line.passed) report_.fail("square", "the product is wrong");
  if (report_.options().check) return;
  const Timing timing = in_turns({s.run}, 21).front();
  report_.set_throughput(s.line.flops / (timing.median_us * 1e-6),
                         "bf16, 8192 x 8192 x 8192, " + s.line.note);
}

/// The result at sampled places against fp64, and whether a second run has the same bits.
ProductLab::Verdict ProductLab::check(Pass pass, const Linear& l, const Variant& v,
                                      const Candidates& c, size_t index) {
  fill(v.dtype);
  const CublasLtCall now = call(pass, l, v, 0);
  const CublasLtProduct& p = now.product;
  const Workspace workspace{workspace_.data(), v.workspace};
  const int64_t result_bytes = p.n * p.stride_d * size_of(p.result);
  const bool reads_auxiliary =
      p.epilogue == CUBLASLT_EPILOGUE_DGELU || p.epilogue == CUBLASLT_EPILOGUE_DGELU_BGRAD;
  const bool writes_auxiliary = p.stride_auxiliary > 0 && !reads_auxiliary;
  const bool writes_bias =
      p.epilogue == CUBLASLT_EPILOGUE_DGELU_BGRAD || p.epilogue == CUBLASLT_EPILOGUE_BGRADB;
  const bool adds_bias = (p.epilogue & CUBLASLT_EPILOGUE_BIAS) != 0;
  const bool applies_gelu = (p.epilogue & CUBLASLT_EPILOGUE_GELU) != 0;
  choose_samples(p);
  const auto run = [&] {
    if (p.accumulate) results_.restore(p.result, result_bytes);
    if (!p.accumulate) results_.poison(result_bytes);
    if (reads_auxiliary) auxiliary_.fill(p.result);
    if (writes_auxiliary) auxiliary_.poison(p.n * p.stride_auxiliary * size_of(p.result));
    c.plan->run(library_, c.algorithms[index], now.operands, workspace, stream_);
    GRADUS_BENCH_CUDA(cudaStreamSynchronize(stream_));
  };
  std::vector<double> before(kSamples, 0.0);
  if (p.accumulate) {
    results_.restore(p.result, result_bytes);
    sample(now);
    before = got_.download();
  }
  run();
  sample(now);
  const uint64_t print = print_of(now.operands.d, result_bytes);
  const std::vector<double> got = got_.download();
  const std::vector<double> auxiliary = auxiliary_got_.download();
  const std::vector<double> bias = bias_values(p);
  const std::vector<int64_t> rows = rows_.download();
  std::vector<double> sums = want_.download();
  for (size_t i = 0; i < sums.size(); ++i) {
    if (adds_bias) sums[i] += bias[static_cast<size_t>(rows[i])];
    sums[i] += before[i];
  }
  std::vector<double> want = sums;
  if (applies_gelu) std::transform(sums.begin(), sums.end(), want.begin(), gelu);
  if (reads_auxiliary) {
    for (size_t i = 0; i < sums.size(); ++i) want[i] *= gelu_derivative(auxiliary[i]);
  }

  Verdict verdict;
  const double bound = bound_of(p);
  verdict.errors = compare(got, want);
  verdict.passed = verdict.errors.within(bound, 2.0 * bound);
  if (writes_auxiliary) {
    verdict.passed = verdict.passed && compare(auxiliary, sums).within(bound, 2.0 * bound);
  }
  if (applies_gelu) {
    std::transform(sums.begin(), sums.end(), want.begin(), gelu_by_erf);
    char text[64];
    std::snprintf(text, sizeof(text), "; against erf's GELU %.2e", compare(got, want).norm);
    verdict.note += text;
  }
  run();
  if (print_of(now.operands.d, result_bytes) != print) {
    verdict.note += "; two runs differ in bits";
  }
  if (writes_bias) bias_.poison(kBiasBytes);  // filled again before the next check
  return verdict;
}

void ProductLab::choose_samples(const CublasLtProduct& p) {
  std::vector<int64_t> rows;
  std::vector<int64_t> columns;
  uint64_t state = 12345;
  const auto next = [&](int64_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<int64_t>((state >> 33) % static_cast<uint64_t>(below));
  };
  for (int i = 0; i < kSamples; ++i) {  // the corners first
    rows.push_back(i < 4 ? (i % 2) * (p.m - 1) : next(p.m));
    columns.push_back(i < 4 ? (i / 2) * (p.n - 1) : next(p.n));
  }
  rows_.upload(rows);
  columns_.upload(columns);
}

void ProductLab::sample(const CublasLtCall& call) {
  sample_product({rows_.data(), columns_.data(), want_.data(), got_.data(), auxiliary_got_.data()},
                 kSamples, call, stream_);
  GRADUS_BENCH_CUDA(cudaStreamSynchronize(stream_));
}

std::vector<double> ProductLab::bias_values(const CublasLtProduct& p) const {
  const auto values = [&](auto element) {
    std::vector<decltype(element)> raw(static_cast<size_t>(p.m));
    GRADUS_BENCH_CUDA(cudaMemcpy(raw.data(), bias_.at(0, kBiasBytes), raw.size() * sizeof(element),
                                 cudaMemcpyDeviceToHost));
    return to_doubles(raw);
  };
  if (p.result == DType::fp32) return values(float{});
  if (p.result == DType::bf16) return values(__nv_bfloat16{});
  return values(__half{});
}

uint64_t ProductLab::print_of(const void* data, int64_t bytes) {
  print_.zero();
  fingerprint(print_.data(), data, bytes, stream_);
  GRADUS_BENCH_CUDA(cudaStreamSynchronize(stream_));
  return print_.download().front();
}

}  // namespace gradus::bench
