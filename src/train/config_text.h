#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace gradus {

/// Far more than any configuration takes: what is larger is another file.
inline constexpr size_t kMostConfigBytes = size_t{1} << 20;

/// Reads a regular file of at most kMostConfigBytes whole: no device, pipe or folder, none of which
/// is waited for. Returns what is wrong with it, in words; nullopt: text is its content.
std::optional<std::string> read_config_text(const std::filesystem::path& path, std::string& text);

/// What makes text no YAML by its characters alone.
struct TextProblem {
  int line = 0;  ///< 1-based
  std::string message;
};
/// Of text that is not UTF-8, or that has control characters other than tabs and line ends.
std::optional<TextProblem> find_text_problem(std::string_view text);

/// Well-formed by RFC 3629. yaml-cpp passes other bytes through, and JSON cannot hold them.
bool is_utf8(std::string_view text);

/// Whether a tab is among what a line begins with. line: 0-based
bool begins_with_tab(std::string_view text, int line);

}  // namespace gradus
