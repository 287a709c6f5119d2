#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bench/cuda/harness.h"
#include "kernels/cuda/matmul.h"

namespace gradus::bench {

/// Products of linear layers, checked and timed. What is to be compared is timed together, in
/// turns: under its limit of power a card's clock wanders by a tenth within a second.

enum class Pass { forward, dgrad, wgrad };
const char* name_of(Pass pass);

/// A linear layer of a model.
struct Linear {
  std::string name;
  int64_t rows, in_features, out_features;
  int64_t out_stride = 0;  ///< of out and dout; 0: contiguous
};
std::string shape_of(const Linear& l);

/// How a product is made.
struct Variant {
  DType dtype = DType::bf16;
  DType result = DType::bf16;    ///< of out and din
  DType gradient = DType::fp32;  ///< of dweight
  bool accumulate = true;        ///< wgrad adds to dweight
  bool tf32 = false;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  size_t workspace = cuda::kMatmulWorkspaceBytes;
  int alignment = 16;
};

/// Something to time: its line of the table, and what launches it on the memory of a turn.
struct Subject {
  Measurement line;
  std::function<void(int)> run;
};

/// Device memory that products take their matrices from, a different place at each turn.
class Pool {
 public:
  Pool(int64_t bytes, double deviation, uint64_t seed)
      : memory_(static_cast<size_t>(bytes)), deviation_(deviation), seed_(seed) {}

  /// Random values all over, unless they are there already.
  void fill(DType dtype);
  /// Random values in the first bytes, whatever is there.
  void restore(DType dtype, int64_t bytes);
  void restore(DType dtype) { restore(dtype, static_cast<int64_t>(memory_.bytes())); }
  void poison(int64_t bytes);
  /// Where a matrix of so many bytes lies at a turn.
  void* at(int64_t turn, int64_t bytes) const;

 private:
  template <typename T>
  std::vector<char> made() const;

  DeviceMemory memory_;
  double deviation_;
  uint64_t seed_;
  std::map<DType, std::vector<char>> values_;  ///< of which repetitions are made
  DType filled_ = DType::u8;                   ///< u8: with nothing known
};

class ProductLab {
 public:
  explicit ProductLab(Report& report);
  ~ProductLab();
  ProductLab(const ProductLab&) = delete;
  ProductLab& operator=(const ProductLab&) = delete;

  /// A product by the algorithm that is fastest of those that the heuristics name; checked.
  Subject product(Pass pass, const Linear& l, const Variant& v, const std::string& label);
  /// The same by the heuristics' first, and by the fastest where that is another.
  std::vector<Subject> first_and_best(Pass pass, const Linear& l, const Variant& v);
  /// A product in chunks of rows, one after the other; the chunks' logits have one place.
  Subject chunks(Pass pass, const Linear& l, int64_t rows, const Variant& v);
  /// Passes over memory that an epilogue may save.
  std::vector<Subject> gelu_passes(const Linear& up);
  Subject column_sums(const Linear& l);

  /// Times the subjects in turns and reports them.
  void time(std::vector<Subject> subjects);
  /// The rate of the largest square product, of which shares are.
  void roofline();

 private:
  struct Candidates {
    std::shared_ptr<cuda::CublasLtPlan> plan;
    std::vector<cublasLtMatmulAlgo_t> algorithms;
    size_t best = 0;
  };
  /// What a check found.
  struct Verdict {
    Errors errors;
    bool passed = true;
    std::string note;
  };

  cuda::CublasLtCall call(Pass pass, const Linear& l, const Variant& v, int64_t turn) const;
  int64_t turns(Pass pass, const Linear& l, const Variant& v) const;
  void fill(DType dtype);
  Candidates candidates(Pass pass, const Linear& l, const Variant& v);
  Subject subject(Pass pass, const Linear& l, const Variant& v, const Candidates& c, size_t index,
                  const std::string& label);
  Verdict check(Pass pass, const Linear& l, const Variant& v, const Candidates& c, size_t index);
  void sample(const cuda::CublasLtCall& call);
  void choose_samples(const cuda::CublasLtProduct& p);
  std::vector<double> bias_values(const cuda::CublasLtProduct& p) const;
  uint64_t print_of(const void* data, int64_t bytes);
  std::vector<Timing> in_turns(const std::vector<std::function<void(int)>>& runs, int rounds);

  Report& report_;
  cuda::CublasLt library_;
  cudaStream_t stream_ = nullptr;
  Pool features_, gradients_, results_, auxiliary_, weights_, bias_;
  DeviceMemory workspace_;
  DeviceBuffer<float> partial_sums_, sums_;
  DeviceBuffer<int64_t> rows_, columns_;
  DeviceBuffer<double> want_, got_, auxiliary_got_;
  DeviceBuffer<unsigned long long> print_;
};

}  // namespace gradus::bench
