#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/tokenizer.h"

namespace gradus {

/// One token for each byte: V = 256, the id is the byte's value. Encodes any text; decodes single
/// tokens to single bytes, which need not be whole code points.
class ByteTokenizer final : public Tokenizer {
 public:
  static constexpr std::string_view kKind = "bytes";

  static std::unique_ptr<Tokenizer> build(std::span<const char32_t> code_points);
  static std::unique_ptr<Tokenizer> parse(const nlohmann::json& definition,
                                          const std::string& name);

  using Tokenizer::encode;
  std::string_view kind() const override { return kKind; }
  int64_t vocab_size() const override { return 256; }
  void encode(const TextSource& source, size_t begin, size_t end,
              std::vector<int32_t>& tokens) const override;

 protected:
  void write_definition(nlohmann::json& definition) const override;
  void append_token(std::string& text, int32_t token) const override;
};

}  // namespace gradus
