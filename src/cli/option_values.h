#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "train/config_field.h"

namespace gradus::cli {

// Options that hold one value each, read as strictly as a configuration's. A value that is not one,
// or lies outside its range, is wrong usage: the message has what was found and what is allowed.

/// value: the default.
CLI::Option* add_integer(CLI::App& command, const std::string& name, int64_t& value,
                         const Range& range, const std::string& help);
CLI::Option* add_number(CLI::App& command, const std::string& name, double& value,
                        const Range& range, const std::string& help);
/// One of these words.
CLI::Option* add_choice(CLI::App& command, const std::string& name, std::string& value,
                        const std::vector<std::string>& words, const std::string& help);

}  // namespace gradus::cli
