#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/utf8.h"

namespace gradus {

/// Text to token ids and back. Ids are 0 … vocab_size() - 1. Immutable, so safe to share between
/// threads. A further kind is a class derived from this one and a row in tokenizer.cpp's table of
/// kinds; its whole definition lives in its JSON.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// The name of the kind in configs, on command lines and in tokenizer.json.
  virtual std::string_view kind() const = 0;
  virtual int64_t vocab_size() const = 0;

  /// Appends the tokens of source.text[begin, end) to tokens; begin and end are code-point
  /// boundaries. The whole text comes along so that errors can give file, line and byte.
  /// Throws DataError for text that the tokenizer cannot represent.
  virtual void encode(const TextSource& source, size_t begin, size_t end,
                      std::vector<int32_t>& tokens) const = 0;
  /// The tokens of a text with no file behind it; `name` is what errors call it.
  std::vector<int32_t> encode(std::string_view text, std::string name = "text") const;

  /// The text of tokens. Decoding is a homomorphism: decode(a + b) = decode(a) + decode(b) as
  /// bytes, so tokens can be printed one by one as they are sampled. A single token of a byte-level
  /// kind may be part of a code point. Throws DataError for an id outside the vocabulary.
  std::string decode(std::span<const int32_t> tokens) const;

  /// The definition as canonical JSON: one line, sorted keys, UTF-8. Equal tokenizers have equal
  /// text.
  std::string to_json() const;
  /// XXH3-64 of to_json(): the identity that shards, checkpoints and configs are matched by.
  uint64_t hash() const;
  /// Writes the definition, indented to be read by people, atomically. Throws IoError.
  void save(const std::filesystem::path& path) const;

 protected:
  /// Adds what defines this kind beyond "format", "version" and "kind".
  virtual void write_definition(nlohmann::json& definition) const = 0;
  /// Appends the bytes of one token, 0 <= token < vocab_size().
  virtual void append_token(std::string& text, int32_t token) const = 0;
};

/// What tokenizer.json is called in the folder of a prepared corpus.
inline constexpr std::string_view kTokenizerFileName = "tokenizer.json";

/// The names of all kinds, for help, checks of settings and errors.
std::vector<std::string_view> tokenizer_kinds();

/// Builds the tokenizer of `kind` from a corpus, given as the sorted code points that occur in it.
/// Throws ConfigError for an unknown kind.
std::unique_ptr<Tokenizer> build_tokenizer(std::string_view kind,
                                           std::span<const char32_t> code_points);

/// Reads a tokenizer.json, respectively its text; `name` is what errors call that text.
/// Throws IoError when the file cannot be read and DataError, with the file and the place in it,
/// when it is not a valid definition.
std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& path);
std::unique_ptr<Tokenizer> parse_tokenizer(std::string_view json, const std::string& name);

}  // namespace gradus
