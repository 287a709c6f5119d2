#pragma once

#include <cstdint>
#include <functional>
#include <map>
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

/// Elements [begin, end) of a flat tensor.
struct ElementRange {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t numel() const { return end - begin; }
  bool empty() const { return end <= begin; }
  /// What both have; empty where they do not meet.
  ElementRange intersect(const ElementRange& other) const;
};

/// A run of a bucket's elements that are treated alike.
struct BucketSection {
  ElementRange range;  ///< begins at a multiple of kSectionAlignment; ends with the last parameter
  bool decay = false;
  /// The same on every rank of tp: counted once in norms; under sequence parallelism each rank's
  /// tokens give a part of the gradient, and the parts are summed.
  bool replicated = false;
};

/// Whether a pipeline stage has a bucket.
enum class Holding : uint8_t {
  none,
  owner,
  replica,  ///< an earlier stage has it too; gradients are summed, norms and checkpoints leave it
            ///< out
};

/// What data-parallel replicas divide among themselves (arXiv:1910.02054).
enum class Sharding : uint8_t {
  none,       ///< nothing: every replica updates all weights
  optimizer,  ///< optimizer state: each updates its shard
  gradients,  ///< and the gradients that are kept between micro-batches
};

/// All parameters of one layer, one after another in one flat buffer, so that a layer's gradients
/// are reduced, and its weights gathered, in one piece. Elements between parameters are zero and
/// stay so.
struct Bucket {
  std::string name;
  Holding holding = Holding::owner;
  int64_t numel = 0;   ///< 0 where it is not held
  ElementRange shard;  ///< what this replica's optimizer updates: equal parts, or everything
  std::vector<BucketSection> sections;
  std::vector<size_t> parameters;  ///< indices
  Tensor value;                    ///< (numel) in the parameter dtype
  /// (numel) in the gradient dtype, what backward adds to; undefined where nothing is trained. With
  /// Sharding::gradients blocks take turns in the same memory.
  Tensor grad;
  /// (shard) the gradients that the optimizer reads: a view of grad, or memory of its own with
  /// Sharding::gradients.
  Tensor grad_shard;
};

/// Sections start at multiples of this, and shards too; it is kernels/optimizer.h's kNormChunk.
inline constexpr int64_t kSectionAlignment = 1024;

/// The parameters of a model on this rank.
class Parameters {
 public:
  struct Options {
    Precision precision;
    int64_t tp_rank = 0;
    int64_t tp_size = 1;
    int64_t dp_rank = 0;
    int64_t dp_size = 1;
    Sharding sharding = Sharding::none;
    std::vector<Holding> holdings = {};  ///< by bucket; none given: all are this rank's
    bool gradients = true;
  };
  /// Lays out what this rank holds of the table. Buckets are padded to whole shards whatever the
  /// sharding. Throws ShapeError when a cut does not divide.
  Parameters(std::vector<ParamSpec> specs, const Options& options);

  void declare(TensorVisitor& visitor);

  /// The whole model's, in the order of the computation.
  const std::vector<ParamSpec>& table() const { return table_; }
  /// Those held here.
  const std::vector<Parameter>& all() const { return parameters_; }
  const std::vector<Bucket>& buckets() const { return buckets_; }
  const Precision& precision() const { return options_.precision; }
  Sharding sharding() const { return options_.sharding; }
  bool has(std::string_view name) const { return find(name) != nullptr; }
  /// Throws Error when this rank holds none of that logical name (tied names included).
  const Parameter& operator[](std::string_view name) const;
  /// Elements of the whole model's logical tensors; tied weights once.
  int64_t logical_numel() const;

  /// The matrix made of `count` entries of which all but the first are packed: (Σ rows, columns),
  /// or (Σ rows) for biases. Values or gradients.
  Tensor packed(std::string_view first, int count, Tensor Parameter::*view) const;

 private:
  const Parameter* find(std::string_view name) const;

  /// specs: the bucket's, in the order of the table.
  void lay_out(Bucket& bucket, const std::vector<const ParamSpec*>& specs);
  Tensor declare_gradients(TensorVisitor& visitor, const Bucket& bucket, size_t index);

  Options options_;
  std::vector<ParamSpec> table_;
  std::vector<Parameter> parameters_;
  std::map<std::string, size_t, std::less<>> index_;  ///< into parameters_, by name and tied names
  std::vector<Bucket> buckets_;
};

}  // namespace gradus
