#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/arena.h"
#include "core/precision.h"
#include "core/tensor.h"

namespace gradus {

/// How tensor parallelism cuts a parameter.
enum class TpCut {
  none,     ///< every rank has the whole
  rows,     ///< axis 0: column-parallel weights (out, in), their biases, the vocabulary
  columns,  ///< axis 1: row-parallel weights
};

enum class Init { zeros, ones, normal };

/// One entry of the table that says all there is to know of a parameter before it has memory.
/// Initialisation, optimizer, norms, checkpoints and export read it and derive nothing of their
/// own.
struct ParamSpec {
  std::string name;  ///< logical, for example "block.3.attention.q.weight"
  Shape shape;       ///< logical: whole and without padding
  int bucket = 0;    ///< 0: embeddings, 1 + l: block l, 1 + L: final layernorm and head
  TpCut cut = TpCut::none;
  int64_t padded_rows = 0;  ///< rows in memory over all ranks, >= shape[0]; 0: as shape says
  bool packed = false;  ///< lies directly behind the entry before it: one matrix for one product
  bool decay = false;   ///< weight decay (matrices)
  bool trainable = true;
  std::vector<std::string> tied;  ///< other logical names of the same weights
  Init init = Init::zeros;
  double init_std = 0.0;
};

/// A parameter with memory: this rank's part.
struct Parameter {
  ParamSpec spec;
  int64_t row_begin = 0;  ///< first logical row (TpCut::rows) or column (TpCut::columns) held here
  int64_t offset = 0;     ///< in elements, from its bucket's start
  Tensor value;
  Tensor grad;  ///< undefined where nothing is trained

  /// The logical part of a tensor shaped like `value`: padding rows cut off.
  Tensor logical(const Tensor& like_value) const;
  /// Elements in memory on this rank, padding included.
  int64_t numel() const { return value.numel(); }
};

/// A run of a bucket's elements that are treated alike.
struct BucketSection {
  int64_t begin = 0;  ///< a multiple of kSectionAlignment elements
  int64_t end = 0;    ///< of the elements that belong to parameters
  bool decay = false;
  /// The same on every rank of tp: counted once in norms; under sequence parallelism each rank's
  /// tokens give a part of the gradient, and the parts are summed.
  bool replicated = false;
};

/// All parameters of one layer, one after another in one flat buffer, so that a layer's gradients
/// are reduced, and its weights gathered, in one piece. Elements between parameters are zero and
/// stay so.
struct Bucket {
  std::string name;
  int64_t numel = 0;
  std::vector<BucketSection> sections;
  std::vector<size_t> parameters;  ///< indices
  Tensor value;                    ///< (numel) in the parameter dtype
  Tensor grad;  ///< (numel) in the gradient dtype; undefined where nothing is trained
};

/// Sections start at multiples of this; it is kernels/optimizer.h's kNormChunk.
inline constexpr int64_t kSectionAlignment = 1024;

/// The parameters of a model on this rank.
class Parameters {
 public:
  struct Options {
    Precision precision;
    int64_t tp_rank = 0;
    int64_t tp_size = 1;
    bool gradients = true;
  };
  /// Lays the table out. Throws ShapeError when a cut does not divide.
  Parameters(std::vector<ParamSpec> specs, const Options& options);

  void declare(TensorVisitor& visitor);

  const std::vector<Parameter>& all() const { return parameters_; }
  const std::vector<Bucket>& buckets() const { return buckets_; }
  const Precision& precision() const { return options_.precision; }
  bool has(std::string_view name) const { return find(name) != nullptr; }
  /// Throws Error when there is none of that logical name (tied names included).
  const Parameter& operator[](std::string_view name) const;
  /// Elements of all logical tensors; tied weights once.
  int64_t logical_numel() const;

  /// The matrix made of `count` entries of which all but the first are packed: (Σ rows, columns),
  /// or (Σ rows) for biases. Values or gradients.
  Tensor packed(std::string_view first, int count, Tensor Parameter::*view) const;

 private:
  const Parameter* find(std::string_view name) const;

  Options options_;
  std::vector<Parameter> parameters_;
  std::vector<Bucket> buckets_;
};

}  // namespace gradus
