#include <spdlog/sinks/null_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cctype>
#include <memory>
#include <string>
#include <string_view>

#include "cli/commands.h"
#include "cli/config_arguments.h"
#include "core/error.h"
#include "parallel/parallelism.h"
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
  std::string line = bootstrap.size() > 1 ? fmt::format("mpirun -np {} ", bootstrap.size()) : "";
  line += shell_word(program) + " train " + shell_word(arguments.file);
  for (const std::string& setting : arguments.overrides) line += " " + shell_word(setting);
  // Another setting would start afresh, or again from where this run started.
  if (config.checkpoint.resume.mode != Resume::Mode::automatic) line += " checkpoint.resume=auto";
  return line;
}

/// The first rank speaks for all.
spdlog::logger make_log(const Bootstrap& bootstrap) {
  if (bootstrap.rank() != 0) {
    return spdlog::logger("gradus", std::make_shared<spdlog::sinks::null_sink_mt>());
  }
  spdlog::logger log("gradus", std::make_shared<spdlog::sinks::stdout_color_sink_mt>());
  log.set_pattern("%H:%M:%S %^%L%$ %v");
  return log;
}

int train(Bootstrap& bootstrap, const std::string& program, const ConfigArguments& arguments) {
  const Config config = arguments.load();
  spdlog::logger log = make_log(bootstrap);
  Executor x(Device::cpu, static_cast<int>(config.train.threads.value_or(bootstrap.threads())));
  const ParallelConfig& layout = config.parallel;
  Mesh mesh(bootstrap, resolve_mesh(bootstrap.size(), layout.tp, layout.pp, layout.cp, layout.dp));
  Parallelism parallel(mesh, {.sequence = layout.sequence, .zero = layout.zero});
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
