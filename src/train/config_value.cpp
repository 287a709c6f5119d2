#include "train/config_value.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>

#include "core/printable_text.h"
#include "train/config_text.h"
#include "train/number_text.h"

namespace gradus {
namespace {

/// YAML marks a quoted scalar with the non-specific tag "!".
bool is_text_by_tag(const YAML::Node& node) {
  return node.Tag() == "!" || node.Tag() == "tag:yaml.org,2002:str";
}

/// read: read_integer or read_number.
template <typename T, typename Read>
ReadResult read_scalar(const YAML::Node& node, T& value, Read&& read) {
  Misread misread{.found = describe(node)};
  if (!node.IsScalar()) return misread;
  if (std::optional<std::string> hint = read(node.Scalar(), value)) {
    misread.hint = std::move(*hint);
  } else if (is_text_by_tag(node)) {
    misread.hint = "remove the quotes";
  } else {
    return std::nullopt;
  }
  return misread;
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
  return fmt::format("'{}'", shortened(node.Scalar(), kLongest));
}

std::optional<std::string> plain_text(const YAML::Node& node) {
  if (!node.IsScalar() || is_text_by_tag(node)) return std::nullopt;
  return node.Scalar();
}

ReadResult read_value(const YAML::Node& node, int64_t& value) {
  return read_scalar(node, value, read_integer);
}

ReadResult read_value(const YAML::Node& node, double& value) {
  return read_scalar(node, value, read_number);
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
  if (node.Scalar().find('\0') != std::string::npos) {
    return Misread{.found = describe(node), .hint = "it has a NUL, at which a path would end"};
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

ReadResult read_value(const YAML::Node& node, EvalTokens& value) {
  if (plain_text(node) == "all") {
    value.count.reset();
    return std::nullopt;
  }
  int64_t count = 0;
  ReadResult result = read_value(node, count);
  if (!result) value.count = count;
  return result;
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

std::string write_value(const EvalTokens& value) {
  return value.count ? write_value(*value.count) : "all";
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
