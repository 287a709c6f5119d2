#include "infer/generator.h"

#include <algorithm>
#include <utility>

#include "checkpoint/checkpoint_state.h"
#include "checkpoint/checkpoint_writer.h"
#include "core/error.h"
#include "kernels/elementwise.h"
#include "model/gpt_parameters.h"
#include "train/precision_preset.h"

namespace gradus {
namespace {

/// Of a configuration that asks for more layers than the file has tensors, not even the table of
/// parameters is made.
void require_layers(const Checkpoint& checkpoint, int64_t layers) {
  const auto tensors = static_cast<int64_t>(checkpoint.model().entries().size());
  if (layers <= tensors) return;
  throw CheckpointError("{}: {} says model.layers: {}, and {} holds {} tensors in all",
                        checkpoint.path().string(), kConfigFile, layers, kModelFile, tensors);
}

/// The weights as the file has them, without a place for them yet.
std::vector<TensorDestination> expected_weights(const Parameters& parameters) {
  std::vector<TensorDestination> weights;
  for (const ParamSpec& spec : parameters.table()) weights.push_back({spec.name, spec.shape, {}});
  return weights;
}

/// A sampler takes -∞ for a token that must not be drawn; of a model it is an overflow.
void require_finite(Executor& x, const ConstTensor& logits) {
  if (all_finite(x, logits)) return;
  for (int64_t i = 0; i < logits.numel(); ++i) {
    const ConstTensor one = logits.slice(0, i, 1);
    if (all_finite(x, one)) continue;
    throw NumericError(
        "the logit of token {} is not finite: the model has blown up; generate from an earlier "
        "checkpoint",
        i);
  }
}

}  // namespace

Generator::Generator(const std::filesystem::path& path, Executor& x, TensorParallel& tp,
                     std::vector<std::string>& refused)
    : x_(x) {
  const Checkpoint checkpoint = open_checkpoint(path, refused, CheckpointUse::inference);
  const Config config =
      load_saved_config(checkpoint.file(kConfigFile), (checkpoint.path() / kConfigFile).string());
  tokenizer_ = parse_tokenizer(checkpoint.file(kTokenizerFile),
                               (checkpoint.path() / kTokenizerFile).string());
  step_ = checkpoint.step();
  check_tokenizer_hash(checkpoint, tokenizer_->hash());
  const int64_t vocabulary = vocabulary_of(checkpoint);
  if (vocabulary < tokenizer_->vocab_size()) {
    throw CheckpointError("{}: field 'vocabulary': found {}, expected at least the {} tokens of {}",
                          state_name(checkpoint), vocabulary, tokenizer_->vocab_size(),
                          kTokenizerFile);
  }
  require_layers(checkpoint, config.model.layers);
  const Precision precision = precision_of(config.train.precision);

  parameters_ = std::make_unique<Parameters>(
      gpt_parameters(config.model, vocabulary, tp.size()),
      Parameters::Options{
          .precision = precision, .tp_rank = tp.rank(), .tp_size = tp.size(), .gradients = false});
  checkpoint.check_model(expected_weights(*parameters_));  // before memory is asked for
  decoder_ = std::make_unique<GptDecoder>(Gpt::Options{.model = config.model,
                                                       .vocabulary = vocabulary,
                                                       .precision = precision,
                                                       .keep = Keep::nothing,
                                                       .B = 1,
                                                       .T = config.model.context},
                                          tp);
  const auto declare = [&](TensorVisitor& visitor) {
    parameters_->declare(visitor);
    decoder_->declare(visitor, *parameters_, x_);
  };
  auto plan = std::make_unique<MemoryPlan>(x_.device());
  declare(*plan);
  plan->lay_out();
  arena_ = std::make_unique<Arena>(std::move(plan));
  declare(*arena_);
  arena_->check_complete();
  x_.bind_scratch(arena_->scratch());

  std::vector<TensorDestination> weights;
  for (const Parameter& parameter : parameters_->all()) {
    weights.push_back({parameter.spec.name, parameter.spec.shape,
                       pieces_of(parameter, 0, parameter.value.reshape({-1})), Elements::finite});
  }
  checkpoint.load_model(weights);
}

std::vector<int32_t> Generator::encode(std::string_view prompt) const {
  if (!prompt.empty()) return tokenizer_->encode(prompt, "prompt");
  try {
    return tokenizer_->encode("\n");
  } catch (const DataError&) {
    return {0};  // a corpus of one line leaves a character vocabulary without a line's end
  }
}

void Generator::generate(std::string_view prompt, int64_t tokens, const SamplingOptions& options,
                         const std::function<void(std::string_view)>& emit) {
  Sampler sampler(options);
  generate(encode(prompt), tokens, sampler, emit);
}

void Generator::generate(std::vector<int32_t> prompt, int64_t tokens, Sampler& sampler,
                         const std::function<void(std::string_view)>& emit) {
  std::vector<int32_t> text = std::move(prompt);
  const auto capacity = static_cast<size_t>(decoder_->capacity());
  decoder_->reset();
  // Of a prompt longer than the context, only its end can be seen.
  size_t seen = text.size() > capacity ? text.size() - capacity : 0;
  for (int64_t i = 0; i < tokens; ++i) {
    if (decoder_->length() == decoder_->capacity()) {
      decoder_->reset();
      seen = text.size() - std::max<size_t>(1, capacity / 2);
    }
    const ConstTensor logits = decoder_->forward(x_, std::span(text).subspan(seen));
    seen = text.size();
    // The model may have been given more rows than the tokenizer has tokens (model.vocab_size).
    const int64_t known = std::min(logits.numel(), tokenizer_->vocab_size());
    require_finite(x_, logits);
    const int32_t next = sampler.sample(logits.slice(0, 0, known));
    emit(tokenizer_->decode(std::span(&next, 1)));
    text.push_back(next);
  }
}

}  // namespace gradus
