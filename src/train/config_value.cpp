#include "train/config_value.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string_view>
#include <system_error>

namespace gradus {
namespace {

bool is_continuation(char byte) { return (static_cast<unsigned char>(byte) & 0xc0) == 0x80; }

/// Well-formed by RFC 3629. yaml-cpp passes other bytes through, and JSON cannot hold them.
bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const auto lead = static_cast<unsigned char>(text[0]);
    const size_t length = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    if ((lead >= 0x80 && lead < 0xc2) || lead > 0xf4 || text.size() < length) return false;
    const std::string_view tail = text.substr(1, length - 1);
    if (!std::all_of(tail.begin(), tail.end(), is_continuation)) return false;
    // Overlong forms, surrogates and what lies beyond U+10FFFF show in the second byte.
    const auto second = static_cast<unsigned char>(length > 2 ? text[1] : 0);
    if ((lead == 0xe0 && second < 0xa0) || (lead == 0xed && second > 0x9f) ||
        (lead == 0xf0 && second < 0x90) || (lead == 0xf4 && second > 0x8f)) {
      return false;
    }
    text.remove_prefix(length);
  }
  return true;
}

/// YAML marks a quoted scalar with the non-specific tag "!".
bool is_text_by_tag(const YAML::Node& node) {
  return node.Tag() == "!" || node.Tag() == "tag:yaml.org,2002:str";
}

/// std::from_chars over the whole text, which unlike it may begin with a plus sign.
template <typename T>
std::errc parse_whole(std::string_view text, T& value) {
  if (text.starts_with('+') && !text.starts_with("+-")) text.remove_prefix(1);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{}) return error;
  return end == text.data() + text.size() ? std::errc{} : std::errc::invalid_argument;
}

/// 010 is eight to YAML 1.1 and ten to YAML 1.2 and to most people: refused.
bool has_leading_zero(std::string_view text) {
  if (text.starts_with('+') || text.starts_with('-')) text.remove_prefix(1);
  return text.size() > 1 && text[0] == '0' && text.find_first_not_of("0123456789") == text.npos;
}

std::string integer_hint(std::string_view text) {
  int64_t integer = 0;
  std::string digits(text);
  std::erase(digits, '_');
  if (digits.size() != text.size() && parse_whole(digits, integer) == std::errc{}) {
    return fmt::format("write {}, without underscores", integer);
  }
  double number = 0;
  if (parse_whole(text, number) != std::errc{} || !std::isfinite(number)) return {};
  if (number == std::trunc(number) && std::abs(number) < 9007199254740992.0) {  // 2⁵³
    return fmt::format("write {}, without fraction or exponent", static_cast<int64_t>(number));
  }
  return {};
}

/// As a double-quoted YAML scalar, with its escapes.
std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    } else {
      out += c;
    }
  }
  return out += '"';
}

bool is_safe_unquoted(const std::string& text) {
  const auto safe = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '/' || c == '.' || c == '-';
  };
  const bool starts_well = !text.empty() && text[0] != '-' && text[0] != '.';
  return (starts_well || text.starts_with("./") || text.starts_with("../")) &&
         std::all_of(text.begin(), text.end(), safe) && !YAML::IsNullString(text) &&
         text != "auto" && text != "never";
}

}  // namespace

std::string describe(const YAML::Node& node) {
  if (node.IsSequence()) return "a list";
  if (node.IsMap()) return "a section";
  if (!node.IsScalar()) return "nothing";
  constexpr size_t kLongest = 60;
  const std::string& text = node.Scalar();
  if (text.size() <= kLongest) return fmt::format("'{}'", text);
  size_t length = kLongest;
  while (length > 0 && is_continuation(text[length])) --length;  // not within a character
  return fmt::format("'{}…'", std::string_view(text).substr(0, length));
}

std::optional<std::string> plain_text(const YAML::Node& node) {
  if (!node.IsScalar() || is_text_by_tag(node)) return std::nullopt;
  return node.Scalar();
}

ReadResult read_value(const YAML::Node& node, int64_t& value) {
  Misread misread{.found = describe(node)};
  if (!node.IsScalar()) return misread;
  const std::string& text = node.Scalar();
  const std::errc error = parse_whole(text, value);
  if (error == std::errc::result_out_of_range) {
    misread.hint = "it does not fit in 64 bits";
  } else if (error != std::errc{}) {
    misread.hint = integer_hint(text);
  } else if (has_leading_zero(text)) {
    misread.hint = "write it without leading zeros";
  } else if (is_text_by_tag(node)) {
    misread.hint = "remove the quotes";
  } else {
    return std::nullopt;
  }
  return misread;
}

