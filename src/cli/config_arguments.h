#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "parallel/bootstrap.h"
#include "train/config.h"

namespace gradus::cli {

/// CONFIG [key=value…], as the commands take it that work on a configuration.
struct ConfigArguments {
  std::string file;
  std::vector<std::string> overrides;
  std::shared_ptr<ConfigPlaces> places = std::make_shared<ConfigPlaces>();  ///< of what was loaded

  void add_to(CLI::App& command);
  /// Whether an override names the key, or its section.
  bool sets(const std::string& key) const;
  /// Collective over the job. Throws ConfigError, also when the ranks were not told the same.
  Config load(Bootstrap& bootstrap) const;
  /// Runs a command on what it loads: a ConfigError that shows only then says where the keys that
  /// it names got their values.
  int run(const std::function<int()>& command) const;
};

}  // namespace gradus::cli
