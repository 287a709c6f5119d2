#include "train/config_override.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

namespace gradus {

std::string override_hint(const std::string& text, const std::vector<std::string>& known) {
  const auto is_known = [&](std::string_view key) {
    return std::ranges::find(known, key) != known.end();
  };
  if (text == "=" || text.starts_with('=')) return "write no spaces around the =";
  if (is_known(text)) return fmt::format("write {}=VALUE, without spaces around the =", text);
  if (const size_t colon = text.find(':'); colon != text.npos && is_known(text.substr(0, colon))) {
    const size_t value = text.find_first_not_of(' ', colon + 1);
    return fmt::format("write {}={}", text.substr(0, colon),
                       value == text.npos ? "VALUE" : text.substr(value));
  }
  if (text.ends_with(".yaml") || text.ends_with(".yml")) {
    return "one configuration inherits another by its key base";
  }
  return text.ends_with(']') ? "a list with spaces needs quotes in a shell" : "";
}

}  // namespace gradus