ReadResult read_value(const YAML::Node& node, double& value) {
  Misread misread{.found = describe(node)};
  if (!node.IsScalar()) return misread;
  const std::string& text = node.Scalar();
  const std::errc error = parse_whole(text, value);
  if (error == std::errc::result_out_of_range) {
    misread.hint = "it does not fit in a double";
  } else if (error != std::errc{}) {
    if (text.ends_with(".inf") || text == ".nan") misread.hint = "it must be finite";
  } else if (!std::isfinite(value)) {
    misread.hint = "it must be finite";
  } else if (has_leading_zero(text)) {
    misread.hint = "write it without leading zeros";
  } else if (is_text_by_tag(node)) {
    misread.hint = "remove the quotes";
  } else {
    return std::nullopt;
  }
  return misread;
}

ReadResult read_value(const YAML::Node& node, bool& value) {
  const std::optional<std::string> text = plain_text(node);
  if (text == "true" || text == "false") {
    value = text == "true";
    return std::nullopt;
  }
  return Misread{.found = describe(node)};
}

ReadResult read_value(const YAML::Node& node, std::string& value) {
  if (!node.IsScalar() || node.Scalar().empty()) return Misread{.found = describe(node)};
  if (!is_utf8(node.Scalar())) {
    return Misread{.found = describe(node), .hint = "it is not valid UTF-8"};
  }
  value = node.Scalar();
  return std::nullopt;
}

ReadResult read_value(const YAML::Node& node, std::vector<std::string>& value) {
  if (!node.IsSequence()) {
    Misread misread{.found = describe(node)};
    if (node.IsScalar()) misread.hint = fmt::format("write [{}]", node.Scalar());
    return misread;
  }
  std::vector<std::string> items;
  for (const YAML::Node& item : node) {
    if (ReadResult result = read_value(item, items.emplace_back())) {
      result->found = fmt::format("{} as item {}", result->found, items.size());
      result->line = item.Mark().line + 1;
      return result;
    }
  }
  value = std::move(items);
  return std::nullopt;
}

ReadResult read_value(const YAML::Node& node, Resume& value) {
  Resume given;
  if (ReadResult result = read_value(node, given.path)) return result;
  const std::optional<std::string> plain = plain_text(node);
  if (plain == "auto" || plain == "never") {
    given.mode = plain == "auto" ? Resume::Mode::automatic : Resume::Mode::never;
    given.path.clear();
  } else {
    given.mode = Resume::Mode::from_path;
  }
  value = std::move(given);
  return std::nullopt;
}

std::string write_value(int64_t value) { return fmt::format("{}", value); }

std::string write_value(double value) {
  std::string text = fmt::format("{}", value);  // the shortest that reads back as the same bits
  if (text.find_first_not_of("-0123456789") == std::string::npos) text += ".0";
  return text;
}

std::string write_value(bool value) { return value ? "true" : "false"; }

std::string write_value(const std::string& value) {
  return is_safe_unquoted(value) ? value : quoted(value);
}

std::string write_value(const std::vector<std::string>& value) {
  std::string text = "[";
  for (size_t i = 0; i < value.size(); ++i) {
    if (i > 0) text += ", ";
    text += write_value(value[i]);
  }
  return text += "]";
}

std::string write_value(const Resume& value) {
  switch (value.mode) {
    case Resume::Mode::automatic:
      return "auto";
    case Resume::Mode::never:
      return "never";
    case Resume::Mode::from_path:
      break;
  }
  return write_value(value.path);
}

std::string range_text(const Range& range) {
  const bool has_low = std::isfinite(range.low);
  const bool has_high = std::isfinite(range.high);
  if (!has_low && !has_high) return {};
  // Bounds are whole numbers below 2⁵³, written without an exponent, or short decimals.
  const auto number = [](double bound) {
    return bound == std::trunc(bound) ? fmt::format("{}", static_cast<int64_t>(bound))
                                      : fmt::format("{}", bound);
  };
  std::string text;
  if (has_low) text = fmt::format(" {} {}", range.low_excluded ? ">" : ">=", number(range.low));
  if (has_high) {
    text += fmt::format("{} {} {}", has_low ? " and" : "",
                        range.high_excluded ? "<" : "<=", number(range.high));
  }
  return text;
}

}  // namespace gradus
