#include <fmt/format.h>

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cli/commands.h"
#include "cli/console.h"
#include "cli/option_values.h"
#include "infer/generation_threads.h"
#include "infer/generator.h"
#include "parallel/self_communicator.h"

namespace gradus::cli {
namespace {

struct GenerateArguments {
  std::string path;
  std::string prompt;
  int64_t tokens = 256;
  int64_t threads = 0;
  int64_t seed = 1;
  SamplingOptions sampling;
};

int generate(Bootstrap& bootstrap, const GenerateArguments& arguments) {
  require_one_rank(bootstrap, "generate");
  SamplingOptions sampling = arguments.sampling;
  sampling.seed = static_cast<uint64_t>(arguments.seed);
  Sampler sampler(sampling);
  const int threads =
      arguments.threads > 0
          ? static_cast<int>(arguments.threads)
          : generation_threads(stored_weight_bytes(arguments.path), bootstrap.threads());
  Executor x(Device::cpu, threads);
  const std::string shortage = shortage_of_threads(bootstrap, x);
  if (!shortage.empty()) fmt::print(stderr, "warning: {}\n", shortage);
  SelfCommunicator self("tp", 0, bootstrap);
  TensorParallel tp(self, false);
  std::vector<std::string> refused;
  Generator generator(arguments.path, x, tp, refused);
  for (const std::string& line : refused) fmt::print(stderr, "warning: not used: {}\n", line);
  // All that can be wrong with it is found before the first character is printed.
  std::vector<int32_t> prompt = generator.encode(arguments.prompt);
  print_now(arguments.prompt);
  generator.generate(std::move(prompt), arguments.tokens, sampler, print_now);
  print_now("\n");
  return 0;
}

}  // namespace

void add_generate(CLI::App& program, Action& action) {
  auto arguments = std::make_shared<GenerateArguments>();
  CLI::App* command = program.add_subcommand("generate", "Continue a text with a trained model");
  command->add_option("RUN", arguments->path, "A run's folder, or a checkpoint")->required();
  command->add_option("--prompt", arguments->prompt,
                      "Text to continue (default: none, a new line)");
  add_integer(*command, "--tokens", arguments->tokens, at_least(0), "Tokens to draw");
  add_integer(*command, "--seed", arguments->seed, at_least(0),
              "The same seed draws the same text");
  add_number(*command, "--temperature", arguments->sampling.temperature, at_least(0),
             "Below 1: likelier tokens more often; 0: always the likeliest");
  add_integer(*command, "--top-k", arguments->sampling.top_k, at_least(0),
              "Draw among the k likeliest tokens; 0: among all");
  add_number(*command, "--top-p", arguments->sampling.top_p, above(0, 1),
             "Draw among the likeliest tokens that together reach this probability");
  add_integer(*command, "--threads", arguments->threads, between(0, 1024),
              "0: as many as the model is large enough for, up to every core");
  command->footer("A text longer than the model's context goes on from the last half of it.");
  command->callback([arguments, &action] {
    action = [arguments](Bootstrap& bootstrap) { return generate(bootstrap, *arguments); };
  });
}

}  // namespace gradus::cli
