#include "data/char_tokenizer.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "core/error.h"

namespace gradus {

CharTokenizer::CharTokenizer(std::vector<char32_t> vocab) : vocab_(std::move(vocab)) {
  if (vocab_.empty()) throw DataError("a char tokenizer needs at least one character");
  ids_.assign(static_cast<size_t>(vocab_.back()) + 1, -1);
  for (size_t id = 0; id < vocab_.size(); ++id) ids_.at(vocab_[id]) = static_cast<int32_t>(id);
}

std::unique_ptr<Tokenizer> CharTokenizer::build(std::span<const char32_t> code_points) {
  return std::make_unique<CharTokenizer>(
      std::vector<char32_t>(code_points.begin(), code_points.end()));
}

std::unique_ptr<Tokenizer> CharTokenizer::parse(const nlohmann::json& definition,
                                                const std::string& name) {
  const auto entries = definition.find("vocab");
  if (entries == definition.end() || !entries->is_array() || entries->empty()) {
    throw DataError("{}: expected \"vocab\" to be a non-empty array of characters", name);
  }
  std::vector<char32_t> vocab;
  vocab.reserve(entries->size());
  for (size_t id = 0; id < entries->size(); ++id) {
    const nlohmann::json& entry = (*entries)[id];
    const std::string_view character =
        entry.is_string() ? std::string_view(entry.get_ref<const std::string&>()) : "";
    const TextSource text = {fmt::format("{}: \"vocab\"[{}]", name, id), character};
    size_t end = 0;
    const char32_t code_point = text.text.empty() ? 0 : decode_utf8(text, end);
    if (text.text.empty() || end != text.text.size()) {
      throw DataError("{}: expected a string of exactly one character, found {}", text.name,
                      entry.dump());
    }
    if (!vocab.empty() && code_point <= vocab.back()) {
      throw DataError("{}: {} does not come after {}: the vocabulary ascends without repetition",
                      text.name, describe_code_point(code_point),
                      describe_code_point(vocab.back()));
    }
    vocab.push_back(code_point);
  }
  return std::make_unique<CharTokenizer>(std::move(vocab));
}

void CharTokenizer::encode(const TextSource& source, size_t begin, size_t end,
                           std::vector<int32_t>& tokens) const {
  for (size_t offset = begin; offset < end;) {
    const size_t start = offset;
    const char32_t code_point = decode_utf8(source, offset);
    const int32_t id = code_point < ids_.size() ? ids_[code_point] : -1;
    if (id < 0) {
      throw DataError(
          "{}: character {} is not in the vocabulary of {} characters; remove it, or prepare the "
          "data again with a corpus that has it or with the bytes tokenizer, and train on that",
          text_position(source, start), describe_code_point(code_point), vocab_.size());
    }
    tokens.push_back(id);
  }
}

void CharTokenizer::write_definition(nlohmann::json& definition) const {
  nlohmann::json& entries = definition["vocab"] = nlohmann::json::array();
  for (size_t id = 0; id < vocab_.size(); ++id) {
    std::string character;
    append_token(character, static_cast<int32_t>(id));
    entries.push_back(std::move(character));
  }
}

void CharTokenizer::append_token(std::string& text, int32_t token) const {
  append_utf8(text, vocab_[static_cast<size_t>(token)]);
}

}  // namespace gradus
