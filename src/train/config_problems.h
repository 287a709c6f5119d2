#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/counted.h"
#include "core/error.h"
#include "core/printable_text.h"
#include "train/config_text.h"

namespace gradus {

/// A ConfigError that lies in what was typed, and in no file.
class UsageError : public ConfigError {
 public:
  using ConfigError::ConfigError;
};

/// The place of a setting of the command line.
inline constexpr std::string_view kCommandLine = "command line";

/// Collects what is wrong with a configuration, to be thrown at once.
class ConfigProblems {
 public:
  /// place: "file:line", kCommandLine or empty for a value nobody set; key: dotted, may be empty.
  void add(std::string_view place, std::string_view key, std::string_view message) {
    if (place != kCommandLine) only_usage_ = false;
    ++count_;
    if (lines_.size() == kMostLines) return;
    std::string line;
    for (const std::string& part : {std::string(place), shortened(key, kLongestKey)}) {
      if (!part.empty()) line.append(part).append(": ");
    }
    line += message;
    lines_.push_back(one_line(shortened(line, kLongestLine)));
  }

  /// Throws one error with a line for each problem, in the order in which they were added: a
  /// UsageError where all of them lie on the command line, else a ConfigError.
  void throw_if_any() const {
    if (count_ == 0) return;
    std::string text = counted(static_cast<int64_t>(count_), "problem") + " in the configuration";
    for (const std::string& line : lines_) text += "\n  " + line;
    if (count_ > lines_.size()) text += fmt::format("\n  and {} more", count_ - lines_.size());
    if (only_usage_) throw UsageError(text);
    throw ConfigError(text);
  }

 private:
  // A hostile file must not fill the terminal.
  static constexpr size_t kMostLines = 50;
  static constexpr size_t kLongestKey = 80;
  static constexpr size_t kLongestLine = 2000;

  std::vector<std::string> lines_;
  size_t count_ = 0;
  bool only_usage_ = true;
};

}  // namespace gradus
