#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/tokenizer.h"

namespace gradus {

/// One token for each Unicode code point of a vocabulary; ids follow the order of the code points.
/// tokenizer.json lists the vocabulary as an array of one-character strings, in id order.
class CharTokenizer final : public Tokenizer {
 public:
  static constexpr std::string_view kKind = "char";

  /// vocab: strictly ascending Unicode scalar values, at least one.
  explicit CharTokenizer(std::vector<char32_t> vocab);

  static std::unique_ptr<Tokenizer> build(std::span<const char32_t> code_points);
  /// Throws DataError when "vocab" is not a non-empty array of single characters, ascending.
  static std::unique_ptr<Tokenizer> parse(const nlohmann::json& definition,
                                          const std::string& name);

  using Tokenizer::encode;
  std::string_view kind() const override { return kKind; }
  int64_t vocab_size() const override { return static_cast<int64_t>(vocab_.size()); }
  void encode(const TextSource& source, size_t begin, size_t end,
              std::vector<int32_t>& tokens) const override;

 protected:
  void write_definition(nlohmann::json& definition) const override;
  void append_token(std::string& text, int32_t token) const override;

 private:
  std::vector<char32_t> vocab_;  ///< id -> code point
  std::vector<int32_t> ids_;     ///< code point -> id, -1 where there is none; up to the last one
};

}  // namespace gradus
