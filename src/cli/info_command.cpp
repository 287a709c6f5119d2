#include <fmt/format.h>

#include <cstdio>
#include <fstream>
#include <string>

#include "cli/commands.h"
#include "core/arena.h"
#include "core/control_group.h"
#include "core/counted.h"
#include "core/executor.h"
#include "core/memory_limit.h"
#include "kernels/implementation.h"

namespace gradus::cli {
namespace {

std::string cpu_name() {
  std::ifstream in("/proc/cpuinfo");
  std::string line;
  while (std::getline(in, line)) {
    if (line.starts_with("model name")) {
      const size_t colon = line.find(": ");
      return colon == std::string::npos ? line : line.substr(colon + 2);
    }
  }
  return "unknown";
}

int info(Bootstrap& bootstrap) {
  require_one_rank(bootstrap, "info");
  const Executor x(Device::cpu, bootstrap.threads());
  fmt::print("gradus           {} ({}, compiler {})\n", GRADUS_VERSION, GRADUS_BUILD_TYPE,
             __VERSION__);
  fmt::print("backend          cpu\n");
  const CpuQuota quota = control_group_cpus("/");
  const std::string granted =
      quota.limited() ? fmt::format("; its control group grants {:.3g} CPUs", quota.cpus) : "";
  fmt::print("processor        {}, {} for this process{}\n", cpu_name(),
             counted(x.threads(), "core"), granted);
  fmt::print("vectors          {}\n", vector_instruction_set());
  for (const DType dtype : {DType::fp32, DType::bf16, DType::fp64}) {
    fmt::print("matmul {}      {}\n", to_string(dtype), matmul_implementation(x, dtype));
  }
  const MemoryLimit memory = least(shared_memory_limit(), process_memory_limit());
  fmt::print("memory           {} available, by {}\n", format_bytes(memory.bytes), memory.name);
  fmt::print("communication    {}\n", GRADUS_COMMUNICATION);
  return 0;
}

}  // namespace

void add_info(CLI::App& program, Action& action) {
  CLI::App* command =
      program.add_subcommand("info", "Show the build, the processor and the libraries in use");
  command->callback([&action] { action = info; });
}

}  // namespace gradus::cli
