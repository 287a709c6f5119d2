#include <fmt/format.h>

#include <cstdio>
#include <memory>

#include "cli/commands.h"
#include "cli/config_arguments.h"
#include "train/run_data.h"
#include "train/training_model.h"

namespace gradus::cli {
namespace {

int plan(Bootstrap& bootstrap, const ConfigArguments& arguments) {
  require_one_rank(bootstrap, "plan");
  const Config config = arguments.load();
  Executor x(Device::cpu, static_cast<int>(config.train.threads.value_or(bootstrap.threads())));
  TensorParallel tp(0, static_cast<int>(config.parallel.tp), config.parallel.sequence);
  TrainingModel model(config, run_vocabulary(config), x, tp);
  const std::unique_ptr<MemoryPlan> memory = model.plan();
  const Sizes& sizes = model.gpt().sizes();
  const int64_t tokens = config.train.global_batch * sizes.T;

  fmt::print("{}\n", memory->table());
  fmt::print("parameters       {:>16}\n", model.parameters().logical_numel());
  fmt::print("tokens a step    {:>16}   ({} micro-batch{} of {} x {})\n", tokens,
             model.micro_batches(), model.micro_batches() == 1 ? "" : "es", sizes.B, sizes.T);
  fmt::print("FLOPs a step     {:>16.4e}   (forward and backward, recomputation not counted)\n",
             training_flops(sizes, tokens));
  fmt::print("memory available {:>16}   on this machine now\n", format_bytes(available_memory()));
  return 0;
}

}  // namespace

void add_plan(CLI::App& program, Action& action) {
  auto arguments = std::make_shared<ConfigArguments>();
  CLI::App* command = program.add_subcommand(
      "plan",
      "Show what a run will allocate, by name, and what a step computes; allocates nothing");
  arguments->add_to(*command);
  command->callback([arguments, &action] {
    action = [arguments](Bootstrap& bootstrap) { return plan(bootstrap, *arguments); };
  });
}

}  // namespace gradus::cli
