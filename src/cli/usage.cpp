#include "cli/usage.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <string_view>
#include <vector>

#include "core/printable_text.h"
#include "train/config_nearest.h"
#include "train/config_text.h"

namespace gradus::cli {
namespace {

constexpr size_t kLongestQuote = 60;

std::vector<std::string> commands_of(const CLI::App& group) {
  std::vector<std::string> names;
  for (const CLI::App* command : group.get_subcommands(nullptr)) {
    names.push_back(command->get_name());
  }
  return names;
}

const CLI::App* find_command(const CLI::App& group, std::string_view name) {
  for (const CLI::App* command : group.get_subcommands(nullptr)) {
    if (command->get_name() == name) return command;
  }
  return nullptr;
}

}  // namespace

std::string wrong_command(const CLI::App& program, const std::vector<std::string>& words) {
  const CLI::App* group = &program;
  std::string path = program.get_name();
  std::string parent;
  for (const std::string& word : words) {
    if (word.starts_with("-")) return {};
    const std::vector<std::string> names = commands_of(*group);
    const CLI::App* const command = find_command(*group, word);
    if (command == nullptr) {
      const std::string shown = shortened(word, kLongestQuote);
      const std::string nearest = nearest_key(shown, names);
      return fmt::format("{} has no command {}{}\ncommands: {} ({} --help)\n", path, shown,
                         nearest.empty() ? "" : fmt::format(": did you mean {}?", nearest),
                         fmt::join(names, ", "), path);
    }
    if (commands_of(*command).empty()) return {};
    parent = path;
    path += " " + word;
    group = command;
  }
  return group->help(parent);
}

std::string setting_hint(const std::vector<std::string>& words) {
  const std::vector<std::string> known = known_keys();
  for (const std::string& word : words) {
    if (!word.starts_with("--")) continue;
    const std::string setting = word.substr(2);
    const std::string key = setting.substr(0, setting.find('='));
    if (std::ranges::find(known, key) == known.end()) continue;
    return fmt::format("settings are written without dashes: {}\n",
                       key == setting ? key + "=VALUE" : shortened(setting, kLongestQuote));
  }
  return {};
}

std::vector<std::string> with_options_for_commands(std::vector<std::string> words) {
  if (words.empty()) return words;
  if (words.front() == "version" && words.size() == 1) {
    words.front() = "--version";
  } else if (words.front() == "help") {
    words.erase(words.begin());
    words.emplace_back("--help");
  }
  return words;
}

}  // namespace gradus::cli
