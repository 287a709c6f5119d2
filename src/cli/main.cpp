#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <sstream>

#include "cli/commands.h"
#include "core/error.h"
#include "parallel/bootstrap.h"

namespace gradus::cli {
namespace {

constexpr int kWrongUsage = 2;

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
