#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "cli/commands.h"
#include "cli/config_arguments.h"
#include "cli/console.h"
#include "core/counted.h"
#include "train/verify.h"
#include "train/verify_layouts.h"

namespace gradus::cli {
namespace {

void print(const Check& check) {
  const std::string limit = check.limit > 0.0 ? fmt::format("{:.0e}", check.limit) : "equal";
  fmt::print("{:<58} {:>9.1e} {:>7} {:>6.1f} s  {}\n", check.name, check.worst, limit,
             check.seconds, check.passed() ? "pass" : "FAIL: " + check.where);
  flush_output();
}

/// The exit code: 0 when everything passed.
int verify_run(Bootstrap& bootstrap, const ConfigArguments& arguments) {
  std::vector<std::string> rule;
  const Config config = shrink_for_verification(arguments.load(bootstrap), bootstrap.size(), rule);
  const bool speaks = bootstrap.rank() == 0;
  if (speaks) {
    fmt::print("verifying {} on {}, made small by this rule:\n", arguments.file,
               counted(bootstrap.size(), "rank"));
    for (const std::string& line : rule) fmt::print("  {}\n", line);
    fmt::print("\n{:<58} {:>9} {:>7} {:>8}\n", "check", "worst", "limit", "time");
  }
  const std::vector<Check> checks = verify(config, bootstrap, [&](const Check& check) {
    if (speaks) print(check);
  });
  const auto failed = std::ranges::count_if(checks, [](const Check& c) { return !c.passed(); });
  if (speaks) {
    fmt::print("\n{}\n", failed == 0
                             ? fmt::format("all {} checks passed", checks.size())
                             : fmt::format("{} of {} checks FAILED", failed, checks.size()));
    const std::vector<std::string> left_out = layouts_to_verify(config, bootstrap.size()).left_out;
    if (!left_out.empty()) fmt::print("not tried, since this model cannot be cut so:\n");
    for (const std::string& line : left_out) fmt::print("  {}\n", line);
    if (bootstrap.size() == 1) {
      fmt::print("layouts of several ranks: mpirun -np N gradus verify {}\n", arguments.file);
    }
    fmt::print("a device beside the CPU: not part of this build\n");
  }
  return failed == 0 ? 0 : 1;
}

}  // namespace

void add_verify(CLI::App& program, Action& action) {
  auto arguments = std::make_shared<ConfigArguments>();
  CLI::App* command = program.add_subcommand(
      "verify", "Check on this machine that training as a configuration says is right");
  command->footer(
      "Takes the configuration's choices at a small size: gradients against central differences,\n"
      "recomputation, accumulation, save and resume, and, started by mpirun -np N, every layout\n"
      "of N ranks against one rank. The exit code is 0 when all of it passed.");
  arguments->add_to(*command);
  command->callback([arguments, &action] {
    action = [arguments](Bootstrap& bootstrap) {
      return arguments->run([&] { return verify_run(bootstrap, *arguments); });
    };
  });
}

}  // namespace gradus::cli
