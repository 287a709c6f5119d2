#include "model/gpt_parameters.h"

#include <fmt/format.h>

#include <cmath>
#include <string>

namespace gradus {
namespace {

constexpr double kInitStd = 0.02;
constexpr int64_t kVocabularyMultiple = 8;  // rows a rank: 16 bytes of bf16

/// Appends the entries of one bucket.
class TableWriter {
 public:
  TableWriter(std::vector<ParamSpec>& table, const ModelConfig& model)
      : table_(table), model_(model) {}

  void begin_bucket(int bucket) { bucket_ = bucket; }

  /// A (out, in) weight.
  ParamSpec& matrix(const std::string& name, const Shape& shape, TpCut cut,
                    double std_dev = kInitStd) {
    ParamSpec& spec = add(name, shape, cut);
    spec.decay = true;
    spec.init = Init::normal;
    spec.init_std = std_dev;
    return spec;
  }
  /// A bias; of row-parallel products it is replicated and added by every rank to its own tokens.
  void bias(const std::string& name, int64_t size, TpCut cut, bool packed = false) {
    if (!model_.bias) return;
    ParamSpec& spec = add(name, {size}, cut);
    spec.packed = packed;
  }
  void layernorm(const std::string& name) {
    add(name + ".weight", {model_.channels}, TpCut::none).init = Init::ones;
    bias(name + ".bias", model_.channels, TpCut::none);
  }

 private:
  ParamSpec& add(const std::string& name, const Shape& shape, TpCut cut) {
    ParamSpec spec;
    spec.name = name;
    spec.shape = shape;
    spec.bucket = bucket_;
    spec.cut = cut;
    table_.push_back(spec);
    return table_.back();
  }

  std::vector<ParamSpec>& table_;
  const ModelConfig& model_;
  int bucket_ = 0;
};

}  // namespace

int64_t padded_vocabulary(int64_t vocabulary, int64_t tp) {
  const int64_t multiple = kVocabularyMultiple * tp;
  return (vocabulary + multiple - 1) / multiple * multiple;
}

std::vector<ParamSpec> gpt_parameters(const ModelConfig& model, int64_t vocabulary, int64_t tp) {
  std::vector<ParamSpec> table;
  TableWriter write(table, model);
  const int64_t C = model.channels;
  const int64_t F = resolved_mlp_width(model);
  const double residual_std = kInitStd / std::sqrt(2.0 * static_cast<double>(model.layers));

  ParamSpec& token = write.matrix("embedding.token.weight", {vocabulary, C}, TpCut::rows);
  token.padded_rows = padded_vocabulary(vocabulary, tp);
  if (model.tied_embeddings) token.tied = {"head.weight"};
  write.matrix("embedding.position.weight", {model.context, C}, TpCut::none);

  for (int64_t l = 0; l < model.layers; ++l) {
    write.begin_bucket(static_cast<int>(1 + l));
    const std::string block = fmt::format("block.{}.", l);
    write.layernorm(block + "ln1");
    write.matrix(block + "attention.q.weight", {C, C}, TpCut::rows);
    write.matrix(block + "attention.k.weight", {C, C}, TpCut::rows).packed = true;
    write.matrix(block + "attention.v.weight", {C, C}, TpCut::rows).packed = true;
    write.bias(block + "attention.q.bias", C, TpCut::rows);
    write.bias(block + "attention.k.bias", C, TpCut::rows, true);
    write.bias(block + "attention.v.bias", C, TpCut::rows, true);
    write.matrix(block + "attention.out.weight", {C, C}, TpCut::columns, residual_std);
    write.bias(block + "attention.out.bias", C, TpCut::none);
    write.layernorm(block + "ln2");
    write.matrix(block + "mlp.up.weight", {F, C}, TpCut::rows);
    write.bias(block + "mlp.up.bias", F, TpCut::rows);
    write.matrix(block + "mlp.down.weight", {C, F}, TpCut::columns, residual_std);
    write.bias(block + "mlp.down.bias", C, TpCut::none);
  }

  write.begin_bucket(static_cast<int>(1 + model.layers));
  write.layernorm("ln_f");
  if (!model.tied_embeddings) {
    write.matrix("head.weight", {vocabulary, C}, TpCut::rows).padded_rows =
        padded_vocabulary(vocabulary, tp);
  }
  return table;
}

}  // namespace gradus
