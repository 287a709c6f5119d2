#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "train/config.h"

namespace gradus::cli {

/// CONFIG [key=value…], as the commands take it that work on a configuration.
struct ConfigArguments {
  std::string file;
  std::vector<std::string> overrides;

  void add_to(CLI::App& command) {
    command.add_option("CONFIG", file, "Configuration in YAML (docs/configuration.md)")->required();
    command.add_option("key=value", overrides,
                       "Settings that replace the file's, for example optim.lr=3e-4 or "
                       "data.train=[data/a,data/b]");
  }
  Config load() const { return load_config(file, overrides); }
};

}  // namespace gradus::cli
