#include "cli/config_arguments.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <sstream>
#include <string_view>

#include "core/error.h"
#include "train/config_problems.h"

namespace gradus::cli {
namespace {

/// What all ranks of a run have to be told alike, one setting a line: all but the names of places,
/// which another machine may call otherwise, and what a machine computes with.
std::string common_settings(const Config& config) {
  constexpr std::array<std::string_view, 4> kOwn = {"run.dir", "data.train", "data.val",
                                                    "train.threads"};
  std::string lines;
  for (const ConfigDifference& setting : config_differences(Config{}, config)) {
    if (std::ranges::find(kOwn, setting.key) != kOwn.end()) continue;
    lines += fmt::format("{}: {}\n", setting.key, setting.b);
  }
  return lines;
}

/// The lines of `a` that `b` does not have.
std::string lines_beside(const std::string& a, const std::string& b) {
  std::istringstream lines(a);
  std::string found;
  for (std::string line; std::getline(lines, line);) {
    if (("\n" + b).find("\n" + line + "\n") == std::string::npos) found += "\n    " + line;
  }
  return found.empty() ? " the default" : found;
}

/// An old copy of the configuration on one machine: replicas would train at different rates, or one
/// rank evaluate while another steps, and nothing would say so.
void refuse_different_settings(Bootstrap& bootstrap, const Config& config) {
  const std::vector<std::string> settings = bootstrap.exchange(common_settings(config));
  const auto other = std::ranges::find_if(
      settings, [&](const std::string& theirs) { return theirs != settings.front(); });
  if (other == settings.end()) return;
  throw ConfigError(
      "the ranks were started with different settings: give all of them the same configuration and "
      "the same key=value arguments\n  rank 0 has{}\n  rank {} has{}",
      lines_beside(settings.front(), *other), other - settings.begin(),
      lines_beside(*other, settings.front()));
}

}  // namespace

void ConfigArguments::add_to(CLI::App& command) {
  command.add_option("CONFIG", file, "Configuration in YAML (docs/configuration.md)")->required();
  // CLI11 2.4 takes no name with '=' in it, not even of a positional argument.
  command
      .add_option("SETTINGS", overrides,
                  "What replaces the file's settings, for example optim.lr=3e-4 or "
                  "data.train=[data/a,data/b]")
      ->type_name("key=value");
}

bool ConfigArguments::sets(const std::string& key) const {
  return std::ranges::any_of(overrides, [&](const std::string& setting) {
    const std::string name = setting.substr(0, setting.find('='));
    return name == key || key.starts_with(name + ".");
  });
}

Config ConfigArguments::load(Bootstrap& bootstrap) const {
  const Config config = load_config(file, overrides, places.get());
  refuse_different_settings(bootstrap, config);
  return config;
}

int ConfigArguments::run(const std::function<int()>& command) const {
  try {
    return command();
  } catch (const UsageError&) {
    throw;
  } catch (const ConfigError& error) {
    throw ConfigError(error.what() + places_of_keys(error.what(), *places));
  }
}

}  // namespace gradus::cli
