#include "train/number_text.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <system_error>

namespace gradus {
namespace {

/// std::from_chars over the whole text, which unlike it may begin with a plus sign.
template <typename T>
std::errc parse_whole(std::string_view text, T& value) {
  if (text.starts_with('+') && !text.starts_with("+-")) text.remove_prefix(1);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc::invalid_argument || end != text.data() + text.size()) {
    return std::errc::invalid_argument;
  }
  return error;
}

/// 010 is eight to YAML 1.1 and ten to YAML 1.2 and to most people: refused.
bool has_leading_zero(std::string_view text) {
  if (text.starts_with('+') || text.starts_with('-')) text.remove_prefix(1);
  return text.size() > 1 && text[0] == '0' && text.find_first_not_of("0123456789") == text.npos;
}

std::string without(std::string_view text, std::string_view characters) {
  std::string kept(text);
  std::erase_if(kept, [&](char c) { return characters.find(c) != characters.npos; });
  return kept;
}

std::string integer_hint(std::string_view text) {
  int64_t integer = 0;
  const std::string digits = without(text, "_,");
  if (digits.size() != text.size() &&
      parse_whole(std::string_view(digits), integer) == std::errc{}) {
    return fmt::format("write {}, without {}", integer,
                       text.find('_') != text.npos ? "underscores" : "commas");
  }
  double number = 0;
  if (parse_whole(text, number) != std::errc{} || !std::isfinite(number)) return {};
  if (number == std::trunc(number) && std::abs(number) < 9007199254740992.0) {  // 2⁵³
    return fmt::format("write {}, without fraction or exponent", static_cast<int64_t>(number));
  }
  return {};
}

}  // namespace

std::optional<std::string> read_integer(std::string_view text, int64_t& value) {
  const std::errc error = parse_whole(text, value);
  if (error == std::errc::result_out_of_range) return "it does not fit in 64 bits";
  if (error != std::errc{}) return integer_hint(text);
  if (has_leading_zero(text)) return "write it without leading zeros";
  return std::nullopt;
}

std::optional<std::string> read_number(std::string_view text, double& value) {
  const std::errc error = parse_whole(text, value);
  if (error == std::errc::result_out_of_range) return "it does not fit in a double";
  if (error != std::errc{}) {
    return text.ends_with(".inf") || text == ".nan" ? "it must be finite" : "";
  }
  if (!std::isfinite(value)) return "it must be finite";
  if (has_leading_zero(text)) return "write it without leading zeros";
  return std::nullopt;
}

}  // namespace gradus
