// Generation from saved checkpoints, against the forward pass of training on the same text.

#include "infer/generator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "core/error.h"
#include "data/char_tokenizer.h"
#include "kernels/elementwise.h"
#include "support/temp_dir.h"
#include "support/tensors.h"
#include "support/tiny_model.h"
#include "train/run_checkpoint.h"

namespace gradus {
namespace {

using test::TempDir;
using test::TinyModel;

constexpr int64_t kContext = 7;

CharTokenizer characters() { return CharTokenizer({U'\n', U' ', U'a', U'b', U'c', U'd', U'é'}); }

Config config_for(PrecisionPreset precision) {
  Config config = test::tiny_config();
  config.model.context = kContext;
  config.model.channels = 8;
  config.model.tied_embeddings = false;  // a tied head says the last token again
  config.model.vocab_size = 9;           // two rows more than the tokenizer has tokens
  config.train.precision = precision;
  config.train.micro_batch = config.train.global_batch = 1;
  return config;
}

/// Matrices far larger than initial ones: the next token depends on all before it.
void draw_weights(TinyModel& tiny, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::normal_distribution<double> draw(0.0, 0.8);
  for (const Parameter& parameter : tiny.model.parameters().all()) {
    if (parameter.spec.shape.rank() != 2) continue;
    const Tensor w = parameter.logical(tiny.model.optimizer().master(parameter));
    for (int64_t i = 0; i < w.numel(); ++i) test::set_value(w, i, draw(rng));
  }
  tiny.model.optimizer().publish_master(tiny.x);
}

/// log p(next = v | tokens) for each v by the training model: its loss with one target at a time.
std::vector<double> log_probabilities(TinyModel& tiny, const std::vector<int32_t>& tokens,
                                      int64_t vocabulary) {
  const Tensor& in = tiny.model.tokens();
  const Tensor& targets = tiny.model.targets();
  std::fill_n(in.as<int32_t>(), in.numel(), 1);  // behind the text, where causality hides it
  std::ranges::copy(tokens, in.as<int32_t>());
  std::vector<double> out;
  for (int32_t v = 0; v < vocabulary; ++v) {
    std::fill_n(targets.as<int32_t>(), targets.numel(), -1);
    targets.as<int32_t>()[tokens.size() - 1] = v;
    fill(tiny.x, tiny.model.loss(), 0.0);
    tiny.model.gpt().forward(
        tiny.x, {.tokens = in, .targets = targets, .loss_sum = tiny.model.loss()}, tiny.hooks);
    out.push_back(-*tiny.model.loss().as<double>());
  }
  return out;
}

void save(TinyModel& tiny, const std::filesystem::path& run, int64_t step,
          const Tokenizer& tokenizer) {
  save_run(run, {.step = step, .samples = step}, tiny.config, tokenizer, {}, tiny.model);
}

/// A saved run and what generates from it, each with an executor of its own.
struct SavedRun {
  explicit SavedRun(PrecisionPreset precision = PrecisionPreset::fp64, uint64_t seed = 13)
      : tiny(config_for(precision), 1) {
    draw_weights(tiny, seed);
    save(tiny, folder.path(), 12, characters());
    generator = std::make_unique<Generator>(folder.path(), x, tp, refused);
  }

  std::string text(std::string_view prompt, int64_t tokens, const SamplingOptions& options) {
    std::string out;
    generator->generate(prompt, tokens, options, [&](std::string_view piece) { out += piece; });
    return out;
  }

