#pragma once

#include <spdlog/logger.h>

#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace gradus::cli {

/// First of all: opens descriptors 0, 1 and 2 where this program was started without them, so that
/// no file of its own gets their numbers and whatever is printed. Using them still fails.
void claim_standard_descriptors();

/// Hands what was printed to the system. Throws IoError where it does not take it.
void flush_output();
/// Prints at once. Throws IoError.
void print_now(std::string_view text);

/// Runs a command that prints its result, and hands that over: throws IoError where the result did
/// not get out. Returns what `command` does.
int with_checked_output(const std::function<int()>& command);

enum class Colors { on_a_terminal, never };

/// A log on standard output. A line that cannot be written is lost; the first time standard error
/// says so.
std::shared_ptr<spdlog::logger> console_log(const std::string& name, Colors colors);

}  // namespace gradus::cli
