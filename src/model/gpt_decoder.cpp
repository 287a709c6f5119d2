#include "model/gpt_decoder.h"

#include <algorithm>

#include "core/error.h"
#include "kernels/layernorm.h"
#include "kernels/matmul.h"
#include "kernels/residual.h"

namespace gradus {

class GptDecoder::Overlay final : public TensorVisitor {
 public:
  /// visitor: where the memory comes from at first; null when all names are known.
  Overlay(std::map<std::string, Tensor>& memory, TensorVisitor* visitor)
      : memory_(memory), visitor_(visitor) {}

  Tensor declare(std::string name, DType dtype, const Shape& shape,
                 const Lifetime& lifetime) override {
    if (visitor_ != nullptr) {
      const Tensor tensor = visitor_->declare(name, dtype, shape, lifetime);
      return memory_[name] = tensor;
    }
    const Tensor& whole = memory_.at(name);
    return Tensor(whole.data(), dtype, whole.device(), shape, whole.name());
  }

 private:
  std::map<std::string, Tensor>& memory_;
  TensorVisitor* visitor_;
};

namespace {

/// Before sizes are divided among ranks.
const Gpt::Options& require_one_rank(const Gpt::Options& options, const TensorParallel& tp) {
  if (tp.size() != 1) {
    throw ShapeError(
        "a decoder works on one rank, tp has {}: its logits are of the whole vocabulary",
        tp.size());
  }
  return options;
}

}  // namespace

GptDecoder::GptDecoder(const Gpt::Options& options, TensorParallel& tp)
    : sizes_(gpt_sizes(require_one_rank(options, tp), tp)), options_(options), tp_(tp) {
  if (options.B != 1 || options.keep != Keep::nothing) {
    throw ShapeError("a decoder works on one sequence and keeps nothing for backward");
  }
}

void GptDecoder::declare(TensorVisitor& visitor, const Parameters& parameters, const Executor& x) {
  const Sizes& s = sizes_;
  const DType act = options_.precision.activation;
  const DType stat = accumulator_of(act);
  const bool bias = options_.model.bias;
  embedding_ = EmbeddingParams::bind(parameters, &Parameter::value);
  head_ = HeadParams::bind(parameters, bias, &Parameter::value);
  blocks_.clear();
  caches_.clear();
  for (int64_t l = 0; l < s.L; ++l) {
    blocks_.push_back(BlockParams::bind(parameters, l, bias, &Parameter::value));
    const Shape cache{1, s.T, s.H_tp, s.D};
    const auto declare_cache = [&](const char* name) {
      return visitor.declare(fmt::format("block.{}.{}", l, name), act, cache,
                             Lifetime::persistent());
    };
    caches_.push_back({.k = declare_cache("k_cache"), .v = declare_cache("v_cache")});
  }
  const auto always = Lifetime::persistent();
  tokens_ = visitor.declare("tokens", DType::i32, {1, s.T}, always);
  residual_ = visitor.declare("residual", options_.precision.residual, {1, s.T, s.C}, always);
  last_ln_ = visitor.declare("last_ln", act, {1, s.C}, always);
  last_mean_ = visitor.declare("last_mean", stat, {1}, always);
  last_rstd_ = visitor.declare("last_rstd", stat, {1}, always);
  logits_ = visitor.declare("logits", stat, {1, s.V_tp}, always);

  memory_.clear();
  Overlay overlay(memory_, &visitor);
  LayerTensors layers(overlay);
  BlockActs().declare(layers, s, options_.precision, Keep::nothing, tp_.sequence_parallel());

  const auto scratch = [&](const char* name, int64_t bytes) {
    visitor.declare(std::string("scratch.") + name, DType::u8, {bytes}, Lifetime::scratch());
  };
  const auto product = [&](const char* name, int64_t in, int64_t out) {
    scratch(name, matmul_forward_scratch(x, s.T, in, out, act));
  };
  product("qkv", s.C, 3 * s.C_tp);
  product("proj", s.C_tp, s.C);
  product("up", s.C, s.F_tp);
  product("down", s.F_tp, s.C);
  scratch("head", matmul_forward_scratch(x, 1, s.C, s.V_tp, act));
  scratch("attention", attention_scratch(x, options_.model.attention, s.T, s.T, s.D, act));
}

void GptDecoder::reset() {
  length_ = 0;
  for (KvView& cache : caches_) cache.length = 0;
}

ConstTensor GptDecoder::forward(Executor& x, std::span<const int32_t> tokens) {
  const auto n = static_cast<int64_t>(tokens.size());
  if (n == 0 || length_ + n > sizes_.T) {
    throw ShapeError("{} tokens do not fit behind {} in a cache of {}", n, length_, sizes_.T);
  }
  Sizes now = sizes_;
  now.T = now.T_part = n;
  std::ranges::copy(tokens, tokens_.as<int32_t>());
  const Tensor residual = residual_.slice(1, 0, n);
  const DropoutSites no_dropout;
  embedding_forward(x, residual, residual, tokens_.slice(1, 0, n), embedding_, length_, no_dropout,
                    tp_);

  Overlay overlay(memory_, nullptr);
  LayerTensors layers(overlay);
  BlockActs a;
  a.declare(layers, now, options_.precision, Keep::nothing, tp_.sequence_parallel());
  a.attention.in_part = residual;
  a.out_part = residual;
  const AttentionLayerSpec spec{
      .kind = options_.model.attention, .heads_tp = now.H_tp, .keep = Keep::nothing};
  for (int64_t l = 0; l < now.L; ++l) {
    const auto i = static_cast<size_t>(l);
    block_forward(x, a, blocks_[i], spec, no_dropout, l, tp_, &caches_[i]);
  }
  length_ += n;

  const Tensor last = residual.slice(1, n - 1, 1).reshape({1, now.C});
  layernorm_forward(x, last_ln_, last_mean_, last_rstd_, last, head_.ln_w, head_.ln_b);
  matmul_forward(x, logits_, last_ln_, head_.weight, {});
  return logits_.reshape({-1}).slice(0, 0, now.V);
}

}  // namespace gradus
