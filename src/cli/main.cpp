#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "cli/commands.h"
#include "cli/commit.h"
#include "cli/console.h"
#include "cli/openmp_settings.h"
#include "cli/usage.h"
#include "core/counted.h"
#include "core/error.h"
#include "core/thread_team.h"
#include "parallel/bootstrap.h"
#include "train/config_problems.h"

namespace gradus::cli {
namespace {

std::string version() {
  const std::string commit = GRADUS_COMMIT;
  return fmt::format("gradus {}{}", GRADUS_VERSION,
                     commit.empty() ? "" : fmt::format(" (commit {})", commit));
}

/// Runs the chosen command on this rank.
int run(Bootstrap& bootstrap, const Action& action) {
  try {
    return action(bootstrap);
  } catch (const UsageError& error) {
    // Ranks may read different command lines, so that this one's ends them all.
    const std::string message = fmt::format("{}: {}", error.kind(), error.what());
    if (bootstrap.size() > 1) bootstrap.abort(message, kWrongUsage);
    std::fprintf(stderr, "gradus: %s\n", message.c_str());
    return kWrongUsage;
  }
}

/// Parses the command line and runs the chosen subcommand. What is wrong with the command line, and
/// help, is printed by the first rank alone.
int run(Bootstrap& bootstrap, int argc, char** argv) {
  CLI::App program("Gradus trains GPT models end to end: one program, from YAML, without Python.",
                   "gradus");
  program.require_subcommand(1);
  program.set_version_flag("--version", version());
  program.footer("Exit codes: 0 done, 1 an error, 2 wrong usage.");
  Action action;
  add_train(program, argv[0], action);
  add_plan(program, action);
  add_verify(program, action);
  add_generate(program, action);
  add_data(program, action);
  add_bench(program, action);
  add_info(program, action);
  // For the list of commands: they are read as --help and --version.
  program.add_subcommand("help", "Show this, or the help of a command: gradus help data prepare");
  program.add_subcommand("version", "Show the version");

  std::vector<std::string> words = with_options_for_commands({argv + 1, argv + argc});
  const auto say = [&](std::FILE* stream, const std::string& text) {
    if (bootstrap.rank() == 0) std::fputs(text.c_str(), stream);
  };
  if (const std::string wrong = wrong_command(program, words); !wrong.empty()) {
    say(stderr, wrong);
    return kWrongUsage;
  }
  const std::string hint = setting_hint(words);
  try {
    std::ranges::reverse(words);  // CLI11 takes them from the back
    program.parse(std::move(words));
  } catch (const CLI::ParseError& error) {
    std::ostringstream out;
    std::ostringstream err;
    const int code = program.exit(error, out, err);
    say(stdout, out.str());
    say(stderr, err.str());
    if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) say(stderr, hint);
    return code == 0 ? 0 : kWrongUsage;
  }
  return run(bootstrap, action);
}

}  // namespace

void require_one_rank(const Bootstrap& bootstrap, const char* command) {
  if (bootstrap.size() == 1) return;
  throw ConfigError(
      "gradus {} works in one process and was started as {} ranks: start it without mpirun",
      command, bootstrap.size());
}

std::string shortage_of_threads(Bootstrap& bootstrap, const Executor& x) {
  std::string mine = thread_shortage(x.threads());
  if (mine.empty() && x.threads() > bootstrap.threads()) {
    mine = fmt::format("{} for {}: they wait for each other", counted(x.threads(), "thread"),
                       counted(bootstrap.threads(), "core"));
  }
  const std::vector<std::string> shortages = bootstrap.exchange(mine);
  if (bootstrap.rank() != 0) return {};
  for (size_t rank = 0; rank < shortages.size(); ++rank) {
    if (shortages[rank].empty()) continue;
    return bootstrap.size() == 1 ? shortages[rank]
                                 : fmt::format("rank {}: {}", rank, shortages[rank]);
  }
  return {};
}

}  // namespace gradus::cli

/// Exit codes: 0 done, 1 an error (printed once, whichever rank it happened on), 2 wrong usage.
int main(int argc, char** argv) {
  using gradus::cli::Colors;
  gradus::cli::claim_standard_descriptors();
  const std::string problem = gradus::cli::apply_openmp_settings(argv);
  if (!problem.empty()) std::fprintf(stderr, "warning: threads may spin: %s\n", problem.c_str());
  std::signal(SIGXFSZ, SIG_IGN);  // a file that may not grow is an error of the write instead
  // For warnings before a command has its own log.
  spdlog::set_default_logger(gradus::cli::console_log("", Colors::never));
  return gradus::run_job({}, [&](gradus::Bootstrap& bootstrap) {
    return gradus::cli::with_checked_output(
        [&] { return gradus::cli::run(bootstrap, argc, argv); });
  });
}
