#include <spdlog/sinks/null_sink.h>
#include <spdlog/spdlog.h>

#include <csignal>
#include <memory>
#include <string>

#include "cli/commands.h"
#include "cli/config_arguments.h"
#include "cli/console.h"
#include "cli/resume_command.h"
#include "train/config_layout.h"
#include "train/run_start.h"
#include "train/signals.h"
#include "train/trainer.h"

namespace gradus::cli {
namespace {

/// The first rank speaks for all.
std::shared_ptr<spdlog::logger> make_log(const Bootstrap& bootstrap) {
  if (bootstrap.rank() != 0) {
    return std::make_shared<spdlog::logger>("gradus",
                                            std::make_shared<spdlog::sinks::null_sink_mt>());
  }
  // Launchers give their ranks a terminal of their own, whatever the output is written to.
  return console_log("gradus", bootstrap.size() > 1 ? Colors::never : Colors::on_a_terminal);
}

int train(Bootstrap& bootstrap, const std::string& program, const ConfigArguments& arguments) {
  std::signal(SIGPIPE, SIG_IGN);  // a run does not end with whoever reads what it says
  StopSignals signals(bootstrap.rank() == 0, bootstrap.size());
  const Config config = arguments.load(bootstrap);
  if (!arguments.sets("run.dir")) refuse_copied_record(arguments.file, config);
  const std::shared_ptr<spdlog::logger> log = make_log(bootstrap);
  if (!bootstrap.overlooked().empty()) {
    log->warn("this is a run of one rank. {}", bootstrap.overlooked());
  }
  Executor x(Device::cpu, static_cast<int>(config.train.threads.value_or(bootstrap.threads())));
  const std::string shortage = shortage_of_threads(bootstrap, x);
  if (!shortage.empty()) log->warn("{}", shortage);
  Mesh mesh(bootstrap, mesh_of(config.parallel, bootstrap.size()));
  Parallelism parallel(mesh, parallelism_options(config.parallel));
  Trainer trainer({.config = config,
                   .resume_command = resume_command(bootstrap, program, arguments, config),
                   .machine = bootstrap.machine()},
                  x, parallel, *log, signals);
  if (trainer.run() == Trainer::Outcome::finished) {
    log->info("done. To see what it learned: {} generate {}", shell_word(program),
              shell_word(trainer.generates_from()));
  }
  return 0;
}

}  // namespace

void add_train(CLI::App& program, const std::string& invoked_as, Action& action) {
  auto arguments = std::make_shared<ConfigArguments>();
  CLI::App* command = program.add_subcommand("train", "Train a model as a configuration says");
  command->footer(
      "Metrics go to RUN/metrics.jsonl, checkpoints to RUN/checkpoints (RUN is the key run.dir).\n"
      "A run that was interrupted goes on from its newest checkpoint when started again.\n\n"
      "SIGINT (Ctrl-C), SIGTERM, SIGHUP (a closed terminal) and SIGUSR1 finish the step, save and\n"
      "end with 0; a second Ctrl-C, a second or more later, ends at once. Before the first step\n"
      "any of them ends at once, by that signal. Under nohup SIGHUP is ignored.\n"
      "When the disk is full the run goes on, and tries again to write.");
  arguments->add_to(*command);
  command->callback([arguments, invoked_as, &action] {
    action = [arguments, invoked_as](Bootstrap& bootstrap) {
      return arguments->run([&] { return train(bootstrap, invoked_as, *arguments); });
    };
  });
}

}  // namespace gradus::cli
