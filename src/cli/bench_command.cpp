#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/config_arguments.h"
#include "cli/option_values.h"
#include "core/atomic_file.h"
#include "core/counted.h"
#include "core/error.h"
#include "core/trace.h"
#include "kernels/implementation.h"
#include "train/config_layout.h"
#include "train/run_data.h"
#include "train/step.h"
#include "train/synthetic_batch.h"
#include "train/training_model.h"

namespace gradus::cli {
namespace {

constexpr double kMostSteps = 1e9;

struct StepArguments {
  ConfigArguments config;
  int64_t steps = 20;
  int64_t warmup = 3;
  std::string trace;  ///< file; empty: none
};

/// The largest of the ranks' values.
double largest(Executor& x, Communicator& world, double value) {
  const Tensor agreed(&value, DType::fp64, Device::cpu, {1});
  world.all_reduce(x, agreed, agreed, ReduceOp::max).wait(x);
  return value;
}

/// FILE of the first rank, FILE.rank1 and so on of the others.
std::string trace_file(const std::string& file, const Bootstrap& bootstrap) {
  return bootstrap.rank() == 0 ? file : fmt::format("{}.rank{}", file, bootstrap.rank());
}

/// Traces a rank's computation and communication while it lives.
class Tracing {
 public:
  Tracing(Executor& x, Bootstrap& bootstrap, Trace& trace)
      : bootstrap_(bootstrap), observer_(x, trace) {
    bootstrap_.trace(&trace);
  }
  ~Tracing() { bootstrap_.trace(nullptr); }
  Tracing(const Tracing&) = delete;
  Tracing& operator=(const Tracing&) = delete;

  void begin_step() { observer_.restart(); }

