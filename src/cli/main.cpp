#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <sstream>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "core/error.h"
#include "parallel/bootstrap.h"
#include "train/config_nearest.h"

namespace gradus::cli {
namespace {

constexpr int kWrongUsage = 2;

/// What is wrong with a first argument that is no command; CLI11 would only say that one is
/// missing. Empty where it is one, or an option.
std::string unknown_command(const CLI::App& program, const std::string& word) {
  std::vector<std::string> commands;
  for (const CLI::App* command : program.get_subcommands(nullptr)) {
    commands.push_back(command->get_name());
  }
  if (word.starts_with("-") || std::ranges::find(commands, word) != commands.end()) return {};
  const std::string nearest = nearest_key(word, commands);
  return fmt::format("gradus has no command {}{}\ncommands: {} (gradus --help)\n", word,
                     nearest.empty() ? "" : fmt::format(": did you mean {}?", nearest),
                     fmt::join(commands, ", "));
}

/// Parses the command line and runs the chosen subcommand. What is wrong with the command line, and
/// help, is printed by the first rank alone.
int run(Bootstrap& bootstrap, int argc, char** argv) {
  CLI::App program("Gradus trains GPT models end to end: one program, from YAML, without Python.",
                   "gradus");
  program.require_subcommand(1);
  program.set_version_flag("--version", GRADUS_VERSION);
  Action action;
  add_train(program, argv[0], action);
  add_plan(program, action);
  add_verify(program, action);
  add_generate(program, action);
  add_data(program, action);
  add_bench(program, action);
  add_info(program, action);
  const std::string unknown = argc > 1 ? unknown_command(program, argv[1]) : "";
  if (!unknown.empty()) {
    if (bootstrap.rank() == 0) std::fputs(unknown.c_str(), stderr);
    return kWrongUsage;
  }
  try {
    program.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::ostringstream out;
    std::ostringstream err;
    const int code = program.exit(error, out, err);
    if (bootstrap.rank() == 0) {
      std::fputs(out.str().c_str(), stdout);
      std::fputs(err.str().c_str(), stderr);
    }
    return code == 0 ? 0 : kWrongUsage;
  }
  return action(bootstrap);
}

}  // namespace

void require_one_rank(const Bootstrap& bootstrap, const char* command) {
  if (bootstrap.size() == 1) return;
  throw ConfigError(
      "gradus {} works in one process and was started as {} ranks: start it without mpirun",
      command, bootstrap.size());
}

}  // namespace gradus::cli

/// Exit codes: 0 done, 1 an error (printed once, whichever rank it happened on), 2 wrong usage.
int main(int argc, char** argv) {
  spdlog::set_pattern("%H:%M:%S %L %v");  // warnings before a command has its own log
  return gradus::run_job(
      {}, [&](gradus::Bootstrap& bootstrap) { return gradus::cli::run(bootstrap, argc, argv); });
}
