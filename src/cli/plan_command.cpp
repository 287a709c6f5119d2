#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cli/commands.h"
#include "cli/config_arguments.h"
#include "cli/option_values.h"
#include "core/counted.h"
#include "train/config_layout.h"
#include "train/run_data.h"
#include "train/step_traffic.h"
#include "train/training_model.h"

namespace gradus::cli {
namespace {

struct PlanArguments {
  ConfigArguments config;
  int64_t ranks = 0;  ///< 0: what the configuration's layout says
};

/// The layout on so many ranks; dp auto is 1 unless --ranks says how many there are.
MeshShape planned_mesh(const ParallelConfig& layout, int64_t ranks) {
  const int64_t all = layout.pp * layout.dp.value_or(1) * layout.cp * layout.tp;
  return mesh_of(layout, static_cast<int>(ranks > 0 ? ranks : all));
}

void print_stages(const std::vector<std::string>& stages) {
  if (stages.size() < 2) return;
  for (const std::string& stage : stages) fmt::print("{}\n", stage);
  fmt::print("\n");
}

/// What a rank communicates, by purpose.
void print_traffic(const TrainingModel& model, const std::string& whose) {
  const std::vector<StepTraffic> rows = step_traffic(model);
  if (rows.empty()) return;
  fmt::print("sent in a step by a rank{}\n", whose);
  fmt::print("{:<10} {:<33} {:<15} {:>8} {:>12} {:>12}\n", "group", "for", "collective", "calls",
             "payload", "sent");
  for (const StepTraffic& row : rows) {
    fmt::print("{:<10} {:<33} {:<15} {:>8} {:>12} {:>12}\n", row.group, row.purpose,
               to_string(row.collective), row.calls, format_bytes(row.bytes),
               format_bytes(std::llround(row.sent)));
  }
  fmt::print("\n");
}

/// Middle stages are alike but for their number of layers: the second stands for them.
void print_traffic_of_stages(const Config& config, int64_t vocabulary, Executor& x,
                             const MeshShape& mesh) {
  std::vector<std::pair<int, std::string>> stages;
  if (mesh.pp == 1) {
    stages = {{0, ""}};
  } else {
    stages = {{0, " of the first stage"}, {mesh.pp - 1, " of the last stage"}};
    if (mesh.pp > 2) stages.insert(stages.begin() + 1, {1, " of stage 1"});
  }
  for (const auto& [stage, whose] : stages) {
    // The last replica's shards end with what tensor parallelism does not cut.
    Parallelism parallel(mesh, {.pp = stage, .dp = mesh.dp - 1},
                         parallelism_options(config.parallel));
    print_traffic(TrainingModel(config, vocabulary, x, parallel), whose);
  }
}

int plan(Bootstrap& bootstrap, const PlanArguments& arguments) {
  require_one_rank(bootstrap, "plan");
  const Config config = arguments.config.load(bootstrap);
  Executor x(Device::cpu, static_cast<int>(config.train.threads.value_or(bootstrap.threads())));
  const MeshShape mesh = planned_mesh(config.parallel, arguments.ranks);
  const int64_t vocabulary = run_vocabulary(config);
  if (const std::string warning = vocabulary_warning(config); !warning.empty()) {
    fmt::print(stderr, "warning: {}\n", warning);
  }

  // Ranks of one stage need the same; the stage that needs the most is shown in full.
  std::unique_ptr<MemoryPlan> largest;
  std::vector<std::string> stages;
  for (int stage = 0; stage < mesh.pp; ++stage) {
    Parallelism parallel(mesh, {.pp = stage}, parallelism_options(config.parallel));
    TrainingModel model(config, vocabulary, x, parallel);
    std::unique_ptr<MemoryPlan> memory = model.plan();
    const PipelineStage& part = model.gpt().stage();
    stages.push_back(fmt::format(
        "stage {}: layers {} to {}{}{}, {} in flight, {}", stage, part.first_layer,
        part.end_layer - 1, part.first ? ", embeddings" : "", part.last ? ", head" : "",
        counted(model.gpt().options().slots, "micro-batch"), format_bytes(memory->total_bytes())));
    if (largest == nullptr || memory->total_bytes() > largest->total_bytes()) {
      largest = std::move(memory);
    }
  }
  Parallelism parallel(mesh, {}, parallelism_options(config.parallel));
  const TrainingModel model(config, vocabulary, x, parallel);
  const Sizes& sizes = model.gpt().sizes();
  const int64_t tokens = config.train.global_batch * sizes.T;

  if (mesh.size() > 1) fmt::print("{}\n", describe(parallel));
  print_stages(stages);
  fmt::print("{}\n", largest->table());
  print_traffic_of_stages(config, vocabulary, x, mesh);
  fmt::print("parameters       {:>16}\n", model.parameters().logical_numel());
  fmt::print("tokens a step    {:>16}   ({} of {} x {}{})\n", tokens,
             counted(model.micro_batches(), "micro-batch"), sizes.B, sizes.T,
             mesh.dp > 1 ? fmt::format(" on each of {} replicas", mesh.dp) : "");
  fmt::print("FLOPs a step     {:>16.4e}   (forward and backward, recomputation not counted)\n",
             training_flops(sizes, tokens));
  if (mesh.pp > 1) {
    const double bubble =
        static_cast<double>(mesh.pp - 1) / static_cast<double>(model.micro_batches() + mesh.pp - 1);
    fmt::print("pipeline bubble  {:>15.1f}%   of a step ({} stages, {})\n", 100.0 * bubble, mesh.pp,
               counted(model.micro_batches(), "micro-batch"));
  }
  fmt::print("memory available {:>16}   on this machine now\n", format_bytes(available_memory()));
  return 0;
}

}  // namespace

void add_plan(CLI::App& program, Action& action) {
  auto arguments = std::make_shared<PlanArguments>();
  CLI::App* command = program.add_subcommand(
      "plan",
      "Show what a run will allocate, by name, and what a step computes; allocates nothing");
  arguments->config.add_to(*command);
  add_integer(*command, "--ranks", arguments->ranks, between(1, 2147483647),
              "Ranks to plan for, where parallel.dp is auto")
      ->default_str("");
  command->callback([arguments, &action] {
    action = [arguments](Bootstrap& bootstrap) {
      return arguments->config.run([&] { return plan(bootstrap, *arguments); });
    };
  });
}

}  // namespace gradus::cli
