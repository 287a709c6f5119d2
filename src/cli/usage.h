#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace gradus::cli {

/// Exit codes: 0 done, 1 an error, this for a command line that is none.
inline constexpr int kWrongUsage = 2;

/// What to print where the first words of a command line name no command: the nearest ones, or,
/// where words are missing, the help of what they lead to. Empty where they name a command, or an
/// option stands in their place. CLI11 would only say that a command is missing.
std::string wrong_command(const CLI::App& program, const std::vector<std::string>& words);

/// What to write instead of an argument such as `--optim.lr=3e-4`; empty where there is none such.
std::string setting_hint(const std::vector<std::string>& words);

/// `help WORDS…` as `WORDS… --help`, and `version` as `--version`; others as they are.
std::vector<std::string> with_options_for_commands(std::vector<std::string> words);

}  // namespace gradus::cli
