#pragma once

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "train/config.h"
#include "train/config_field.h"

/// The types a key can have. For each: read_value (strict: no conversion between types, no silent
/// default), write_value (YAML that read_value takes back bit by bit), type_text (what read_value
/// accepts, in words) and in_range.

namespace gradus {

/// Why a YAML node is not a value of the type asked for.
struct Misread {
  std::string found;
  std::string hint{};  ///< how to write what was probably meant; may be empty
  int line = 0;        ///< 1-based, when it is not the key's own line; else 0
};
using ReadResult = std::optional<Misread>;  ///< nullopt: read

/// The node as an error message shows it: its text in quotes, or "a list", "a section", "nothing".
std::string describe(const YAML::Node& node);

ReadResult read_value(const YAML::Node& node, int64_t& value);
ReadResult read_value(const YAML::Node& node, double& value);
ReadResult read_value(const YAML::Node& node, bool& value);
ReadResult read_value(const YAML::Node& node, std::string& value);
ReadResult read_value(const YAML::Node& node, std::vector<std::string>& value);
ReadResult read_value(const YAML::Node& node, Resume& value);
ReadResult read_value(const YAML::Node& node, EvalTokens& value);

std::string write_value(int64_t value);
std::string write_value(double value);
std::string write_value(bool value);
std::string write_value(const std::string& value);
std::string write_value(const std::vector<std::string>& value);
std::string write_value(const Resume& value);
std::string write_value(const EvalTokens& value);

inline std::string type_text(int64_t) { return "an integer"; }
inline std::string type_text(double) { return "a number"; }
inline std::string type_text(bool) { return "true or false"; }
inline std::string type_text(const std::string&) { return "text"; }
inline std::string type_text(const std::vector<std::string>&) { return "a list of text"; }
inline std::string type_text(const Resume&) { return "auto, never or a path"; }
inline std::string type_text(const EvalTokens&) { return "all or an integer"; }

/// The range in words, with a leading space; empty when everything is allowed.
std::string range_text(const Range& range);

template <typename T>
concept NamedEnum = std::is_enum_v<T> && requires(T value) {
  enum_names(value);
};

/// The node's text when it is a plain (unquoted) scalar, else nullopt.
std::optional<std::string> plain_text(const YAML::Node& node);

template <NamedEnum E>
ReadResult read_value(const YAML::Node& node, E& value) {
  const auto names = enum_names(E{});
  for (size_t i = 0; node.IsScalar() && i < names.size(); ++i) {
    if (node.Scalar() == names[i]) {
      value = static_cast<E>(i);
      return std::nullopt;
    }
  }
  return Misread{.found = describe(node)};
}

template <NamedEnum E>
std::string write_value(E value) {
  return std::string(to_string(value));
}

/// "a, b or c"
template <NamedEnum E>
std::string type_text(E) {
  const auto names = enum_names(E{});
  std::string text;
  for (size_t i = 0; i < names.size(); ++i) {
    if (i > 0) text += i + 1 < names.size() ? ", " : " or ";
    text += names[i];
  }
  return text;
}

template <typename T>
ReadResult read_value(const YAML::Node& node, std::optional<T>& value) {
  if (plain_text(node) == "auto") {
    value.reset();
    return std::nullopt;
  }
  T given{};
  ReadResult result = read_value(node, given);
  if (!result) value = given;
  return result;
}

template <typename T>
std::string write_value(const std::optional<T>& value) {
  return value ? write_value(*value) : "auto";
}

template <typename T>
std::string type_text(const std::optional<T>&) {
  return "auto or " + type_text(T{});
}

template <typename T>
bool in_range(const T& value, const Range& range) {
  if constexpr (std::integral<T> || std::floating_point<T>) {
    return range.contains(static_cast<double>(value));
  } else if constexpr (std::same_as<T, std::vector<std::string>>) {
    return range.contains(static_cast<double>(value.size())) &&
           std::none_of(value.begin(), value.end(), [](const auto& item) { return item.empty(); });
  } else if constexpr (std::same_as<T, std::string>) {
    return !value.empty();
  } else if constexpr (std::same_as<T, Resume>) {
    return value.mode != Resume::Mode::from_path || !value.path.empty();
  } else if constexpr (std::same_as<T, EvalTokens>) {
    return in_range(value.count, range);
  } else if constexpr (requires { value.has_value(); }) {
    return !value || in_range(*value, range);
  } else {
    return true;
  }
}

/// What a key accepts, for "expected …".
template <typename T>
std::string expectation(const T& value, const Range& range) {
  if constexpr (std::same_as<T, std::vector<std::string>>) {
    return type_text(value) + (range.low > 0 ? ", not empty" : "");
  } else if constexpr (std::same_as<T, std::string>) {
    return type_text(value) + ", not empty";
  } else {
    return type_text(value) + range_text(range);
  }
}

}  // namespace gradus
