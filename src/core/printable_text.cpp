#include "core/printable_text.h"

#include <fmt/format.h>

namespace gradus {

std::string shortened(std::string_view text, size_t most) {
  if (text.size() <= most) return std::string(text);
  const auto continues = [&](size_t at) {
    return (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80;
  };
  size_t length = most;
  while (length > 0 && continues(length)) --length;
  return std::string(text.substr(0, length)) + "…";
}

std::string one_line(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  return out;
}

std::string printable(std::string_view text) {
  constexpr size_t kLongest = 120;
  return one_line(shortened(text, kLongest));
}

}  // namespace gradus
