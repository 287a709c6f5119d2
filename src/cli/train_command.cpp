#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>

#include "cli/commands.h"
#include "cli/config_arguments.h"
#include "parallel/mesh.h"
#include "train/trainer.h"

namespace gradus::cli {
namespace {

/// The command that goes on with a run, as a user types it.
std::string command_line(const ConfigArguments& arguments) {
  std::string line = "gradus train " + arguments.file;
  for (const std::string& override_text : arguments.overrides) {
    const bool plain = override_text.find_first_of(" []{}'\"$*?") == std::string::npos;
    line += plain ? " " + override_text : " '" + override_text + "'";
  }
  return line;
}

int train(Bootstrap& bootstrap, const ConfigArguments& arguments) {
  require_one_rank(bootstrap, "train");
  const Config config = arguments.load();
  spdlog::logger log("gradus", std::make_shared<spdlog::sinks::stdout_color_sink_mt>());
  log.set_pattern("%H:%M:%S %^%L%$ %v");
  Executor x(Device::cpu, static_cast<int>(config.train.threads.value_or(bootstrap.threads())));
  Mesh mesh(bootstrap, resolve_mesh(bootstrap.size(), config.parallel.tp, config.parallel.pp,
                                    config.parallel.cp, config.parallel.dp));
  TensorParallel tp(mesh.tp(), config.parallel.sequence);
  Trainer trainer({.config = config, .resume_command = command_line(arguments)}, x, tp, log);
  if (trainer.run() == Trainer::Outcome::finished) {
    log.info("done. To see what it learned: gradus generate {}", config.run.dir);
  }
  return 0;
}

}  // namespace

void add_train(CLI::App& program, Action& action) {
  auto arguments = std::make_shared<ConfigArguments>();
  CLI::App* command = program.add_subcommand("train", "Train a model as a configuration says");
  command->footer(
      "Metrics go to RUN/metrics.jsonl, checkpoints to RUN/checkpoints (RUN is the key run.dir).\n"
      "A run that was interrupted goes on from its newest checkpoint when started again.");
  arguments->add_to(*command);
  command->callback([arguments, &action] {
    action = [arguments](Bootstrap& bootstrap) { return train(bootstrap, *arguments); };
  });
}

}  // namespace gradus::cli