  TempDir folder;
  TinyModel tiny;
  std::vector<std::string> refused;
  Executor x{Device::cpu, 1};
  TensorParallel tp{0, 1, false};
  std::unique_ptr<Generator> generator;
};

constexpr SamplingOptions kGreedy{.temperature = 0.0};

TEST(Generator, TakesStepAndTokenizerFromTheCheckpoint) {
  SavedRun run;
  EXPECT_EQ(run.generator->step(), 12);
  EXPECT_EQ(run.generator->tokenizer().to_json(), characters().to_json());
  EXPECT_TRUE(run.refused.empty());
}

/// The text that the training model finds most likely, token by token, and where the context is
/// full from its last half on.
std::string expected_greedy(TinyModel& tiny, const std::string& prompt, int64_t count) {
  const CharTokenizer tokenizer = characters();
  std::vector<int32_t> text = tokenizer.encode(prompt);
  const size_t prompt_size = text.size();
  size_t begin = text.size() > kContext ? text.size() - kContext : 0;
  for (int64_t i = 0; i < count; ++i) {
    if (text.size() - begin > kContext) begin = text.size() - kContext / 2;
    const std::vector<int32_t> seen(text.begin() + static_cast<std::ptrdiff_t>(begin), text.end());
    const auto p = log_probabilities(tiny, seen, tokenizer.vocab_size());
    auto sorted = p;
    std::ranges::sort(sorted, std::greater());
    EXPECT_GT(sorted[0] - sorted[1], 1e-9) << "too close to tell; choose other weights";
    text.push_back(static_cast<int32_t>(std::ranges::max_element(p) - p.begin()));
  }
  return tokenizer.decode(std::span(text).subspan(prompt_size));
}

TEST(Generator, GreedyTextIsWhatTrainingFindsMostLikelyAcrossFullContexts) {
  for (const PrecisionPreset precision : {PrecisionPreset::fp64, PrecisionPreset::fp32}) {
    SavedRun run(precision);
    std::set<char> seen;
    for (const std::string prompt : {"a", "ab c", "abcdab ", "dcba dcba abc\n"}) {
      const std::string text = run.text(prompt, 3 * kContext, kGreedy);
      EXPECT_EQ(text, expected_greedy(run.tiny, prompt, 3 * kContext)) << "prompt " << prompt;
      seen.insert(text.begin(), text.end());
    }
    EXPECT_GT(seen.size(), 5u) << "a text of one letter would prove little";
  }
}

TEST(Generator, ReducedPrecisionGenerates) {
  for (const PrecisionPreset precision : {PrecisionPreset::bf16, PrecisionPreset::bf16_lean}) {
    SavedRun run(precision);
    const std::string text = run.text("abc", 3 * kContext, {.seed = 3});
    EXPECT_EQ(characters().encode(text).size(), static_cast<size_t>(3 * kContext));
    EXPECT_EQ(run.text("abc", 3 * kContext, {.seed = 3}), text);
  }
}

TEST(Generator, OnlyTheEndOfALongPromptIsSeen) {
  SavedRun run;
  const std::string end = "abcd ba";
  for (const SamplingOptions& options : {kGreedy, SamplingOptions{.seed = 8}}) {
    EXPECT_EQ(run.text("ddddd\n\ncé" + end, 15, options), run.text(end, 15, options));
  }
  // The first token within the context is seen: it changes what is drawn next. Behind that the
  // context is full, so that one draw of each seed is all that depends on it.
  const auto next = [&](const std::string& prompt) {
    std::string tokens;
    for (uint64_t seed = 1; seed <= 100; ++seed) tokens += run.text(prompt, 1, {.seed = seed});
    return tokens;
  };
  EXPECT_NE(next("c" + end.substr(1)), next(end));
  EXPECT_EQ(next("c" + end), next(end));
}

TEST(Generator, TheSameSeedGivesTheSameTextWhateverCameBefore) {
  SavedRun run;
  const std::string first = run.text("ab", 40, {.seed = 5});
  run.text("dddd", 11, {.seed = 6});
  EXPECT_EQ(run.text("ab", 40, {.seed = 5}), first);
  EXPECT_NE(run.text("ab", 40, {.seed = 6}), first);
  SavedRun again;
  EXPECT_EQ(again.text("ab", 40, {.seed = 5}), first);
}

TEST(Generator, HandsOutOneTokenAtATime) {
  SavedRun run;
  std::vector<std::string> pieces;
  run.generator->generate("ab", 25, {.seed = 5},
                          [&](std::string_view piece) { pieces.emplace_back(piece); });
  ASSERT_EQ(pieces.size(), 25u);
  std::string joined;
  for (const std::string& piece : pieces) {
    EXPECT_EQ(characters().encode(piece).size(), 1u);
    joined += piece;
  }
  EXPECT_EQ(joined, run.text("ab", 25, {.seed = 5}));
  run.generator->generate("ab", 0, {}, [](std::string_view) { ADD_FAILURE(); });
}

TEST(Generator, AnEmptyPromptStartsFromALinesEnd) {
  SavedRun run;
  EXPECT_EQ(run.text("", 20, {.seed = 2}), run.text("\n", 20, {.seed = 2}));
}

TEST(Generator, WithoutALinesEndInTheVocabularyNoPromptStartsFromTheFirstToken) {
  TempDir folder;
  TinyModel tiny(config_for(PrecisionPreset::fp64), 1);
  draw_weights(tiny, 13);
  save(tiny, folder.path(), 1, CharTokenizer({U' ', U'a', U'b', U'c', U'd'}));
  Executor x(Device::cpu, 1);
  TensorParallel tp(0, 1, false);
  std::vector<std::string> refused;
  Generator generator(folder.path(), x, tp, refused);
  const auto text = [&](std::string_view prompt) {
    std::string out;
    generator.generate(prompt, 20, {.seed = 2}, [&](std::string_view piece) { out += piece; });
    return out;
  };
  EXPECT_EQ(text(""), text(" "));
  EXPECT_NE(text(""), text("d"));
  EXPECT_THROW(text("\n"), DataError) << "what was asked for is not replaced";
}

TEST(Generator, RefusesAPromptThatTheTokenizerCannotRepresent) {
  SavedRun run;
  EXPECT_THROW(run.text("abz", 1, kGreedy), DataError);
  EXPECT_NO_THROW(run.text("é", 1, kGreedy)) << "and is none the worse for it";
}

/// Rows of model.vocab_size beyond the tokenizer's are no tokens, however likely they are.
TEST(Generator, NeverDrawsARowWithoutAToken) {
  TempDir folder;
  TinyModel tiny(config_for(PrecisionPreset::fp64), 1);
  draw_weights(tiny, 4);
  // A head whose unused rows win everywhere: with ln_f's weight zero the logits are weight · bias.
  const auto set = [&](const char* name, double value) {
    const Tensor& w = tiny.model.parameters()[name].value;
    for (int64_t i = 0; i < w.numel(); ++i) test::set_value(w, i, value);
  };
  set("ln_f.weight", 0.0);
  set("ln_f.bias", 1.0);
  const Tensor head = tiny.model.parameters()["head.weight"].value;
  for (int64_t i = 0; i < 2 * 8; ++i) test::set_value(head.slice(0, 7, 2), i, 50.0);
  const auto p = log_probabilities(tiny, {2, 3}, 9);
  ASSERT_GT(p[7], p[0] + 100.0);
  save(tiny, folder.path(), 1, characters());
  Executor x(Device::cpu, 1);
  TensorParallel tp(0, 1, false);
  std::vector<std::string> refused;
  Generator generator(folder.path(), x, tp, refused);
  for (const SamplingOptions& options : {kGreedy, SamplingOptions{.temperature = 100.0}}) {
    EXPECT_NO_THROW(generator.generate("ab", 50, options, [](std::string_view) {}));
  }
}

TEST(Generator, BytesComeSinglyAndAnyPromptIsRepresented) {
  TempDir folder;
  Config config = config_for(PrecisionPreset::fp32);
  config.model.vocab_size = 256;
  config.data.tokenizer = TokenizerChoice::bytes;
  TinyModel tiny(config, 1);
  draw_weights(tiny, 9);
  const auto tokenizer = build_tokenizer("bytes", {});
  save(tiny, folder.path(), 1, *tokenizer);
  Executor x(Device::cpu, 1);
  TensorParallel tp(0, 1, false);
  std::vector<std::string> refused;
  Generator generator(folder.path(), x, tp, refused);
  int pieces = 0;
  std::set<std::string> distinct;
  generator.generate("héllo \x01", 60, {.temperature = 2.0}, [&](std::string_view piece) {
    EXPECT_EQ(piece.size(), 1u);
    distinct.emplace(piece);
    ++pieces;
  });
  EXPECT_EQ(pieces, 60);
  EXPECT_GT(distinct.size(), 10u);
}

TEST(Generator, TakesTheNewestWholeCheckpointAndNamesTheDamagedOne) {
  TempDir folder;
  TinyModel tiny(config_for(PrecisionPreset::fp32), 1);
  for (const int64_t step : {3, 4}) {
    draw_weights(tiny, static_cast<uint64_t>(step));
    save(tiny, folder.path(), step, characters());
  }
  const auto newest = folder / "checkpoints/step-00000004/model.safetensors";
  std::string bytes = test::read_file(newest);
  bytes[bytes.size() - 5] ^= 1;
  test::write_file(newest, bytes);
  Executor x(Device::cpu, 1);
  TensorParallel tp(0, 1, false);
  std::vector<std::string> refused;
  Generator generator(folder.path(), x, tp, refused);
  EXPECT_EQ(generator.step(), 3);
  EXPECT_THAT(refused, testing::ElementsAre(testing::HasSubstr("step-00000004")));
}

TEST(Generator, RefusesAFolderWithoutACheckpoint) {
  TempDir folder;
  Executor x(Device::cpu, 1);
  TensorParallel tp(0, 1, false);
  std::vector<std::string> refused;
  EXPECT_THROW(Generator(folder.path(), x, tp, refused), CheckpointError);
}

}  // namespace
}  // namespace gradus
