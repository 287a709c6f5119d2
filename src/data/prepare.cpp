#include "data/prepare.h"

#include <fmt/ranges.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <system_error>

#include "core/atomic_file.h"
#include "core/counted.h"
#include "core/error.h"
#include "core/folder_lock.h"
#include "data/dataset.h"
#include "data/prepare_notes.h"
#include "data/text_file.h"
#include "data/tokenizer.h"
#include "data/utf8.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;

constexpr char32_t kCodePoints = 0x110000;

/// What one pass over the text finds.
struct Corpus {
  std::vector<CorpusFile> files;
  std::vector<char32_t> code_points;  ///< those that occur, ascending
  int64_t bytes = 0;
  int64_t characters = 0;
};

void check_options(const PrepareOptions& options) {
  if (options.inputs.empty()) throw ConfigError("no text file to prepare");
  if (!(options.val_fraction >= 0.0 && options.val_fraction < 1.0)) {
    throw ConfigError("a validation fraction of {}; expected 0 <= fraction < 1",
                      options.val_fraction);
  }
  const auto kinds = tokenizer_kinds();
  if (options.tokenizer_file.empty() &&
      std::find(kinds.begin(), kinds.end(), options.tokenizer) == kinds.end()) {
    throw ConfigError("unknown tokenizer '{}'; expected one of: {}", options.tokenizer,
                      fmt::join(kinds, ", "));
  }
}

/// What a preparation writes, the tokenizer first and the training text last.
std::array<fs::path, 3> outputs_of(const fs::path& folder) {
  return {folder / kTokenizerFileName, folder / split_file_name(Split::kVal),
          folder / split_file_name(Split::kTrain)};
}

/// A folder in the place of one file would be found when others have been replaced already, and a
/// text that is replaced by its own tokens is lost.
void check_outputs(const PrepareOptions& options) {
  for (const fs::path& output : outputs_of(options.out_dir)) {
    std::error_code error;  // what cannot be looked at cannot be in the way
    const fs::file_status status = fs::status(output, error);
    if (fs::exists(status) && !fs::is_regular_file(status)) {
      throw IoError("{}: in the way: not a regular file; remove it or name another folder",
                    output.string());
    }
    for (const fs::path& input : options.inputs) {
      if (!fs::equivalent(input, output, error)) continue;
      throw ConfigError("{} is text to prepare and would be replaced: name another --out folder",
                        input.string());
    }
  }
}

void give_up_if_asked(const PrepareOptions& options) {
  if (!options.interrupted()) return;
  throw IoError("interrupted: {} is as it was before", options.out_dir.string());
}

/// Opens all files before it reads the first, so that a missing one is found at once.
Corpus read_corpus(const PrepareOptions& options) {
  Corpus corpus;
  for (const fs::path& path : options.inputs) corpus.files.push_back({TextFile(path)});
  std::vector<bool> occurs(kCodePoints);
  for (CorpusFile& each : corpus.files) {
    give_up_if_asked(options);
    each.summary = each.file.scan(occurs);
    corpus.bytes += each.file.size();
    corpus.characters += each.summary.characters;
  }
  if (corpus.characters == 0) {
    throw DataError("{}: {}", options.inputs.front().string(),
                    options.inputs.size() == 1
                        ? std::string("the file is empty")
                        : fmt::format("this and {} are empty",
                                      counted(std::ssize(options.inputs) - 1, "other file")));
  }
  for (char32_t c = 0; c < kCodePoints; ++c) {
    if (occurs[c]) corpus.code_points.push_back(c);
  }
  return corpus;
}

/// How many characters are for training. floor(n (1 - f)), the split of nanoGPT's data scripts.
int64_t train_characters(const Corpus& corpus, double val_fraction) {
  const auto count =
      static_cast<int64_t>(static_cast<double>(corpus.characters) * (1.0 - val_fraction));
  if (val_fraction > 0.0 && (count == 0 || count == corpus.characters)) {
    throw DataError(
        "{}: a text of {} characters cannot be split into training and validation text with a "
        "validation fraction of {}; use more text or fraction 0",
        corpus.files.front().file.path().string(), corpus.characters, val_fraction);
  }
  return count;
}

/// The two shards of a corpus under their temporary names.
struct Shards {
  TokenShardWriter train;
  std::optional<TokenShardWriter> val;

