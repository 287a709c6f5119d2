#include "cli/option_values.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "core/printable_text.h"
#include "train/config_nearest.h"
#include "train/config_text.h"
#include "train/config_value.h"
#include "train/number_text.h"

namespace gradus::cli {
namespace {

constexpr size_t kLongestQuote = 60;

[[noreturn]] void refuse(const std::string& name, const std::string& text,
                         const std::string& expected, const std::string& hint) {
  throw CLI::ValidationError(
      name, fmt::format("found '{}', expected {}{}{}", shortened(text, kLongestQuote), expected,
                        hint.empty() ? "" : "; ", hint));
}

/// read: read_integer or read_number.
template <typename T, typename Read>
CLI::Option* add_value(CLI::App& command, const std::string& name, T& value, const Range& range,
                       const std::string& help, Read&& read) {
  const auto take = [&value, name, range, read](const std::string& text) {
    T given{};
    const std::optional<std::string> hint = read(text, given);
    if (hint || !in_range(given, range)) {
      refuse(name, text, expectation(given, range), hint.value_or(""));
    }
    value = given;
  };
  return command.add_option_function<std::string>(name, take, help)
      ->type_name("NUMBER")
      ->default_str(fmt::format("{}", value));
}

}  // namespace

CLI::Option* add_integer(CLI::App& command, const std::string& name, int64_t& value,
                         const Range& range, const std::string& help) {
  return add_value(command, name, value, range, help, read_integer);
}

CLI::Option* add_number(CLI::App& command, const std::string& name, double& value,
                        const Range& range, const std::string& help) {
  return add_value(command, name, value, range, help, read_number);
}

CLI::Option* add_choice(CLI::App& command, const std::string& name, std::string& value,
                        const std::vector<std::string>& words, const std::string& help) {
  const auto take = [&value, name, words](const std::string& text) {
    if (std::ranges::find(words, text) == words.end()) {
      const std::string nearest = nearest_key(shortened(text, kLongestQuote), words);
      refuse(name, text, fmt::format("{}", fmt::join(words, " or ")),
             nearest.empty() ? "" : fmt::format("did you mean {}?", nearest));
    }
    value = text;
  };
  return command.add_option_function<std::string>(name, take, help)
      ->type_name("WORD")
      ->default_str(value);
}

}  // namespace gradus::cli
