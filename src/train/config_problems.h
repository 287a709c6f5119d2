#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"

namespace gradus {

/// Collects what is wrong with a configuration, to be thrown at once.
class ConfigProblems {
 public:
  /// place: "file:line", "command line" or empty for a value nobody set; key: dotted, may be empty.
  void add(std::string_view place, std::string_view key, std::string_view message) {
    std::string line;
    for (const std::string_view part : {place, key}) {
      if (!part.empty()) line.append(part).append(": ");
    }
    line += message;
    lines_.emplace_back();
    for (const char c : line) {  // a problem stays on its line whatever text it quotes
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
        lines_.back() += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
      } else {
        lines_.back() += c;
      }
    }
  }

  /// Throws one ConfigError with a line for each problem, in the order in which they were added.
  void throw_if_any() const {
    if (lines_.empty()) return;
    std::string text = lines_.size() == 1
                           ? "1 problem in the configuration"
                           : fmt::format("{} problems in the configuration", lines_.size());
    for (const std::string& line : lines_) text += "\n  " + line;
    throw ConfigError(text);
  }

 private:
  std::vector<std::string> lines_;
};

}  // namespace gradus
