#pragma once

#include <charconv>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <system_error>

#include "core/error.h"
#include "core/json_text.h"
#include "core/printable_text.h"

namespace gradus {

/// The members of a JSON object, by type and range. Throws SomeError (name of the file, field, what
/// was found, what was expected) where one is missing or something else. Both arguments of the
/// constructor must outlive it.
template <typename SomeError>
class JsonFields {
 public:
  JsonFields(const nlohmann::json& object, const std::string& name) : object_(object), name_(name) {
    if (!object.is_object()) {
      throw SomeError("{}: found {}, expected an object", name, printable(object.dump()));
    }
  }

  bool has(std::string_view field) const { return object_.contains(field); }

  const nlohmann::json& any(std::string_view field) const {
    const auto found = object_.find(field);
    if (found == object_.end()) throw SomeError("{}: field '{}' is missing", name_, field);
    return *found;
  }
  /// In [least, most].
  int64_t integer(std::string_view field, int64_t least, int64_t most) const {
    const nlohmann::json& value = any(field);
    const auto expected = [&] { return fmt::format("an integer of {} … {}", least, most); };
    if (!value.is_number_integer()) refuse(field, expected());
    if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
      refuse(field, expected());
    }
    const auto number = value.get<int64_t>();
    if (number < least || number > most) refuse(field, expected());
    return number;
  }
  bool boolean(std::string_view field) const {
    const nlohmann::json& value = any(field);
    if (!value.is_boolean()) refuse(field, "true or false");
    return value.template get<bool>();
  }
  const std::string& text(std::string_view field) const {
    const nlohmann::json& value = any(field);
    if (!value.is_string()) refuse(field, "text");
    return value.template get_ref<const std::string&>();
  }
  /// As "{:016x}" writes it.
  uint64_t hash64(std::string_view field) const {
    const std::string& digits = text(field);
    const char* const end = digits.data() + digits.size();
    uint64_t hash = 0;
    const auto [stop, error] = std::from_chars(digits.data(), end, hash, 16);
    if (error != std::errc() || stop != end || fmt::format("{:016x}", hash) != digits) {
      refuse(field, "16 hexadecimal digits");
    }
    return hash;
  }
  const nlohmann::json& object(std::string_view field) const {
    const nlohmann::json& value = any(field);
    if (!value.is_object()) refuse(field, "an object");
    return value;
  }
  const nlohmann::json& array(std::string_view field) const {
    const nlohmann::json& value = any(field);
    if (!value.is_array()) refuse(field, "an array");
    return value;
  }

  [[noreturn]] void refuse(std::string_view field, std::string_view expected) const {
    throw SomeError("{}: field '{}': found {}, expected {}", name_, field,
                    printable(any(field).dump()), expected);
  }

 private:
  const nlohmann::json& object_;
  const std::string& name_;
};

}  // namespace gradus
