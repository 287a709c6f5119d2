#include "cli/resume_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <string_view>

namespace gradus::cli {

std::string shell_word(const std::string& text) {
  const auto plain = [](unsigned char c) {
    return std::isalnum(c) != 0 ||
           std::string_view("_-+=.,:/@%").find(static_cast<char>(c)) != std::string_view::npos;
  };
  if (!text.empty() && std::ranges::all_of(text, plain)) return text;
  std::string quoted = "'";
  for (const char c : text) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

std::string resume_command(const Bootstrap& bootstrap, const std::string& program,
                           const ConfigArguments& arguments, const Config& config) {
  // Another setting would start afresh, or again from where this run started.
  const bool automatic = config.checkpoint.resume.mode == Resume::Mode::automatic;
  const std::string suffix = automatic ? "" : " checkpoint.resume=auto";
  if (const char* script = std::getenv("GRADUS_RESUME_COMMAND"); script != nullptr) {
    return script + suffix;
  }
  std::string line;
  if (bootstrap.size() > 1) {
    // Set by mpirun, also where it was started inside a Slurm job; the launcher by
    // scripts/mpirun.sh.
    const bool by_mpirun = std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr;
    const bool by_srun = !by_mpirun && std::getenv("SLURM_STEP_ID") != nullptr;
    const char* launcher = std::getenv("GRADUS_LAUNCHER");
    const std::string started_by = launcher != nullptr ? shell_word(launcher) : "mpirun";
    line = fmt::format("{} {} ", by_srun ? "srun -n" : started_by + " -np", bootstrap.size());
  }
  line += shell_word(program) + " train " + shell_word(arguments.file);
  for (const std::string& setting : arguments.overrides) line += " " + shell_word(setting);
  return line + suffix;
}

}  // namespace gradus::cli
