#include <fmt/format.h>

#include <cstdio>
#include <memory>

#include "cli/commands.h"
#include "infer/generator.h"
#include "parallel/self_communicator.h"

namespace gradus::cli {
namespace {

struct GenerateArguments {
  std::string path;
  std::string prompt;
  int64_t tokens = 256;
  int threads = 0;
  SamplingOptions sampling;
};

int generate(Bootstrap& bootstrap, const GenerateArguments& arguments) {
  require_one_rank(bootstrap, "generate");
  Executor x(Device::cpu, arguments.threads > 0 ? arguments.threads : bootstrap.threads());
  SelfCommunicator self("tp", 0, bootstrap);
  TensorParallel tp(self, false);
  std::vector<std::string> refused;
  Generator generator(arguments.path, x, tp, refused);
  for (const std::string& line : refused) fmt::print(stderr, "warning: not used: {}\n", line);
  const auto emit = [](std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  };
  emit(arguments.prompt);
  generator.generate(arguments.prompt, arguments.tokens, arguments.sampling, emit);
  emit("\n");
  return 0;
}

}  // namespace

void add_generate(CLI::App& program, Action& action) {
  auto arguments = std::make_shared<GenerateArguments>();
  CLI::App* command = program.add_subcommand("generate", "Continue a text with a trained model");
  command->add_option("RUN", arguments->path, "A run's folder, or a checkpoint")->required();
  command->add_option("--prompt", arguments->prompt,
                      "Text to continue (default: none, a new line)");
  command->add_option("--tokens", arguments->tokens, "Tokens to draw")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  command->add_option("--seed", arguments->sampling.seed, "The same seed draws the same text")
      ->capture_default_str();
  command
      ->add_option("--temperature", arguments->sampling.temperature,
                   "Below 1: likelier tokens more often; 0: always the likeliest")
      ->capture_default_str();
  command
      ->add_option("--top-k", arguments->sampling.top_k,
                   "Draw among the k likeliest tokens; 0: among all")
      ->capture_default_str();
  command
      ->add_option("--top-p", arguments->sampling.top_p,
                   "Draw among the likeliest tokens that together reach this probability")
      ->capture_default_str();
  command->add_option("--threads", arguments->threads, "0: every core")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  command->footer("A text longer than the model's context goes on from the last half of it.");
  command->callback([arguments, &action] {
    action = [arguments](Bootstrap& bootstrap) { return generate(bootstrap, *arguments); };
  });
}

}  // namespace gradus::cli
