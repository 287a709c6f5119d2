#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>

namespace gradus {

/// Allowed values of a number, or lengths of a list. Bounds stay below 2⁵³, so that an int64 value
/// compares with them without error.
struct Range {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool low_excluded = false;
  bool high_excluded = false;

  bool contains(double value) const {
    return std::isfinite(value) && (low_excluded ? value > low : value >= low) &&
           (high_excluded ? value < high : value <= high);
  }
};

inline constexpr Range kAnyValue{};
constexpr Range at_least(double low) { return {.low = low}; }
/// (low, high]
constexpr Range above(double low, double high) {
  return {.low = low, .high = high, .low_excluded = true};
}
constexpr Range between(double low, double high) { return {.low = low, .high = high}; }
/// [low, high)
constexpr Range from_below(double low, double high) {
  return {.low = low, .high = high, .high_excluded = true};
}

/// One key of a section: what parsing, checks, saving and the reference know about it.
template <typename Section, typename T>
struct Field {
  std::string_view key;
  T Section::*member;
  Range range;
  std::string_view doc;
};
template <typename Section, typename T>
Field(const char*, T Section::*, Range, const char*) -> Field<Section, T>;

/// The tuple of Fields of a section's struct; specialised in config_fields.h and nowhere else.
template <typename Section>
inline constexpr auto kFields = nullptr;

template <typename T>
inline constexpr bool kIsSection = !std::is_null_pointer_v<std::remove_cv_t<decltype(kFields<T>)>>;

/// Calls visit(field, value) for the direct fields of one section, in their order.
template <typename Section, typename Visit>
void for_each_field(Section& section, Visit&& visit) {
  std::apply([&](const auto&... field) { (visit(field, section.*(field.member)), ...); },
             kFields<std::remove_const_t<Section>>);
}

/// "optim" and "lr" to "optim.lr"; the root's prefix is empty.
inline std::string dotted_key(std::string_view prefix, std::string_view key) {
  std::string dotted(prefix);
  if (!dotted.empty()) dotted += '.';
  return dotted += key;
}

/// Calls visit(dotted key, field, value) for every key that holds a value, in depth-first order.
template <typename Section, typename Visit>
void for_each_value(Section& section, const std::string& prefix, Visit&& visit) {
  for_each_field(section, [&](const auto& field, auto& value) {
    const std::string key = dotted_key(prefix, field.key);
    if constexpr (kIsSection<std::remove_cvref_t<decltype(value)>>) {
      for_each_value(value, key, visit);
    } else {
      visit(key, field, value);
    }
  });
}

}  // namespace gradus
