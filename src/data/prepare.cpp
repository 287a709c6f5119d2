#include "data/prepare.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <system_error>

#include "core/error.h"
#include "core/mapped_file.h"
#include "data/dataset.h"
#include "data/tokenizer.h"
#include "data/utf8.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;

constexpr char32_t kCodePoints = 0x110000;
constexpr size_t kBlockBytes = size_t{1} << 20;

struct CorpusFile {
  explicit CorpusFile(const fs::path& path) : mapping(path) {}

  TextSource source() const { return {mapping.path().string(), mapping.bytes()}; }

  MappedFile mapping;
  size_t characters = 0;
};

/// What one pass over the text finds.
struct Corpus {
  std::vector<CorpusFile> files;
  std::vector<char32_t> code_points;  ///< those that occur, ascending
  size_t bytes = 0;
  size_t characters = 0;
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

/// Opens all files before it reads the first, so that a missing one is found at once.
Corpus read_corpus(const std::vector<fs::path>& paths) {
  Corpus corpus;
  for (const fs::path& path : paths) {
    const CorpusFile& file = corpus.files.emplace_back(path);
    if (file.mapping.bytes().empty()) throw DataError("{}: the file is empty", path.string());
  }
  std::vector<bool> occurs(kCodePoints);
  for (CorpusFile& file : corpus.files) {
    file.mapping.advise_sequential();
    const TextSource source = file.source();
    for (size_t offset = 0; offset < source.text.size(); ++file.characters) {
      occurs[decode_utf8(source, offset)] = true;
    }
    corpus.bytes += source.text.size();
    corpus.characters += file.characters;
  }
  for (char32_t c = 0; c < kCodePoints; ++c) {
    if (occurs[c]) corpus.code_points.push_back(c);
  }
  return corpus;
}

/// How many characters are for training. floor(n (1 - f)), the split of nanoGPT's data scripts.
size_t train_characters(const Corpus& corpus, double val_fraction) {
  const auto count =
      static_cast<size_t>(static_cast<double>(corpus.characters) * (1.0 - val_fraction));
  if (val_fraction > 0.0 && (count == 0 || count == corpus.characters)) {
    throw DataError(
        "{}: a text of {} characters cannot be split into training and validation text with a "
        "validation fraction of {}; use more text or fraction 0",
        corpus.files.front().mapping.path().string(), corpus.characters, val_fraction);
  }
  return count;
}

/// Encodes source.text[begin, end) into the shard, block by block.
void write_tokens(TokenShardWriter& shard, const Tokenizer& tokenizer, const TextSource& source,
                  size_t begin, size_t end, std::vector<int32_t>& tokens) {
  while (begin < end) {
    const size_t block_end =
        std::min(end, code_point_boundary(source.text, std::min(end, begin + kBlockBytes)));
    tokens.clear();
    tokenizer.encode(source, begin, block_end, tokens);
    shard.append(tokens);
    begin = block_end;
  }
}

void create_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw IoError("{}: cannot create folder: {}", folder.string(), error.message());
}

void remove_stale(const fs::path& path) {
  std::error_code error;
  fs::remove(path, error);
  if (error) throw IoError("{}: cannot remove: {}", path.string(), error.message());
}

}  // namespace

PrepareResult prepare(const PrepareOptions& options) {
  check_options(options);
  const Corpus corpus = read_corpus(options.inputs);
  const size_t train_count = train_characters(corpus, options.val_fraction);
  const std::unique_ptr<Tokenizer> tokenizer =
      options.tokenizer_file.empty() ? build_tokenizer(options.tokenizer, corpus.code_points)
                                     : load_tokenizer(options.tokenizer_file);
  const uint64_t hash = tokenizer->hash();

  create_folder(options.out_dir);
  TokenShardWriter train(options.out_dir / split_file_name(Split::kTrain), tokenizer->vocab_size(),
                         hash);
  std::optional<TokenShardWriter> val;
  const fs::path val_path = options.out_dir / split_file_name(Split::kVal);
  if (options.val_fraction > 0.0) val.emplace(val_path, tokenizer->vocab_size(), hash);

  std::vector<int32_t> tokens;
  size_t left = train_count;  // characters still to go to train
  for (const CorpusFile& file : corpus.files) {
    const TextSource source = file.source();
    const size_t here = std::min(left, file.characters);
    const size_t cut =
        here == file.characters ? source.text.size() : code_point_offset(source.text, here);
    write_tokens(train, *tokenizer, source, 0, cut, tokens);
    if (val) write_tokens(*val, *tokenizer, source, cut, source.text.size(), tokens);
    left -= here;
  }

  train.finish();
  if (val) val->finish();
  // A crash between these renames leaves a shard whose hash is not tokenizer.json's, which the
  // loader refuses, unless the vocabulary stayed the same.
  tokenizer->save(options.out_dir / kTokenizerFileName);
  train.publish();
  val ? val->publish() : remove_stale(val_path);

  return {.tokenizer = std::string(tokenizer->kind()),
          .vocab_size = tokenizer->vocab_size(),
          .tokenizer_hash = hash,
          .token_type = train.token_type(),
          .bytes = static_cast<int64_t>(corpus.bytes),
          .characters = static_cast<int64_t>(corpus.characters),
          .train_tokens = train.token_count(),
          .val_tokens = val ? val->token_count() : 0};
}

}  // namespace gradus
