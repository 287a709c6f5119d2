#include <spdlog/sinks/null_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "cli/commands.h"
#include "cli/config_arguments.h"
#include "core/error.h"
#include "train/config_layout.h"
#include "train/trainer.h"

namespace gradus::cli {
namespace {

/// An argument as a shell takes it back: quoted where a character may mean something to it.
std::string shell_word(const std::string& text) {
  const auto plain = [](unsigned char c) {
    return std::isalnum(c) != 0 ||
           std::string_view("_-+=.,:/@%").find(static_cast<char>(c)) != std::string_view::npos;
  };
  if (!text.empty() && std::ranges::all_of(text, plain)) return text;
  std::string quoted = "'";
  for (const char c : text) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

/// The command that goes on with a run, as a user types it.
std::string resume_command(const Bootstrap& bootstrap, const std::string& program,
                           const ConfigArguments& arguments, const Config& config) {
  std::string line;
  if (bootstrap.size() > 1) {
    // Set by mpirun, also where it was started inside a Slurm job; the launcher by
    // scripts/mpirun.sh.
    const bool by_mpirun = std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr;
    const bool by_srun = !by_mpirun && std::getenv("SLURM_STEP_ID") != nullptr;
    const char* launcher = std::getenv("GRADUS_LAUNCHER");
    const std::string started_by = launcher != nullptr ? shell_word(launcher) : "mpirun";
    line = fmt::format("{} {} ", by_srun ? "srun -n" : started_by + " -np", bootstrap.size());
  }
  line += shell_word(program) + " train " + shell_word(arguments.file);
  for (const std::string& setting : arguments.overrides) line += " " + shell_word(setting);
  // Another setting would start afresh, or again from where this run started.
  if (config.checkpoint.resume.mode != Resume::Mode::automatic) line += " checkpoint.resume=auto";
  return line;
}

/// What all ranks of a run have to be told alike, one setting a line: all but the names of places,
/// which another machine may call otherwise, and what a machine computes with.
std::string common_settings(const Config& config) {
  constexpr std::array<std::string_view, 4> kOwn = {"run.dir", "data.train", "data.val",
                                                    "train.threads"};
  std::string lines;
  for (const ConfigDifference& setting : config_differences(Config{}, config)) {
    if (std::ranges::find(kOwn, setting.key) != kOwn.end()) continue;
    lines += fmt::format("{}: {}\n", setting.key, setting.b);
  }
  return lines;
}

/// The lines of `a` that `b` does not have.
std::string lines_beside(const std::string& a, const std::string& b) {
  std::istringstream lines(a);
  std::string found;
  for (std::string line; std::getline(lines, line);) {
    if (("\n" + b).find("\n" + line + "\n") == std::string::npos) found += "\n    " + line;
  }
  return found.empty() ? " the default" : found;
}

/// An old copy of the configuration on one machine: replicas would train at different rates, or one
/// rank evaluate while another steps, and nothing would say so.
void refuse_different_settings(Bootstrap& bootstrap, const Config& config) {
  const std::vector<std::string> settings = bootstrap.exchange(common_settings(config));
  const auto other = std::ranges::find_if(
      settings, [&](const std::string& theirs) { return theirs != settings.front(); });
  if (other == settings.end()) return;
  throw ConfigError(
      "the ranks were started with different settings: give all of them the same configuration and "
      "the same key=value arguments\n  rank 0 has{}\n  rank {} has{}",
      lines_beside(settings.front(), *other), other - settings.begin(),
      lines_beside(*other, settings.front()));
}

/// The first rank speaks for all.
spdlog::logger make_log(const Bootstrap& bootstrap) {
  if (bootstrap.rank() != 0) {
    return spdlog::logger("gradus", std::make_shared<spdlog::sinks::null_sink_mt>());
  }
  // Launchers give their ranks a terminal of their own, whatever the output is written to.
  const auto colors =
      bootstrap.size() > 1 ? spdlog::color_mode::never : spdlog::color_mode::automatic;
  spdlog::logger log("gradus", std::make_shared<spdlog::sinks::stdout_color_sink_mt>(colors));
  log.set_pattern("%H:%M:%S %^%L%$ %v");
  return log;
}

int train(Bootstrap& bootstrap, const std::string& program, const ConfigArguments& arguments) {
  const Config config = arguments.load();
  refuse_different_settings(bootstrap, config);
  spdlog::logger log = make_log(bootstrap);
  Executor x(Device::cpu, static_cast<int>(config.train.threads.value_or(bootstrap.threads())));
  Mesh mesh(bootstrap, mesh_of(config.parallel, bootstrap.size()));
  Parallelism parallel(mesh, parallelism_options(config.parallel));
  Trainer trainer({.config = config,
                   .resume_command = resume_command(bootstrap, program, arguments, config),
                   .local_ranks = bootstrap.local_size()},
                  x, parallel, log);
  if (trainer.run() == Trainer::Outcome::finished) {
    log.info("done. To see what it learned: {} generate {}", shell_word(program),
             shell_word(config.run.dir));
  }
  return 0;
}

}  // namespace

void add_train(CLI::App& program, const std::string& invoked_as, Action& action) {
  auto arguments = std::make_shared<ConfigArguments>();
  CLI::App* command = program.add_subcommand("train", "Train a model as a configuration says");
  command->footer(
      "Metrics go to RUN/metrics.jsonl, checkpoints to RUN/checkpoints (RUN is the key run.dir).\n"
      "A run that was interrupted goes on from its newest checkpoint when started again.");
  arguments->add_to(*command);
  command->callback([arguments, invoked_as, &action] {
    action = [arguments, invoked_as](Bootstrap& bootstrap) {
      return train(bootstrap, invoked_as, *arguments);
    };
  });
}

}  // namespace gradus::cli