 private:
  Bootstrap& bootstrap_;
  TraceObserver observer_;
};

/// What a trace says of one step, in milliseconds. Throws Error when events did not fit.
nlohmann::json traced_step(const Trace& trace, int64_t steps) {
  if (trace.left_out() > 0) {
    throw Error(fmt::format("{} did not fit into the trace: use fewer --steps",
                            counted(trace.left_out(), "event")));
  }
  const auto per_step = [&](double all) { return 1e3 * all / static_cast<double>(steps); };
  return {{"compute_ms", per_step(trace.seconds(Trace::Track::compute))},
          {"wait_ms", per_step(trace.seconds(Trace::Track::wait))},
          {"communication_ms", per_step(trace.seconds(Trace::Track::communication))},
          {"communication_hidden_ms", per_step(trace.hidden_seconds())}};
}

/// Times whole optimizer steps; the first rank prints one JSON object.
int bench_step(Bootstrap& bootstrap, const StepArguments& arguments) {
  const Config config = arguments.config.load(bootstrap);
  Executor x(Device::cpu, static_cast<int>(config.train.threads.value_or(bootstrap.threads())));
  const std::string shortage = shortage_of_threads(bootstrap, x);
  if (!shortage.empty()) fmt::print(stderr, "warning: {}\n", shortage);
  Mesh mesh(bootstrap, mesh_of(config.parallel, bootstrap.size()));
  Parallelism parallel(mesh, parallelism_options(config.parallel));
  std::optional<Trace> trace;  // outlives what communicates
  if (!arguments.trace.empty()) trace.emplace();
  TrainingModel model(config, run_vocabulary(config), x, parallel);
  model.allocate(model.bytes_of_neighbours(bootstrap.machine()));
  mesh.world().barrier(x).wait(x);  // before any rank fills its memory: all divide what is free
  model.initialize(static_cast<uint64_t>(config.seed));
  Stepper stepper(config, model);
  const Sizes& sizes = model.gpt().sizes();
  std::vector<double> seconds;
  StepState state;
  std::optional<Tracing> tracing;
  for (int64_t step = -arguments.warmup; step < arguments.steps; ++step) {
    fill_synthetic_batch(model, static_cast<uint64_t>(step + arguments.warmup),
                         SyntheticTargets::all);
    if (step == 0 && trace) tracing.emplace(x, bootstrap, *trace);
    if (tracing) tracing->begin_step();
    const auto begin = std::chrono::steady_clock::now();
    state = stepper.run(0, config.optim.lr);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    if (step >= 0) seconds.push_back(took.count());
  }
  stepper.wait_for_weights();
  tracing.reset();
  if (trace) trace->write(trace_file(arguments.trace, bootstrap), bootstrap.rank());
  const double peak = largest(x, mesh.world(), static_cast<double>(peak_resident_memory()));
  if (bootstrap.rank() != 0) return 0;
  std::ranges::sort(seconds);
  const double median = seconds[seconds.size() / 2];
  const auto tokens = static_cast<double>(config.train.global_batch * sizes.T);
  nlohmann::json line = {
      {"event", "bench"},
      {"tokens_per_s", tokens / median},
      {"step_ms", 1e3 * median},
      {"step_ms_min", 1e3 * seconds.front()},
      {"step_ms_max", 1e3 * seconds.back()},
      {"steps", arguments.steps},
      {"gflops", training_flops(sizes, static_cast<int64_t>(tokens)) / median * 1e-9},
      {"ranks", bootstrap.size()},
      {"layout", describe(parallel)},
      {"peak_bytes", static_cast<int64_t>(peak)},
      {"arena_bytes", model.arena().plan().total_bytes()},
      {"loss", state.loss},
      {"precision", to_string(config.train.precision)},
      {"threads", x.threads()},
      {"refused_products", refused_products(x).count},
      {"vectors", vector_instruction_set()}};
  if (trace) line.update(traced_step(*trace, arguments.steps));
  fmt::print("{}\n", line.dump());
  return 0;
}

struct BatchesArguments {
  ConfigArguments config;
  std::string out;
  bool val = false;
  int64_t steps = 0;  ///< 0: train.steps
};

/// Writes the run's training batches (or the first of its validation text), so that another program
/// can train (or be evaluated) on the very same ones.
int dump_batches(Bootstrap& bootstrap, const BatchesArguments& arguments) {
  const Config config = arguments.config.load(bootstrap);
  const RunData data = RunData::open(config);
  if (arguments.val && !data.val) throw DataError("there is no validation text: {}", data.no_val);
  const Loader& loader = arguments.val ? *data.val : data.train;
  const int64_t B = config.train.global_batch;
  const int64_t T = config.model.context;
  const auto count = static_cast<size_t>(B * T);
  std::vector<int32_t> inputs(count);
  std::vector<int32_t> targets(count);
  std::vector<int32_t> sample(static_cast<size_t>(T + 1));
  const int64_t steps = arguments.steps > 0 ? arguments.steps : config.train.steps;
  AtomicFile file(arguments.out);
  for (int64_t step = 0; step < steps; ++step) {
    loader.read(step * B, inputs, targets);
    for (int64_t b = 0; b < B; ++b) {
      std::copy_n(inputs.begin() + b * T, T, sample.begin());
      sample.back() = targets[static_cast<size_t>(b * T + T - 1)];
      file.write({reinterpret_cast<const char*>(sample.data()), sample.size() * sizeof(int32_t)});
    }
  }
  data.verification->finish();
  file.publish();
  fmt::print("wrote {}: i32 ({}, {}, {})\n", arguments.out, steps, B, T + 1);
  return 0;
}

}  // namespace

void add_bench(CLI::App& program, Action& action) {
  CLI::App* command = program.add_subcommand("bench", "Measure training on this machine");
  command->require_subcommand(1);

  auto step = std::make_shared<StepArguments>();
  CLI::App* step_command = command->add_subcommand(
      "step",
      "Time whole optimizer steps on random tokens, on all ranks; one JSON object on the output");
  step->config.add_to(*step_command);
  add_integer(*step_command, "--steps", step->steps, between(1, kMostSteps),
              "Steps to time; the median is reported");
  add_integer(*step_command, "--warmup", step->warmup, between(0, kMostSteps),
              "Steps before the first that counts");
  step_command->add_option("--trace", step->trace,
                           "Write what each rank computes and communicates, for chrome://tracing, "
                           "to FILE (FILE.rank1, …); tracing takes a little time itself");
  step_command->callback([step, &action] {
    action = [step](Bootstrap& bootstrap) {
      return step->config.run([&] { return bench_step(bootstrap, *step); });
    };
  });

  auto batches = std::make_shared<BatchesArguments>();
  CLI::App* batches_command = command->add_subcommand(
      "batches", "Write a run's training batches as i32 (steps, batch, context + 1)");
  batches->config.add_to(*batches_command);
  batches_command->add_flag("--val", batches->val, "The validation text's first batches instead");
  batches_command->add_option("--out", batches->out, "File to write")->required();
  add_integer(*batches_command, "--steps", batches->steps, between(1, kMostSteps),
              "Steps whose batches are written")
      ->default_str("train.steps");
  batches_command->callback([batches, &action] {
    action = [batches](Bootstrap& bootstrap) {
      require_one_rank(bootstrap, "bench batches");
      return batches->config.run([&] { return dump_batches(bootstrap, *batches); });
    };
  });
}

}  // namespace gradus::cli
