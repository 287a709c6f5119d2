#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <new>

#include "cli/commands.h"
#include "core/error.h"

/// Parses the command line, runs the chosen subcommand and prints what it threw, once.
/// Exit codes: 0 done, 1 an error, 2 wrong usage.
int main(int argc, char** argv) {
  using namespace gradus;
  CLI::App program("Gradus trains GPT models end to end: one program, from YAML, without Python.",
                   "gradus");
  program.require_subcommand(1);
  program.set_version_flag("--version", GRADUS_VERSION);
  cli::Action action;
  cli::add_train(program, action);
  cli::add_plan(program, action);
  cli::add_generate(program, action);
  cli::add_data(program, action);
  cli::add_bench(program, action);
  cli::add_info(program, action);
  try {
    program.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return program.exit(error) == 0 ? 0 : 2;
  }
  try {
    return action();
  } catch (const Error& error) {
    fmt::print(stderr, "gradus: {}: {}\n", error.kind(), error.what());
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "gradus: memory error: the system gave no more memory\n");
  } catch (const std::exception& error) {
    fmt::print(stderr, "gradus: error: {}\n", error.what());
  }
  return 1;
}
