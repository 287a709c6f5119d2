#include "data/tokenizer.h"

#include <fmt/ranges.h>
#include <xxhash.h>

#include <array>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/atomic_file.h"
#include "core/error.h"
#include "core/input_file.h"
#include "core/json_text.h"
#include "data/byte_tokenizer.h"
#include "data/char_tokenizer.h"

namespace gradus {
namespace {

using nlohmann::json;

constexpr std::string_view kFormat = "gradus-tokenizer";
constexpr int64_t kVersion = 1;

/// How the tokenizers of one kind come to be: from a corpus, or from their definition.
struct Kind {
  std::string_view name;
  std::unique_ptr<Tokenizer> (*build)(std::span<const char32_t> code_points);
  std::unique_ptr<Tokenizer> (*parse)(const json& definition, const std::string& name);
};

constexpr std::array kKinds = {
    Kind{CharTokenizer::kKind, CharTokenizer::build, CharTokenizer::parse},
    Kind{ByteTokenizer::kKind, ByteTokenizer::build, ByteTokenizer::parse},
};

const Kind* find_kind(std::string_view name) {
  for (const Kind& kind : kKinds) {
    if (kind.name == name) return &kind;
  }
  return nullptr;
}

json definition_of(const std::string_view kind) {
  return {{"format", kFormat}, {"version", kVersion}, {"kind", kind}};
}

}  // namespace

std::vector<int32_t> Tokenizer::encode(std::string_view text, std::string name) const {
  std::vector<int32_t> tokens;
  tokens.reserve(text.size());
  encode({std::move(name), text}, 0, text.size(), tokens);
  return tokens;
}

std::string Tokenizer::decode(std::span<const int32_t> tokens) const {
  std::string text;
  text.reserve(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= vocab_size()) {
      throw DataError("token id {} at position {} is outside the {} tokenizer's vocabulary of {}",
                      tokens[i], i, kind(), vocab_size());
    }
    append_token(text, tokens[i]);
  }
  return text;
}

std::string Tokenizer::to_json() const {
  json definition = definition_of(kind());
  write_definition(definition);
  return definition.dump();  // nlohmann's objects are sorted by key
}

uint64_t Tokenizer::hash() const {
  const std::string text = to_json();
  return XXH3_64bits(text.data(), text.size());
}

void Tokenizer::save(const std::filesystem::path& path) const {
  json definition = definition_of(kind());
  write_definition(definition);
  AtomicFile file(path);
  file.write(definition.dump(1) + "\n");
  file.publish();
}

std::vector<std::string_view> tokenizer_kinds() {
  std::vector<std::string_view> names;
  for (const Kind& kind : kKinds) names.push_back(kind.name);
  return names;
}

std::unique_ptr<Tokenizer> build_tokenizer(std::string_view kind,
                                           std::span<const char32_t> code_points) {
  const Kind* found = find_kind(kind);
  if (found == nullptr) {
    throw ConfigError("unknown tokenizer '{}'; expected one of: {}", kind,
                      fmt::join(tokenizer_kinds(), ", "));
  }
  return found->build(code_points);
}

std::unique_ptr<Tokenizer> parse_tokenizer(std::string_view text, const std::string& name) {
  const json definition = parse_json_or_throw<DataError>(text, name);
  if (!definition.is_object() || definition.value("format", json()) != kFormat) {
    throw DataError("{}: not a tokenizer: expected a JSON object with \"format\": \"{}\"", name,
                    kFormat);
  }
  const json version = definition.value("version", json());
  if (version != kVersion) {
    throw DataError("{}: tokenizer version {}, but this program reads version {}", name,
                    version.dump(), kVersion);
  }
  const json kind = definition.value("kind", json());
  const Kind* found = kind.is_string() ? find_kind(kind.get_ref<const std::string&>()) : nullptr;
  if (found == nullptr) {
    throw DataError("{}: unknown tokenizer kind {}; this program has: {}", name, kind.dump(),
                    fmt::join(tokenizer_kinds(), ", "));
  }
  return found->parse(definition, name);
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& path) {
  return parse_tokenizer(read_small_file(path), path.string());
}

}  // namespace gradus
