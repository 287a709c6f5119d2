#include "data/byte_tokenizer.h"

namespace gradus {

std::unique_ptr<Tokenizer> ByteTokenizer::build(std::span<const char32_t> /*code_points*/) {
  return std::make_unique<ByteTokenizer>();
}

std::unique_ptr<Tokenizer> ByteTokenizer::parse(const nlohmann::json& /*definition*/,
                                                const std::string& /*name*/) {
  return std::make_unique<ByteTokenizer>();
}

void ByteTokenizer::encode(const TextSource& source, size_t begin, size_t end,
                           std::vector<int32_t>& tokens) const {
  for (const char byte : source.text.substr(begin, end - begin)) {
    tokens.push_back(static_cast<unsigned char>(byte));
  }
}

void ByteTokenizer::write_definition(nlohmann::json& /*definition*/) const {}

void ByteTokenizer::append_token(std::string& text, int32_t token) const {
  text.push_back(static_cast<char>(token));
}

}  // namespace gradus
