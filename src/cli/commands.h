#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "core/executor.h"
#include "parallel/bootstrap.h"

namespace gradus::cli {

/// Runs a subcommand on this rank; returns the program's exit code. Errors are thrown.
using Action = std::function<int(Bootstrap&)>;

/// Throws ConfigError when a command that works in one process was started as several ranks.
void require_one_rank(const Bootstrap& bootstrap, const char* command);

/// Tells of threads that were asked for and cannot be had (core/thread_team.h), or that are more
/// than the cores of a rank: what the lowest rank has to say, on the first rank; empty elsewhere,
/// and where every rank has all of its threads. Collective over the job.
std::string shortage_of_threads(Bootstrap& bootstrap, const Executor& x);

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
