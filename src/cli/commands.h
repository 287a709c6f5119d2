#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "parallel/bootstrap.h"

namespace gradus::cli {

/// Runs a subcommand on this rank; returns the program's exit code. Errors are thrown.
using Action = std::function<int(Bootstrap&)>;

/// Throws ConfigError when a command that works in one process was started as several ranks.
void require_one_rank(const Bootstrap& bootstrap, const char* command);

// Each adds a subcommand, its options and its help to the program, and sets `action` when the user
// chose it.
/// invoked_as: argv[0], for the commands that `train` tells the user to type.
void add_train(CLI::App& program, const std::string& invoked_as, Action& action);
void add_plan(CLI::App& program, Action& action);
void add_verify(CLI::App& program, Action& action);
void add_generate(CLI::App& program, Action& action);
void add_data(CLI::App& program, Action& action);
void add_bench(CLI::App& program, Action& action);
void add_info(CLI::App& program, Action& action);

}  // namespace gradus::cli
