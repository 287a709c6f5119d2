#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "parallel/bootstrap.h"
#include "train/config.h"

namespace gradus::cli {

/// CONFIG [key=value…], as the commands take it that work on a configuration.
struct ConfigArguments {
  std::string file;
  std::vector<std::string> overrides;

  void add_to(CLI::App& command);
  /// Collective over the job. Throws ConfigError, also when the ranks were not told the same.
  Config load(Bootstrap& bootstrap) const;
};

}  // namespace gradus::cli