  Shards(const PrepareOptions& options, const Tokenizer& tokenizer, uint64_t tokenizer_hash)
      : train(options.out_dir / split_file_name(Split::kTrain), tokenizer.vocab_size(),
              tokenizer_hash) {
    if (options.val_fraction > 0.0) {
      val.emplace(options.out_dir / split_file_name(Split::kVal), tokenizer.vocab_size(),
                  tokenizer_hash);
    }
  }

  /// Puts both on stable storage, marked as belonging together. The mark is one of what they hold:
  /// the same text gives the same files.
  void finish(uint64_t tokenizer_hash) {
    const std::array<uint64_t, 5> contents = {
        tokenizer_hash, static_cast<uint64_t>(train.token_count()), train.tokens_checksum(),
        static_cast<uint64_t>(val ? val->token_count() : 0), val ? val->tokens_checksum() : 0};
    const uint64_t corpus = XXH3_64bits(contents.data(), sizeof contents);
    train.set_corpus(corpus);
    train.finish();
    if (!val) return;
    val->set_corpus(corpus);
    val->finish();
  }
};

/// Encodes the text, of which the first train_count characters are for training.
void encode(const PrepareOptions& options, const Corpus& corpus, const Tokenizer& tokenizer,
            int64_t train_count, Shards& shards) {
  std::vector<int32_t> tokens;
  const auto append = [&](TokenShardWriter& shard, const TextSource& piece, size_t begin,
                          size_t end) {
    tokens.clear();
    tokenizer.encode(piece, begin, end, tokens);
    shard.append(tokens);
  };
  for (const CorpusFile& each : corpus.files) {
    const uint64_t hash = each.file.for_each_piece([&](const TextSource& piece) {
      give_up_if_asked(options);
      const auto characters = static_cast<int64_t>(count_code_points(piece.text));
      const int64_t here = std::min(train_count, characters);
      train_count -= here;
      const size_t cut = here == characters
                             ? piece.text.size()
                             : code_point_offset(piece.text, static_cast<size_t>(here));
      append(shards.train, piece, 0, cut);
      if (shards.val) append(*shards.val, piece, cut, piece.text.size());
    });
    if (hash != each.summary.hash) {
      throw DataError("{}: the file changed while it was read; prepare it when it is complete",
                      each.file.path().string());
    }
  }
}

void remove_stale(const fs::path& path) {
  std::error_code error;
  fs::remove(path, error);
  if (error) throw IoError("{}: cannot remove: {}", path.string(), error.message());
}

}  // namespace

PrepareResult prepare(const PrepareOptions& options) {
  check_options(options);
  const Corpus corpus = read_corpus(options);
  const int64_t train_count = train_characters(corpus, options.val_fraction);
  const std::unique_ptr<Tokenizer> tokenizer =
      options.tokenizer_file.empty() ? build_tokenizer(options.tokenizer, corpus.code_points)
                                     : load_tokenizer(options.tokenizer_file);
  const uint64_t hash = tokenizer->hash();

  const FolderLock lock(options.out_dir, "--out");
  check_outputs(options);
  for (const fs::path& output : outputs_of(options.out_dir)) AtomicFile::remove_leftovers(output);
  for (const std::string& note : notes_on(corpus.files)) options.note(note);
  for (const std::string& note : {lock.unguarded(), note_on_replacing(options.out_dir)}) {
    if (!note.empty()) options.note(note);
  }

  Shards shards(options, *tokenizer, hash);
  encode(options, corpus, *tokenizer, train_count, shards);
  shards.finish(hash);
  give_up_if_asked(options);
  // The training text comes last: without it there is no corpus, and beside another's validation
  // text or tokenizer it is refused.
  tokenizer->save(options.out_dir / kTokenizerFileName);
  if (shards.val) shards.val->publish();
  shards.train.publish();
  if (!shards.val) remove_stale(options.out_dir / split_file_name(Split::kVal));

  return {.tokenizer = std::string(tokenizer->kind()),
          .vocab_size = tokenizer->vocab_size(),
          .tokenizer_hash = hash,
          .token_type = shards.train.token_type(),
          .bytes = corpus.bytes,
          .characters = corpus.characters,
          .train_tokens = shards.train.token_count(),
          .val_tokens = shards.val ? shards.val->token_count() : 0};
}

}  // namespace gradus
