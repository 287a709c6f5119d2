#include <spdlog/sinks/null_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <string>

#include "cli/commands.h"
#include "cli/config_arguments.h"
#include "cli/resume_command.h"
#include "train/config_layout.h"
#include "train/trainer.h"

namespace gradus::cli {
namespace {

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
  const Config config = arguments.load(bootstrap);
  spdlog::logger log = make_log(bootstrap);
  Executor x(Device::cpu, static_cast<int>(config.train.threads.value_or(bootstrap.threads())));
  const std::string shortage = shortage_of_threads(bootstrap, x);
  if (!shortage.empty()) log.warn("{}", shortage);
  Mesh mesh(bootstrap, mesh_of(config.parallel, bootstrap.size()));
  Parallelism parallel(mesh, parallelism_options(config.parallel));
  Trainer trainer({.config = config,
                   .resume_command = resume_command(bootstrap, program, arguments, config),
                   .machine = bootstrap.machine()},
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
      return arguments->run([&] { return train(bootstrap, invoked_as, *arguments); });
    };
  });
}

}  // namespace gradus::cli
